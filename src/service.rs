//! What the service manager is told (`sd_notify(3)`); without one nothing is.

use sd_notify::NotifyState;
use tracing::warn;

use crate::pod::pulse::Pulse;

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "the service manager was not told");
    }
}

/// What the agent waits for, as `systemctl status` shows it.
pub fn status(text: &str) {
    tell(NotifyState::Status(text));
}

/// What it says when it is up; of a cluster's Node there is more to say later.
pub const UP: &str = "running";

/// The agent is up, and a member of its cluster. From now on the service manager hears that it lives, if it wants to.
/// `pulse`: asked first whether the manager of the pods still turns.
pub fn ready(pulse: Pulse) {
    tell(NotifyState::Ready);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(async move {
            // by a task of the runtime, and only while the manager turns: it falls silent when one of them is stuck
            let mut tick = tokio::time::interval(limit / 3);
            loop {
                tick.tick().await;
                if pulse.beats().await {
                    tell(NotifyState::Watchdog);
                } else {
                    warn!(
                        "the manager of the pods does not turn: the service manager is not told that the agent lives"
                    );
                }
            }
        });
    }
}

/// The agent ends.
pub fn stopping() {
    tell(NotifyState::Stopping);
}
