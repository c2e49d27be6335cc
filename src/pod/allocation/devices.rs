//! Which devices of the board each container was given. What a pod asks for it gets when it is taken, and keeps until it
//! has ended: the kubelet's rules for devices, as its device manager has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::machine::devices::{DeviceResource, Devices};
use crate::pod::admission::Rejection;
use crate::pod::{PodExt, is_sidecar, qos};
use crate::runtime::DeviceGrant;

/// Units by container and resource.
pub type Given = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// What there is, and what pods (by uid) have of it; cheap to clone.
#[derive(Debug, Clone)]
pub struct DevicePool {
    devices: Arc<Devices>,
    held: Arc<Mutex<BTreeMap<String, Given>>>,
}

/// Takes `count` units: those of `pool` first, then of `free`. What is missing: how many there were.
fn take(pool: &mut Vec<String>, free: &mut BTreeSet<String>, count: usize) -> Result<Vec<String>, usize> {
    if pool.len() + free.len() < count {
        return Err(pool.len() + free.len());
    }
    let own = count.min(pool.len());
    let mut taken: Vec<String> = pool.drain(..own).collect();
    taken.extend(std::iter::from_fn(|| free.pop_first()).take(count - own));
    Ok(taken)
}

impl DevicePool {
    /// Nothing given yet.
    pub fn new(devices: Arc<Devices>) -> Self {
        Self { devices, held: Arc::default() }
    }

    /// Gives the pod what its containers ask for; init containers that end leave theirs to those after them.
    pub fn allocate(&self, pod: &Pod) -> Result<(), Rejection> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.contains_key(pod.uid()) {
            return Ok(());
        }
        let mut given = Given::new();
        for name in self.devices.names() {
            let asks = |container: &Container| {
                qos::request(container, name).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0)
            };
            if !crate::pod::containers(pod).any(|c| asks(c).is_some()) {
                continue;
            }
            let mut free = self.devices.get(name).map(DeviceResource::units).unwrap_or_default();
            for unit in held.values().flat_map(BTreeMap::values).filter_map(|c| c.get(name)).flatten() {
                free.remove(unit);
            }
            let mut pool = Vec::new();
            for container in crate::pod::containers(pod) {
                let Some(count) = asks(container) else { continue };
                let units = take(&mut pool, &mut free, count).map_err(|available| {
                    let message = format!(
                        "Allocate failed due to requested number of devices unavailable for {name}. Requested: {count}, \
                         Available: {available}, which is unexpected"
                    );
                    ("UnexpectedAdmissionError", message)
                })?;
                let ends = pod.init_containers().iter().any(|c| c.name == container.name) && !is_sidecar(container);
                if ends {
                    pool.extend(units.iter().cloned());
                }
                given.entry(container.name.clone()).or_default().insert(name.to_owned(), units);
            }
        }
        if !given.is_empty() {
            held.insert(pod.uid().to_owned(), given);
        }
        Ok(())
    }

    /// What an agent before this one gave to a pod.
    pub fn keep(&self, uid: &str, given: &Given) {
        if !given.is_empty() {
            self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), given.clone());
        }
    }

    /// What the pod has.
    pub fn of(&self, uid: &str) -> Given {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned().unwrap_or_default()
    }

    /// The pod needs nothing any more.
    pub fn release(&self, uid: &str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// The devices a container may use. Error: one it was given is gone.
    pub fn grants(&self, uid: &str, container: &str) -> Result<Vec<DeviceGrant>, String> {
        let given = self.of(uid);
        let mut grants = BTreeMap::new();
        for (name, units) in given.get(container).into_iter().flatten() {
            let gone = || format!("{name} was given to this container, and the settings have no such devices any more");
            let resource = self.devices.get(name).ok_or_else(gone)?;
            for unit in units {
                for path in resource.devices(unit)? {
                    grants.insert(path.clone(), DeviceGrant { path, permissions: resource.permissions.clone() });
                }
            }
        }
        Ok(grants.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(count: u32) -> DevicePool {
        let text = format!("[{{name: a/b, paths: [/dev/null, /dev/full], count: {count}, permissions: r}}]");
        DevicePool::new(Arc::new(Devices::new(&serde_saphyr::from_str::<Vec<_>>(&text).unwrap())))
    }

    fn pod(uid: &str, init: &[(&str, u32, bool)], app: &[(&str, u32)]) -> Pod {
        let container = |name: &str, count: u32, sidecar: bool| {
            serde_json::json!({"name": name, "restartPolicy": sidecar.then_some("Always"),
                "resources": {"limits": {"a/b": count.to_string(), "other/thing": "7"}}})
        };
        serde_json::from_value(serde_json::json!({"metadata": {"uid": uid}, "spec": {
            "initContainers": init.iter().map(|(n, c, s)| container(n, *c, *s)).collect::<Vec<_>>(),
            "containers": app.iter().map(|(n, c)| container(n, *c, false)).collect::<Vec<_>>()}}))
        .unwrap()
    }

    #[test]
    fn units_are_given_once_and_given_back() {
        let pool = pool(2);
        pool.allocate(&pod("one", &[], &[("c", 1)])).unwrap();
        pool.allocate(&pod("one", &[], &[("c", 1)])).unwrap();
        pool.allocate(&pod("none", &[], &[("c", 0)])).unwrap();
        pool.allocate(&pod("two", &[], &[("c", 1)])).unwrap();
        assert_ne!(pool.of("one"), pool.of("two"));
        let (reason, message) = pool.allocate(&pod("three", &[], &[("c", 1)])).unwrap_err();
        assert_eq!(reason, "UnexpectedAdmissionError");
        assert!(message.contains("unavailable for a/b. Requested: 1, Available: 0"), "{message}");
        pool.release("one");
        pool.allocate(&pod("three", &[], &[("c", 1)])).unwrap();
        let grants = pool.grants("three", "c").unwrap();
        let paths: Vec<_> = grants.iter().map(|g| (g.path.to_str().unwrap(), g.permissions.as_str())).collect();
        assert_eq!(paths, [("/dev/full", "r"), ("/dev/null", "r")]);
        assert!(pool.grants("three", "other").unwrap().is_empty());
    }

    #[test]
    fn init_containers_leave_theirs_but_sidecars_do_not() {
        let of = |count, init: &[(&str, u32, bool)]| pool(count).allocate(&pod("u", init, &[("a", 1), ("b", 1)]));
        assert!(of(2, &[("i", 2, false)]).is_ok());
        assert!(of(2, &[("i", 3, false)]).is_err());
        assert!(of(2, &[("s", 1, true)]).is_err());
        assert!(of(3, &[("i", 3, false), ("s", 1, true)]).is_ok());
        assert!(of(1, &[]).is_err());
    }

    #[test]
    fn what_was_given_before_is_counted() {
        let first = pool(1);
        first.allocate(&pod("one", &[], &[("c", 1)])).unwrap();
        let next = pool(1);
        next.keep("one", &first.of("one"));
        assert!(next.allocate(&pod("two", &[], &[("c", 1)])).is_err());
        let other = DevicePool::new(Arc::new(Devices::default()));
        other.keep("one", &first.of("one"));
        assert!(other.grants("one", "c").unwrap_err().contains("settings"));
    }
}
