//! The cluster's Services, as environment variables of pods (Kubernetes "Service", discovering services).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use super::answer::{Api, Reader};
use super::kept::{Kept, Slot};
use super::retry::patient;

/// How long the first container waits for the first list.
const FIRST_LIST: Duration = Duration::from_secs(5);

/// The same when what was kept of an earlier list can be used.
const FIRST_LIST_KEPT: Duration = Duration::from_secs(1);
/// Where the table is kept.
const SLOT: Slot = Slot("services", "", "");

/// What of a service its variables are made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    ip: String,
    /// Name, protocol, port.
    ports: Vec<(String, String, i32)>,
}

type Table = BTreeMap<(String, String), Known>;

/// The services of a cluster; cheap to clone.
#[derive(Clone)]
pub struct Services {
    table: Arc<Mutex<Table>>,
    listed: watch::Receiver<bool>,
    kept: Kept,
    /// What was last kept.
    filed: Arc<Mutex<Option<Table>>>,
}

impl Services {
    /// No services at all, for an agent without a control plane.
    pub fn none() -> Self {
        Self { table: Arc::default(), listed: watch::channel(true).1, kept: Kept::default(), filed: Arc::default() }
    }

    /// Watches every service; until they are listed, those that were `kept` count.
    pub fn watch(client: Client, kept: Kept) -> Self {
        let (tx, listed) = watch::channel(false);
        let filed = kept.get::<Vec<_>>(SLOT).map(Table::from_iter);
        let table = Arc::new(Mutex::new(filed.clone().unwrap_or_default()));
        let services = Self { table, listed, kept, filed: Arc::new(Mutex::new(filed)) };
        let table = services.table.clone();
        tokio::spawn(async move {
            let api: Api<Service> = Api::all(client);
            let mut events = patient(Some("services"), watcher(api, watcher::Config::default())).boxed();
            let (mut fresh, mut reader) = (Table::new(), Reader::default());
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Init) => fresh.clear(),
                    Ok(watcher::Event::InitApply(service)) => {
                        let key = key(service.meta());
                        match reader.read(service) {
                            Ok(service) => put(&mut fresh, &service),
                            Err(_) => {
                                fresh.extend(locked(&table).get_key_value(&key).map(|(k, v)| (k.clone(), v.clone())));
                            }
                        }
                    }
                    Ok(watcher::Event::InitDone) => {
                        *locked(&table) = std::mem::take(&mut fresh);
                        tx.send_replace(true);
                    }
                    Ok(watcher::Event::Apply(service)) => {
                        if let Ok(service) = reader.read(service) {
                            put(&mut locked(&table), &service);
                        }
                    }
                    Ok(watcher::Event::Delete(service)) => drop(locked(&table).remove(&key(service.meta()))),
                    Err(_) => {}
                }
            }
        });
        services
    }

    /// The variables of a pod of `namespace`: the API server's always, the namespace's own with `links`. Waits a
    /// while for the first list; a board that starts with no API server goes on without.
    pub async fn variables(&self, namespace: &str, links: bool) -> Vec<(String, String)> {
        let mut listed = self.listed.clone();
        let filed = self.filed.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let limit = if filed { FIRST_LIST_KEPT } else { FIRST_LIST };
        let waited = tokio::time::timeout(limit, listed.wait_for(|l| *l)).await.is_ok();
        match (waited, filed) {
            (true, _) => self.keep().await,
            (false, true) => warn!(namespace, "services are not known yet: containers start with what was kept"),
            (false, false) => warn!(namespace, "services are not known yet: containers start without their variables"),
        }
        let table = locked(&self.table);
        let master = ("default".to_owned(), "kubernetes".to_owned());
        let own = table.range((namespace.to_owned(), String::new())..).take_while(|((n, _), _)| n == namespace);
        let own = own.filter(|(k, _)| links && **k != master);
        let all = table.get_key_value(&master).into_iter().chain(own);
        all.flat_map(|((_, name), known)| variables(name, known)).collect()
    }

    /// Keeps what a container that starts now would see again after a reboot.
    async fn keep(&self) {
        let changed = {
            let (table, mut filed) = (locked(&self.table), self.filed.lock().unwrap_or_else(PoisonError::into_inner));
            (filed.as_ref() != Some(&*table)).then(|| filed.insert(table.clone()).clone())
        };
        if let Some(table) = changed {
            self.kept.put(SLOT, &table.into_iter().collect::<Vec<_>>()).await;
        }
    }
}

