//! Places of transfers, which no registry has all of for long: who trickles keeps nobody else from pulling.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long a registry that has no place waits before it gets one beyond the others.
const PATIENCE: Duration = Duration::from_mins(1);

/// Places of transfers; those of one registry wait for each other.
pub struct Slots {
    places: Arc<Semaphore>,
    /// Places beyond: as many, each for a registry that has no other.
    spare: Arc<Semaphore>,
    /// How many places each registry has.
    taken: Mutex<HashMap<String, usize>>,
}

/// A place, until it is dropped.
pub struct Slot {
    slots: Arc<Slots>,
    registry: String,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    /// `places` at once, and as many more where they do not come free.
    pub fn new(places: usize) -> Arc<Self> {
        let semaphore = || Arc::new(Semaphore::new(places));
        Arc::new(Self { places: semaphore(), spare: semaphore(), taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, registry: &str) {
        *self.taken().entry(registry.to_owned()).or_default() += 1;
    }

    /// A place beyond the others, for a registry that has none.
    fn beyond(&self, registry: &str) -> Option<OwnedSemaphorePermit> {
        let mut taken = self.taken();
        if taken.contains_key(registry) {
            return None;
        }
        let permit = self.spare.clone().try_acquire_owned().ok()?;
        taken.insert(registry.to_owned(), 1);
        Some(permit)
    }

    /// Waits for a place for a transfer from `registry`.
    pub async fn take(self: Arc<Self>, registry: &str) -> Result<Slot, String> {
        let mut turn = pin!(self.places.clone().acquire_owned());
        let permit = loop {
            if let Ok(permit) = timeout(PATIENCE, &mut turn).await {
                self.note(registry);
                break permit.map_err(|e| e.to_string())?;
            }
            if let Some(permit) = self.beyond(registry) {
                break permit;
            }
        };
        Ok(Slot { slots: self.clone(), registry: registry.to_owned(), _permit: permit })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        if let Some(count) = taken.get_mut(&self.registry) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.registry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_registry_does_not_keep_the_others_waiting() {
        let slots = Slots::new(2);
        let mut slow = Vec::new();
        for _ in 0..2 {
            slow.push(slots.clone().take("slow").await.unwrap());
        }
        let more = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take("slow").await.unwrap() }
        });
        let other = timeout(PATIENCE * 5, slots.clone().take("good")).await.unwrap().unwrap();
        // its second one waits as those of the slow one do
        let second = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take("good").await.unwrap() }
        });
        tokio::time::sleep(PATIENCE * 5).await;
        assert!(!more.is_finished() && !second.is_finished());
        drop(other);
        let second = timeout(PATIENCE * 2, second).await.unwrap().unwrap();
        assert!(!more.is_finished());
        slow.pop();
        let more = timeout(PATIENCE, more).await.unwrap().unwrap();
        drop((slow, more, second));
        assert!(slots.taken().is_empty());
        assert_eq!((slots.places.available_permits(), slots.spare.available_permits()), (2, 2));
    }
}
