//! What is said to registries, and what they say.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use pikelet::image::Credential;
use serde_json::json;

use crate::scene::*;

/// The heads of all requests that came.
type Heads = Arc<Mutex<Vec<String>>>;

/// Reads a request's head.
fn head(client: &mut TcpStream) -> Option<String> {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.extend(byte);
    }
    Some(String::from_utf8(text).unwrap())
}

/// A server of what `answer` says to each request, which it is given in small letters and as it came; one request for a
/// connection.
fn serve(answer: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static) -> (String, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heads = Heads::default();
    let kept = heads.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let Some(head) = head(&mut client) else { continue };
            let small = head.to_lowercase();
            kept.lock().unwrap().push(small.clone());
            // who asked may have gone
            let _ = client.write_all(&answer(&small, &head));
        }
    });
    (address, heads)
}

/// A server that asks a real registry; the registry hears who asks by no more than was said here.
fn listening(registry: &str) -> (String, Heads) {
    let registry = registry.to_owned();
    serve(move |_, head| through(&registry, head))
}

fn through(registry: &str, head: &str) -> Vec<u8> {
    let mut server = TcpStream::connect(registry).unwrap();
    server.write_all(head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).unwrap();
    answer
}

fn answer(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\n{lines}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn login(registry: &str) -> Credential {
    Credential {
        registry: registry.to_owned(),
        username: "u".into(),
        password: "geheim".into(),
        ..Credential::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_shown_to_who_asks_for_it_only() {
    let Some(mut scene) = scene("unasked") else { return };
    let registry = scene.registry(false);
    push_image(&scene, &registry, "test/it:1", &[noise(1, 1, 1000)]);
    let (address, heads) = listening(&registry);
    let store = scene.store("store", &address, insecure()).await;
    let (name, login) = (format!("{address}/test/it:1"), login(&address));
    let image = store.pull(&name, &[login]).await.unwrap();
    let heads = heads.lock().unwrap();
    assert!(!heads.is_empty() && heads.iter().all(|head| !head.contains("authorization")), "{heads:?}");
    assert!(heads.iter().all(|head| head.contains("user-agent: pikelet/")), "{heads:?}");
    let blobs: Vec<_> = heads.iter().filter(|head| head.contains("/blobs/")).collect();
    assert!(blobs.len() == 2 && blobs.iter().all(|head| head.contains("accept: */*\r\n")), "{blobs:?}");
    // it could be had without
    assert_eq!(store.needs(&image, &name), pikelet::image::Needs::Nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_form_of_a_challenge_is_taken_and_a_token_goes_before_a_password() {
    let Some(scene) = scene("challenge") else { return };
    let (tokens, asked) = serve(|head, _| {
        let token = if head.contains("scope=repository%3atest%2fit%3apull&scope=other&service=reg") { "T" } else { "" };
        answer("200 OK", &[], json!({"token": "", "access_token": token}).to_string().as_bytes())
    });
    let realm = format!(
        "wWw-aUtHenticate: bEARER Realm=\"http://{tokens}/t\", scope=\"repository:test/it:pull other\",service=reg"
    );
    let (address, heads) = serve(move |head, _| match head.contains("authorization: bearer t\r\n") {
        true => {
            answer("404 Not Found", &[], br#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such tag"}]}"#)
        }
        false => answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"a, b\"", &realm], b""),
    });
    let store = scene.store("store", &address, insecure()).await;
    let error = store.pull(&format!("{address}/test/it:1"), &[login(&address)]).await.unwrap_err().to_string();
    assert!(error.contains("manifest unknown") && error.ends_with("manifest_unknown: no such tag"), "{error}");
    let (heads, asked) = (heads.lock().unwrap(), asked.lock().unwrap());
    assert!(heads.iter().all(|head| !head.contains("authorization: basic")), "{heads:?}");
    assert!(asked.len() == 1 && asked[0].contains("authorization: basic"), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_says_of_an_error_is_told_and_no_secret_with_it() {
    let Some(scene) = scene("says") else { return };
    let limit = json!({"errors": [{"code": "DENIED", "message":
        "limit\u{1b}[0m reached by geheim: see https://x.example/a?token=geheim"}]})
    .to_string();
    let old = json!({"schemaVersion": 1, "name": "test/it", "fsLayers": [{"blobSum": "sha256:0"}]}).to_string();
    let basic = ["WWW-Authenticate: Basic realm=x"];
    let cases = [
        (answer("403 Forbidden", &[], limit.as_bytes()), "denied: limit [0m reached by ***: see https://x.example/a"),
        (answer("401 Unauthorized", &basic, b"{\"message\": \"expired\"}"), "the login was refused"),
        (answer("451 Unavailable For Legal Reasons", &[], b"not in\r\nyour country"), "not in your country"),
        (answer("200 OK", &[], old.as_bytes()), "schema 1"),
        (answer("200 OK", &[], br#"{"manifests": [], "layers": [{"digest": "sha256:0"}]}"#), "index and a manifest"),
        (answer("200 OK", &[], br#"{"artifactType": "application/x-chart"}"#), "artifact of type application/x-chart"),
    ];
    for (number, (answer, why)) in cases.into_iter().enumerate() {
        let (address, _) = serve(move |_, _| answer.clone());
        let store = scene.store(&format!("store-{number}"), &address, insecure()).await;
        let error = store.pull(&format!("{address}/test/it:1"), &[login(&address)]).await.unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains("geheim"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_may_lead_to_another_that_wants_a_token_of_its_own() {
    let Some(mut scene) = scene("elsewhere") else { return };
    let registry = scene.registry(false);
    push_image(&scene, &registry, "test/it:1", &[noise(1, 1, 1000)]);
    let (other, asked) = serve(move |small, head| {
        let own = small.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        if small.starts_with("get /token?") {
            return answer("200 OK", &[], br#"{"token": "Theirs"}"#);
        }
        if head.contains("Bearer Theirs\r\n") {
            return through(&registry, head);
        }
        let wants = format!("WWW-Authenticate: Bearer realm=\"http://{own}/token\",scope=\"repository:test/it:pull\"");
        answer("401 Unauthorized", &[&wants], b"")
    });
    let (address, heads) = serve(move |_, head| {
        let place = format!("Location: http://{other}{}", head.split(' ').nth(1).unwrap());
        answer("307 Temporary Redirect", &[&place], b"")
    });
    let store = scene.store("store", &address, insecure()).await;
    store.pull(&format!("{address}/test/it:1"), &[login(&address)]).await.unwrap();
    let (heads, asked) = (heads.lock().unwrap(), asked.lock().unwrap());
    assert!(heads.iter().all(|head| !head.contains("authorization")), "{heads:?}");
    assert!(asked.iter().all(|head| !head.contains("authorization: basic")), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_behind_the_last_byte_is_done() {
    let Some(scene) = scene("last-byte") else { return };
    let layout = scene.layout("layout");
    let layer = noise(5, 1, 100_000);
    let blob = layer.1.clone();
    let entry = layout.manifest(go_arch(), "", &[layer]);
    let blobs = layout.dir.join("blobs/sha256");
    let manifest = entry["digest"].as_str().unwrap()[7..].to_owned();
    let (address, heads) = serve(move |head, _| {
        let path = head.split(' ').nth(1).unwrap();
        let digest = if path.contains("/manifests/") { &manifest } else { path.rsplit(':').next().unwrap() };
        let body = fs::read(blobs.join(digest)).unwrap();
        match (body == blob, head.contains("range: ")) {
            (true, true) => answer("416 Range Not Satisfiable", &[], b""),
            // one byte more is promised than there is
            (true, false) => {
                [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len() + 1).into(), body].concat()
            }
            _ => answer("200 OK", &[], &body),
        }
    });
    let store = scene.store("store", &address, insecure()).await;
    store.pull(&format!("{address}/test/it:1"), &[]).await.unwrap();
    assert_eq!(heads.lock().unwrap().len(), 3, "nothing is asked for again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_asked_for_by_its_digest_alone() {
    let Some(mut scene) = scene("head") else { return };
    let registry = scene.registry(false);
    push_image(&scene, &registry, "test/it:1", &[noise(1, 1, 1000)]);
    let (address, heads) = listening(&registry);
    let store = scene.store("store", &address, insecure()).await;
    let name = format!("{address}/test/it:1");
    let asked = async |name: &str| {
        let image = store.pull(name, &[]).await.unwrap();
        let heads = std::mem::take(&mut *heads.lock().unwrap());
        let first = |head: String| head.lines().next().unwrap().replace(" http/1.1", "");
        (image, heads.into_iter().map(first).collect::<Vec<_>>())
    };
    let (first, all) = asked(&name).await;
    assert_eq!(all.iter().filter(|line| line.starts_with("get /v2/test/it/manifests/")).count(), 2, "{all:?}");
    let (again, all) = asked(&name).await;
    assert_eq!(
        (again.id.as_str(), all.as_slice()),
        (first.id.as_str(), ["head /v2/test/it/manifests/1".to_owned()].as_slice())
    );
    let by_digest = first.repo_digests[0].clone();
    let (_, all) = asked(&by_digest).await;
    assert!(all.len() == 1 && all[0].starts_with("head "), "{all:?}");
    // another image by the same tag: a container stands on the first one, and can start again without the registry
    let container = scene.dir.join("container");
    store.mount(&first, &container).await.unwrap();
    push_image(&scene, &registry, "test/it:1", &[noise(2, 1, 1000)]);
    let (moved, all) = asked(&name).await;
    assert!(moved.id != first.id && all.len() == 5, "{all:?}");
    assert_eq!(store.get(&by_digest).await.unwrap().map(|image| image.id), Some(first.id.clone()));
    store.unmount(&container).await.unwrap();
    // a layer is missing
    fs::remove_dir_all(store.dir().join("layers").join(&moved.layers[0][7..])).unwrap();
    let (healed, all) = asked(&name).await;
    assert!(healed.id == moved.id && all.iter().any(|line| line.contains("/blobs/")), "{all:?}");

    let (deaf, heads) = {
        let registry = registry.clone();
        serve(move |head, raw| match head.starts_with("head ") {
            true => answer("405 Method Not Allowed", &[], b""),
            false => through(&registry, raw),
        })
    };
    let store = scene.store("deaf", &deaf, insecure()).await;
    let name = format!("{deaf}/test/it:1");
    store.pull(&name, &[]).await.unwrap();
    heads.lock().unwrap().clear();
    store.pull(&name, &[]).await.expect("one that knows no HEAD is asked by GET");
    let heads = heads.lock().unwrap();
    assert!(
        heads.len() == 2 && heads[1].starts_with("get /v2/test/it/manifests/1 "),
        "what is here is not fetched: {heads:?}"
    );
}
