//! A pod that ends with the machine, and goes on when that is there again: its processes have their time to end, but nothing
//! is told of it, and what the pod has on disk stays. So it comes back as after a power cut.

use std::time::Instant;

use tracing::warn;

use super::worker::Worker;

/// How far that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halt {
    /// It was asked for.
    Asked,
    /// No process is left.
    Done,
}

impl Worker {
    /// One step of it; returns when the next is due by itself.
    pub(super) async fn end_with_machine(&mut self) -> Option<Instant> {
        if let Some(at) = self.end_containers(self.grace()).await {
            return Some(at);
        }
        let errors = self.drop_sandbox().await;
        if !errors.is_empty() {
            // the machine does not wait: what is left ends with it
            warn!(pod = %self.uid, errors = errors.join("; "), "sandbox not wholly removed");
        }
        self.halt = Some(Halt::Done);
        None
    }
}
