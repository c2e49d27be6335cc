//! Pulls side by side, over bad lines, and by the ways of `registries.yaml`.

use std::fs;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine;
use pikelet::image::{Credential, ImageStore, Registries, StoreConfig};
use serde_json::json;

use crate::forward::{Fault, line};
use crate::scene::*;

fn private(yaml: serde_json::Value) -> Registries {
    serde_json::from_value(yaml).unwrap()
}

async fn open(scene: &Scene, name: &str, private: Registries) -> ImageStore {
    ImageStore::open(StoreConfig { dir: scene.dir.join(name), private, ..StoreConfig::default() }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_pulls_need_is_downloaded_once() {
    let Some(mut scene) = scene("once") else { return };
    let registry = scene.registry(false);
    let (shared, own) = (noise(1, 20, 200_000), noise(2, 20, 20_000));
    push_image(&scene, &registry, "test/a:1", std::slice::from_ref(&shared));
    push_image(&scene, &registry, "test/b:1", &[shared.clone(), own]);
    let line = line(&registry, Fault::None);
    let store = scene.store("store", &line.address, insecure()).await;
    let names = [format!("{}/test/a:1", line.address), format!("{}/test/b:1", line.address)];
    // each by several at once
    let pulls = (0..6).map(|i| store.pull(&names[i % 2], &[]));
    for image in futures::future::join_all(pulls).await {
        image.unwrap();
    }
    let (size, carried) = (shared.1.len() as u64, line.bytes.load(Ordering::SeqCst));
    assert!(carried > size && carried < size * 3 / 2, "{carried} bytes for {size}");
    assert_eq!(store.list().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pull_does_not_wait_for_another() {
    let Some(mut scene) = scene("beside") else { return };
    let registry = scene.registry(false);
    push_image(&scene, &registry, "test/it:1", &[noise(1, 2, 1000)]);
    let silent = line(&registry, Fault::Silent);
    let registries = [(registry.clone(), insecure()), (silent.address.clone(), insecure())].into();
    let config = StoreConfig { dir: scene.dir.join("store"), registries, ..StoreConfig::default() };
    let store = ImageStore::open(config.clone()).await.unwrap();
    let (first, other) = (store.clone(), format!("{}/test/it:1", silent.address));
    let waiting = tokio::spawn(async move { first.pull(&other, &[]).await });
    while silent.faults.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let name = format!("{registry}/test/it:1");
    tokio::time::timeout(Duration::from_secs(10), store.pull(&name, &[])).await.expect("waits for another").unwrap();
    // with one at a time it does wait
    let config = StoreConfig { dir: scene.dir.join("serial"), max_parallel_pulls: Some(1), ..config };
    let serial = ImageStore::open(config).await.unwrap();
    let (first, other) = (serial.clone(), format!("{}/test/it:1", silent.address));
    let before = silent.faults.load(Ordering::SeqCst);
    let blocking = tokio::spawn(async move { first.pull(&other, &[]).await });
    while silent.faults.load(Ordering::SeqCst) == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(tokio::time::timeout(Duration::from_secs(1), serial.pull(&name, &[])).await.is_err());
    blocking.abort();
    // and the registry that never answers is given up on
    let error = waiting.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("timed out"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_was() {
    let Some(mut scene) = scene("resume") else { return };
    let registry = scene.registry(false);
    let layer = noise(3, 10, 1 << 20);
    push_image(&scene, &registry, "test/it:1", std::slice::from_ref(&layer));
    let line = line(&registry, Fault::Cut { bytes: 3 << 20, times: 3 });
    let store = scene.store("store", &line.address, insecure()).await;
    let image = store.pull(&format!("{}/test/it:1", line.address), &[]).await.unwrap();
    assert_eq!((image.size, line.faults.load(Ordering::SeqCst)), (10 << 20, 3));
    let (size, carried) = (layer.1.len() as u64, line.bytes.load(Ordering::SeqCst));
    assert!(carried < size * 5 / 4, "resumed, not begun again: {carried} bytes for {size}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_waited_for() {
    let Some(mut scene) = scene("busy") else { return };
    let registry = scene.registry(false);
    push_image(&scene, &registry, "test/it:1", &[noise(4, 1, 1000)]);
    for status in [429, 503] {
        let line = line(&registry, Fault::Busy { status, times: 2 });
        let store = scene.store(&format!("store-{status}"), &line.address, insecure()).await;
        let start = Instant::now();
        store.pull(&format!("{}/test/it:1", line.address), &[]).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(2), "Retry-After is kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_in_order_and_then_the_registry_itself() {
    let Some(mut scene) = scene("mirrors") else { return };
    let registry = scene.registry(false);
    push_image(&scene, &registry, "mine/it:1", &[noise(5, 1, 1000)]);
    // a port nobody listens on
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = json!([format!("http://{dead}"), format!("http://{registry}")]);
    let rewrite = json!({"^library/(.*)$": "mine/$1"});
    let exact = json!({"mirrors": {"r.invalid": {"endpoint": endpoint, "rewrite": rewrite}}});
    let store = open(&scene, "exact", private(exact)).await;
    let image = store.pull("r.invalid/library/it:1", &[]).await.unwrap();
    assert_eq!(image.repo_tags, ["r.invalid/library/it:1"], "its name is the one it was asked by");
    let error = store.pull("other.invalid/mine/it:1", &[]).await.unwrap_err().to_string();
    assert!(error.contains("other.invalid"), "{error}");

    let store = open(&scene, "wildcard", private(json!({"mirrors": {"*": {"endpoint": endpoint}}}))).await;
    store.pull("other.invalid/mine/it:1", &[]).await.unwrap();
    let error = store.pull("other.invalid/not/there:1", &[]).await.unwrap_err().to_string();
    assert!(error.contains("manifest unknown") && error.contains("other.invalid"), "each place is named: {error}");
    let store = scene.store("own", &registry, insecure()).await;
    store.pull(&format!("{registry}/mine/it:1"), &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_come_from_pods_the_node_and_the_registries_file() {
    let Some(mut scene) = scene("logins") else { return };
    let open_registry = scene.registry(false);
    push_image(&scene, &open_registry, "test/it:1", &[noise(6, 1, 1000)]);
    let registry = scene.registry_with_login("pi", "raspberry");
    let name = format!("{registry}/test/it:1");
    let access = |auth: serde_json::Value| {
        let tls = json!({"ca_file": scene.dir.join("ca.crt")});
        private(json!({"configs": {registry.clone(): {"auth": auth, "tls": tls}}}))
    };
    let store = open(&scene, "none", access(json!(null))).await;
    let error = store.pull(&name, &[]).await.unwrap_err().to_string();
    assert!(error.contains("authentication required"), "{error}");
    let login = |password: &str| Credential {
        registry: registry.clone(),
        username: "pi".into(),
        password: password.into(),
        ..Credential::default()
    };
    let error = store.pull(&name, &[login("wrong")]).await.unwrap_err().to_string();
    assert!(error.contains("login was refused"), "{error}");
    store.pull(&name, &[login("wrong"), login("raspberry")]).await.expect("every login is tried");

    let store = open(&scene, "file", access(json!({"username": "pi", "password": "raspberry"}))).await;
    store.pull(&name, &[]).await.unwrap();
    let auth = base64::engine::general_purpose::STANDARD.encode("pi:raspberry");
    let store = open(&scene, "auth", access(json!({"auth": auth}))).await;
    store.pull(&name, &[]).await.unwrap();

    let config = scene.dir.join("config.json");
    fs::write(&config, json!({"auths": {registry.clone(): {"auth": auth}}}).to_string()).unwrap();
    let store = ImageStore::open(StoreConfig {
        dir: scene.dir.join("node"),
        private: access(json!(null)),
        node_logins: vec![scene.dir.join("missing"), config],
        ..StoreConfig::default()
    });
    store.await.unwrap().pull(&name, &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_client_certificate_gets_it() {
    let Some(mut scene) = scene("mtls") else { return };
    let open_registry = scene.registry(false);
    push_image(&scene, &open_registry, "test/it:1", &[noise(7, 1, 1000)]);
    let registry = scene.registry_with_client_ca();
    let name = format!("{registry}/test/it:1");
    let file = |name: &str| scene.dir.join(name);
    let of = |tls: serde_json::Value| private(json!({"configs": {"*": {"tls": tls}}}));
    let store = open(&scene, "without", of(json!({"ca_file": file("ca.crt")}))).await;
    assert!(store.pull(&name, &[]).await.is_err());
    let tls = json!({"ca_file": file("ca.crt"), "cert_file": file("client.crt"), "key_file": file("client.key")});
    open(&scene, "with", of(tls)).await.pull(&name, &[]).await.unwrap();
    let tls = json!({"insecure_skip_verify": true, "cert_file": file("client.crt"), "key_file": file("client.key")});
    open(&scene, "unverified", of(tls)).await.pull(&name, &[]).await.unwrap();
}

#[test]
fn the_proxy_of_the_environment_is_used() {
    let Some(mut scene) = scene("proxy") else { return };
    let registry = scene.registry(false);
    push_image(&scene, &registry, "test/it:1", &[noise(8, 1, 1000)]);
    // the registry itself takes requests as a proxy gets them, for any host
    let mut puller = crate::cuts::puller(&scene.dir.join("store"), "r.invalid/test/it:1", "r.invalid");
    let ended = puller.env("HTTP_PROXY", format!("http://{registry}")).env("NO_PROXY", "").output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    let mut puller: Command = crate::cuts::puller(&scene.dir.join("direct"), "r.invalid/test/it:1", "r.invalid");
    let ended = puller.env("HTTP_PROXY", format!("http://{registry}")).env("NO_PROXY", "r.invalid").output().unwrap();
    assert!(!ended.status.success());
}