fn locked(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(metadata: &ObjectMeta) -> (String, String) {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn put(table: &mut Table, service: &Service) {
    let spec = service.spec.clone().unwrap_or_default();
    match spec.cluster_ip.filter(|ip| !ip.is_empty() && ip != "None") {
        Some(ip) => {
            let ports = spec.ports.into_iter().flatten();
            let ports =
                ports.map(|p| (p.name.unwrap_or_default(), p.protocol.unwrap_or_else(|| "TCP".to_owned()), p.port));
            table.insert(key(&service.metadata), Known { ip, ports: ports.collect() });
        }
        None => drop(table.remove(&key(&service.metadata))),
    }
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

fn variables(name: &str, known: &Known) -> Vec<(String, String)> {
    let prefix = upper(name);
    let Some((_, _, first)) = known.ports.first() else { return Vec::new() };
    let mut out = vec![
        (format!("{prefix}_SERVICE_HOST"), known.ip.clone()),
        (format!("{prefix}_SERVICE_PORT"), first.to_string()),
    ];
    for (port_name, _, port) in known.ports.iter().filter(|p| !p.0.is_empty()) {
        out.push((format!("{prefix}_SERVICE_PORT_{}", upper(port_name)), port.to_string()));
    }
    let host = if known.ip.contains(':') { format!("[{}]", known.ip) } else { known.ip.clone() };
    for (i, (_, protocol, port)) in known.ports.iter().enumerate() {
        let scheme = protocol.to_lowercase();
        let url = format!("{scheme}://{host}:{port}");
        if i == 0 {
            out.push((format!("{prefix}_PORT"), url.clone()));
        }
        let stem = format!("{prefix}_PORT_{port}_{}", protocol.to_uppercase());
        out.push((stem.clone(), url));
        out.push((format!("{stem}_PROTO"), scheme));
        out.push((format!("{stem}_PORT"), port.to_string()));
        out.push((format!("{stem}_ADDR"), known.ip.clone()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        serde_json::from_value(serde_json::json!({"metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": ip, "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}))
        .unwrap()
    }

    #[tokio::test]
    async fn variables_of_links_and_of_the_api_server() {
        let services = Services::none();
        for s in [service("default", "kubernetes", "10.0.0.1"), service("a", "my-db", "10.0.0.2")] {
            put(&mut locked(&services.table), &s);
        }
        put(&mut locked(&services.table), &service("a", "headless", "None"));
        let of = |variables: &[(String, String)], key: &str| variables.iter().find(|v| v.0 == key).map(|v| v.1.clone());
        let all = services.variables("a", true).await;
        assert_eq!(of(&all, "KUBERNETES_SERVICE_HOST").as_deref(), Some("10.0.0.1"));
        assert_eq!(of(&all, "MY_DB_PORT").as_deref(), Some("tcp://10.0.0.2:443"));
        assert_eq!(of(&all, "MY_DB_SERVICE_PORT_HTTPS").as_deref(), Some("443"));
        assert_eq!(of(&all, "MY_DB_PORT_443_TCP_ADDR").as_deref(), Some("10.0.0.2"));
        assert!(!all.iter().any(|v| v.0.starts_with("HEADLESS")));
        let few = services.variables("a", false).await;
        assert!(of(&few, "MY_DB_PORT").is_none() && of(&few, "KUBERNETES_SERVICE_PORT").is_some());
        assert!(of(&services.variables("b", true).await, "MY_DB_PORT").is_none());
    }
}
