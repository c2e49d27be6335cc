//! The mailbox of a worker: whoever tells it something never waits for it, however long it is busy with its pod, and what
//! waits there stays little, since newer messages take the place of older ones that they make needless.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::message::Message;
use super::probe::Kind;

#[derive(Default)]
struct Inner {
    waiting: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Message>,
    closed: bool,
}

impl Inner {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker's side; what waits is dropped with it.
#[derive(Default)]
pub struct Mailbox(Arc<Inner>);

/// The side of those who tell it something; cheap to clone.
#[derive(Clone)]
pub struct Post(Arc<Inner>);

impl Drop for Mailbox {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.closed = true;
        let left = std::mem::take(&mut queue.messages);
        drop(queue);
        // those who wait for an answer hear that there is none
        drop(left);
    }
}

impl Mailbox {
    /// Where to send what this gets.
    pub fn post(&self) -> Post {
        Post(self.0.clone())
    }

    /// The next message, if there is one.
    pub fn try_recv(&mut self) -> Option<Message> {
        let mut queue = self.0.queue();
        let message = queue.messages.pop_front();
        if queue.messages.is_empty() {
            queue.messages.shrink_to(1);
        }
        message
    }

    /// Waits for the next message.
    pub async fn recv(&mut self) -> Message {
        loop {
            if let Some(message) = self.try_recv() {
                return message;
            }
            self.0.arrived.notified().await;
        }
    }

    /// Waits until a message says that the pod is to end, which stays where it is: what takes long can be given up then.
    pub async fn ending(&self) {
        loop {
            let arrived = self.0.arrived.notified();
            if self.0.queue().messages.iter().any(Message::ends_pod) {
                return;
            }
            arrived.await;
        }
    }
}

impl Post {
    /// Leaves a message; false when the worker has ended and needs to hear nothing more.
    pub fn send(&self, message: Message) -> bool {
        let mut queue = self.0.queue();
        if queue.closed {
            return false;
        }
        let replaced = put(&mut queue.messages, message);
        drop(queue);
        self.0.arrived.notify_one();
        drop(replaced);
        true
    }
}

/// Puts a message in, in the place of one that says less; returns what need not be heard any more.
fn put(waiting: &mut VecDeque<Message>, message: Message) -> Option<Message> {
    for old in waiting.iter_mut() {
        match (&mut *old, &message) {
            // the newest counts
            (Message::Update(_), Message::Update(_))
            | (Message::Removed { .. }, Message::Removed { .. })
            | (Message::Renew { .. }, Message::Renew { .. })
            | (Message::Clean(_), Message::Clean(_)) => return Some(std::mem::replace(old, message)),
            // once is enough, and of evictions the first counts
            (Message::Halt, Message::Halt)
            | (Message::MirrorChanged, Message::MirrorChanged)
            | (Message::Unreached, Message::Unreached)
            | (Message::Evict { .. }, Message::Evict { .. }) => return Some(message),
            (Message::SandboxLost { sandbox: one }, Message::SandboxLost { sandbox: other }) if one == other => {
                return Some(message);
            }
            (
                Message::Probed { container: one, kind: Kind::Readiness, .. },
                Message::Probed { container: other, kind: Kind::Readiness, .. },
            ) if one == other => return Some(std::mem::replace(old, message)),
            (Message::Stop { containers: all, grace: one }, Message::Stop { containers: more, grace: other })
                if one == other =>
            {
                let new: Vec<_> = more.iter().filter(|c| !all.contains(*c)).cloned().collect();
                all.extend(new);
                return Some(message);
            }
            _ => {}
        }
    }
    waiting.push_back(message);
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn update(version: u32) -> Message {
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"resourceVersion": version.to_string()}})).unwrap();
        Message::Update(Box::new(pod))
    }

    #[tokio::test]
    async fn nobody_waits_for_a_worker_and_little_waits_for_it() {
        let mut mailbox = Mailbox::default();
        let post = mailbox.post();
        for version in 0..10_000 {
            assert!(post.send(update(version)));
            assert!(post.send(Message::Stop { containers: vec![format!("c{}", version % 3)], grace: None }));
            assert!(post.send(Message::Probed {
                container: "c".into(),
                kind: Kind::Readiness,
                success: version % 2 == 0
            }));
            assert!(post.send(Message::MirrorChanged));
        }
        let Message::Update(pod) = mailbox.recv().await else { panic!("in their order") };
        assert_eq!(pod.metadata.resource_version.as_deref(), Some("9999"), "the newest counts");
        let Message::Stop { containers, .. } = mailbox.recv().await else { panic!("in their order") };
        assert_eq!(containers, ["c0", "c1", "c2"]);
        assert!(matches!(mailbox.recv().await, Message::Probed { success: false, .. }));
        assert!(matches!(mailbox.recv().await, Message::MirrorChanged));
        assert!(mailbox.try_recv().is_none());
    }

    #[tokio::test]
    async fn what_a_worker_has_not_heard_ends_with_it() {
        let mailbox = Mailbox::default();
        let post = mailbox.post();
        let (done, answer) = tokio::sync::oneshot::channel();
        post.send(Message::Renew { grace: None, done });
        drop(mailbox);
        assert!(answer.await.is_err());
        assert!(!post.send(Message::Halt));
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_heard_beside_other_work() {
        let mut mailbox = Mailbox::default();
        let post = mailbox.post();
        post.send(update(1));
        let wait = Duration::from_secs(1);
        assert!(tokio::time::timeout(wait, mailbox.ending()).await.is_err());
        post.send(Message::Removed { forced: false });
        assert!(tokio::time::timeout(wait, mailbox.ending()).await.is_ok());
        assert!(matches!(mailbox.recv().await, Message::Update(_)), "all stay where they are");
        assert!(matches!(mailbox.recv().await, Message::Removed { .. }));
    }
}
