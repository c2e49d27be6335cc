//! What the board's sensors say, told to the Node.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::sync::watch;

use crate::cluster::{EventRecorder, NodeState};
use crate::machine::health;

/// Tells the Node how the board does, and of what goes wrong with it by an Event.
pub async fn tell(events: EventRecorder, state: watch::Sender<NodeState>) {
    let mut problems = BTreeSet::new();
    let told = |conditions: Vec<health::Condition>| {
        for condition in &conditions {
            let new = if condition.status { problems.insert(condition.kind) } else { problems.remove(condition.kind) };
            if new {
                let kind = if condition.status { "Warning" } else { "Normal" };
                events.node_event(kind, condition.reason, condition.message.to_owned());
            }
        }
        state.send_modify(|s| s.board = conditions);
    };
    health::keep(Path::new("/"), told).await;
}
