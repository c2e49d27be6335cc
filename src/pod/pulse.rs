//! Whether the manager still turns: it is asked, and answers from its loop. So nothing looks at it while nobody asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// How long the manager may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long an agent may take to come up.
const START: Duration = Duration::from_mins(2);

/// Asks the manager; cheap to clone.
#[derive(Clone)]
pub struct Pulse {
    pings: mpsc::Sender<oneshot::Sender<()>>,
    began: Instant,
    up: Arc<std::sync::OnceLock<()>>,
}

impl Pulse {
    /// One, and where the manager hears it.
    pub fn new() -> (Self, mpsc::Receiver<oneshot::Sender<()>>) {
        let (pings, heard) = mpsc::channel(1);
        (Self { pings, began: Instant::now(), up: Arc::default() }, heard)
    }

    /// True while the manager turns, or the agent is coming up.
    pub async fn beats(&self) -> bool {
        let asked = async {
            let (tell, told) = oneshot::channel();
            self.pings.send(tell).await.is_ok() && told.await.is_ok()
        };
        // while an agent comes up its manager has better to do
        let coming_up = self.up.get().is_none() && self.began.elapsed() < START;
        if coming_up {
            return true;
        }
        timeout(ANSWER, asked).await.unwrap_or(false)
    }

    /// The manager begins to turn.
    pub fn up(&self) {
        // said twice is said
        let _ = self.up.set(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_manager_that_does_not_turn_is_noticed() {
        let (pulse, mut heard) = Pulse::new();
        assert!(pulse.beats().await, "it is coming up");
        pulse.up();
        assert!(!pulse.beats().await, "nobody answers");
        while heard.try_recv().is_ok() {}
        tokio::spawn(async move {
            while let Some(tell) = heard.recv().await {
                let _ = tell.send(());
            }
        });
        assert!(pulse.beats().await);
    }
}
