//! What the board's sensors say, and which of its devices are there, told to the Node.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::cluster::{EventRecorder, NodeState};
use crate::machine::devices::Devices;
use crate::machine::health;

/// How often is looked which devices are there, as a kubelet looks at its node.
const LOOK: Duration = Duration::from_secs(10);

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

/// Tells the Node which devices there are.
pub async fn count(devices: Arc<Devices>, state: watch::Sender<NodeState>) {
    let mut tick = tokio::time::interval(LOOK);
    while !devices.is_empty() {
        tick.tick().await;
        let now = devices.counts();
        state.send_if_modified(|s| {
            s.devices != now && {
                s.devices = now;
                true
            }
        });
    }
}
