//! Logins that something else knows: token services (`docker-registry` with token authentication, the service here) and the
//! kubelet's credential provider programs.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use pikelet::image::{Credential, ImageStore, Needs, Origin, Provider, Registries, RegistryConfig, StoreConfig};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use crate::scene::*;

const USER: (&str, &str) = ("pi", "raspberry");
const REFRESH: &str = "renew-me";
const ISSUER: &str = "pikelet-test";

/// A token service with one account, one refresh token and a key of its own.
struct Service {
    key: EcdsaKeyPair,
    certificate: Vec<u8>,
    /// What was asked: method and who.
    asked: Mutex<Vec<String>>,
}

impl Service {
    fn start(scene: &Scene) -> (Arc<Self>, String) {
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![ISSUER.to_owned()]).unwrap().self_signed(&pair).unwrap();
        fs::write(scene.dir.join("token.crt"), certificate.pem()).unwrap();
        let random = ring::rand::SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der(), &random).unwrap();
        let service = Arc::new(Self { key, certificate: certificate.der().to_vec(), asked: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let own = service.clone();
        // ends with the test's process
        std::thread::spawn(move || {
            for client in listener.incoming() {
                own.answer(client.unwrap());
            }
        });
        (service, address)
    }

    /// A token to pull `test/it`.
    fn token(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let head = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate)]});
        let claims = json!({"iss": ISSUER, "sub": "pi", "aud": "registry", "exp": now + 60, "nbf": now - 10,
            "iat": now, "jti": "1", "access": [{"type": "repository", "name": "test/it", "actions": ["pull"]}]});
        let text = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = self.key.sign(&ring::rand::SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn answer(&self, mut client: TcpStream) {
        let mut reader = BufReader::new(client.try_clone().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let (mut length, mut login) = (0, String::new());
        let question = line.clone();
        while line.trim() != "" {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let (name, value) = line.split_once(':').unwrap_or_default();
            match name.to_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap(),
                "authorization" => value.trim().clone_into(&mut login),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let form = format!("{}&{}", question.split(' ').nth(1).unwrap(), String::from_utf8(body).unwrap());
        let scope = form.contains("scope=repository%3Atest%2Fit%3Apull") && form.contains("service=registry");
        let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", USER.0, USER.1)));
        let post = question.starts_with("POST");
        let known = if post {
            form.contains("grant_type=refresh_token") && form.contains(&format!("refresh_token={REFRESH}"))
        } else {
            login == basic
        };
        self.asked.lock().unwrap().push(question.split(' ').next().unwrap().to_owned());
        let (status, body) = if known && scope {
            let token = self.token();
            // both names, as large registries send it
            ("200 OK", json!({"token": token, "access_token": token, "expires_in": 60}))
        } else {
            ("401 Unauthorized", json!({}))
        };
        let body = body.to_string();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        client.write_all(format!("{head}{body}").as_bytes()).unwrap();
    }
}

async fn open(scene: &Scene, name: &str, registry: &str, docker: Option<Value>) -> ImageStore {
    let file = scene.dir.join(format!("{name}.json"));
    if let Some(entry) = docker {
        fs::write(&file, json!({"auths": {registry: entry}}).to_string()).unwrap();
    }
    let config = StoreConfig {
        dir: scene.dir.join(name),
        registries: [(registry.to_owned(), insecure())].into(),
        node_logins: vec![file],
        ..StoreConfig::default()
    };
    ImageStore::open(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_service_is_asked_with_what_the_login_has() {
    let Some(mut scene) = scene("tokens") else { return };
    let plain = scene.registry(false);
    push_image(&scene, &plain, "test/it:1", &[noise(1, 2, 1000)]);
    let (service, address) = Service::start(&scene);
    let registry = scene.registry_with_tokens(&format!("http://{address}/token"), ISSUER);
    let name = format!("{registry}/test/it:1");
    let asked = || std::mem::take(&mut *service.asked.lock().unwrap());

    let store = open(&scene, "nobody", &registry, None).await;
    let error = store.pull(&name, &[]).await.unwrap_err().to_string();
    assert!(error.contains("unauthorized") && error.contains("401"), "{error}");
    asked();
    let password = json!({"auth": STANDARD.encode(format!("{}:{}", USER.0, USER.1))});
    open(&scene, "password", &registry, Some(password)).await.pull(&name, &[]).await.unwrap();
    assert_eq!(asked(), ["GET"], "once for all the parts of an image");
    let refresh = json!({"auth": STANDARD.encode("<token>:"), "identitytoken": REFRESH});
    open(&scene, "identity", &registry, Some(refresh)).await.pull(&name, &[]).await.unwrap();
    assert_eq!(asked(), ["POST"]);
    let other = json!({"identitytoken": "worn-out"});
    let error = open(&scene, "worn", &registry, Some(other)).await.pull(&name, &[]).await.unwrap_err().to_string();
    assert!(error.contains("token service") && error.contains("401"), "{error}");
    asked();
    // one that needs no service
    let bearer = json!({"registrytoken": service.token()});
    open(&scene, "bearer", &registry, Some(bearer)).await.pull(&name, &[]).await.unwrap();
    assert!(asked().is_empty());
    let error = open(&scene, "wrong", &registry, Some(json!({"registrytoken": "x"}))).await.pull(&name, &[]).await;
    assert!(error.unwrap_err().to_string().contains("login was refused"));
    // the same in registries.yaml
    let private = json!({"configs": {registry.clone(): {"auth": {"identity_token": REFRESH}}}});
    let private: Registries = serde_json::from_value(private).unwrap();
    let registries = [(registry.clone(), insecure())].into();
    let config = StoreConfig { dir: scene.dir.join("private"), registries, private, ..StoreConfig::default() };
    ImageStore::open(config).await.unwrap().pull(&name, &[]).await.unwrap();
    assert_eq!(asked(), ["POST"]);
}

/// Credential provider programs in a folder.
struct Programs {
    dir: PathBuf,
    registry: String,
}

impl Programs {
    fn add(&self, name: &str, script: &str) -> Provider {
        let program = self.dir.join(name);
        fs::write(&program, format!("#!/bin/sh\necho run >>{}.runs\n{script}\n", program.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Provider {
            name: name.to_owned(),
            program,
            args: vec!["an argument".to_owned()],
            env: vec![("TOKEN".to_owned(), USER.1.to_owned())],
            match_images: vec![self.registry.clone()],
            default_cache_duration: Duration::from_hours(1),
            api_version: "credentialprovider.kubelet.k8s.io/v1".to_owned(),
            timeout: Duration::from_secs(2),
        }
    }

    fn runs(&self, name: &str) -> usize {
        fs::read_to_string(self.dir.join(format!("{name}.runs"))).map_or(0, |t| t.lines().count())
    }

    /// Answers with the login, if it was asked as the kubelet asks.
    fn good(&self) -> String {
        let answer = json!({"kind": "CredentialProviderResponse",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Registry",
            "auth": {self.registry.clone(): {"username": "pi", "password": "TOKEN"}}});
        let answer = answer.to_string().replace("TOKEN", "'$TOKEN'");
        format!(
            r#"request=$(cat)
[ "$1" = "an argument" ] || {{ echo "no argument" >&2; exit 1; }}
case $request in
  *'"apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"{}/test/it","kind":"CredentialProviderRequest"'*) ;;
  *) echo "asked with $request" >&2; exit 1 ;;
esac
echo '{answer}'"#,
            self.registry
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_providers_are_run_and_their_answers_kept() {
    let Some(mut scene) = scene("providers") else { return };
    let plain = scene.registry(false);
    push_image(&scene, &plain, "test/it:1", &[noise(1, 2, 1000)]);
    let registry = scene.registry_with_login(USER.0, USER.1);
    let name = format!("{registry}/test/it:1");
    let programs = Programs { dir: scene.dir.clone(), registry: registry.clone() };
    let tls = json!({"configs": {registry.clone(): {"tls": {"ca_file": scene.dir.join("ca.crt")}}}});
    let open = async |providers: Vec<Provider>| {
        let private = serde_json::from_value(tls.clone()).unwrap();
        let dir = scene.dir.join(format!("store-{}", rand::random::<u32>()));
        ImageStore::open(StoreConfig { dir, private, providers, ..StoreConfig::default() }).await.unwrap()
    };
    let again = async |store: &ImageStore| {
        for _ in 0..2 {
            store.pull(&name, &[]).await.unwrap();
            store.remove(&name).await.unwrap();
        }
    };
    again(&open(vec![programs.add("good", &programs.good())]).await).await;
    assert_eq!(programs.runs("good"), 1, "the answer counts for the registry for an hour");
    let short = Provider { default_cache_duration: Duration::ZERO, ..programs.add("short", &programs.good()) };
    again(&open(vec![short]).await).await;
    assert_eq!(programs.runs("short"), 2, "0 is not kept");

    let other = Provider { match_images: vec!["*.example".to_owned()], ..programs.add("other", "exit 1") };
    let error = open(vec![other]).await.pull(&name, &[]).await.unwrap_err().to_string();
    assert!(error.contains("authentication required") && !error.contains("provider"), "{error}");
    assert_eq!(programs.runs("other"), 0, "only for images it is meant for");

    // what fails is named, and the others are asked
    let hang = programs.add("hang", "sleep 1000 & echo $! >$0.child; wait");
    let cases = [
        (programs.add("rubbish", "echo hello"), "its answer is not understood"),
        (programs.add("fails", "echo no permission >&2; exit 3"), "no permission"),
        (
            programs.add("version", "echo '{\"kind\":\"X\",\"apiVersion\":\"v9\",\"cacheKeyType\":\"Image\"}'"),
            "X of v9",
        ),
        (programs.add("endless", "yes"), "no answer within"),
        (Provider { program: scene.dir.join("missing"), ..hang.clone() }, "starting"),
        (hang, "no answer within 2 s"),
    ];
    for (provider, why) in cases {
        let start = Instant::now();
        let label = provider.name.clone();
        let error = open(vec![provider.clone()]).await.pull(&name, &[]).await.unwrap_err().to_string();
        assert!(error.contains(&format!("credential provider {label}: ")) && error.contains(why), "{error}");
        let good = programs.add(&format!("good-beside-{label}"), &programs.good());
        open(vec![provider.clone(), good]).await.pull(&name, &[]).await.unwrap();
        let login = Credential {
            registry: registry.clone(),
            username: USER.0.to_owned(),
            password: USER.1.to_owned(),
            ..Credential::default()
        };
        open(vec![provider]).await.pull(&name, &[login]).await.expect("with another login");
        assert!(start.elapsed() < Duration::from_secs(15), "{label}");
    }
    // with its children
    let child = fs::read_to_string(scene.dir.join("hang.child")).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while PathBuf::from(format!("/proc/{}/exe", child.trim())).exists() {
        assert!(Instant::now() < end, "the child of a program that hung still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_could_pull_an_image_may_use_it() {
    let Some(mut scene) = scene("access") else { return };
    let plain = scene.registry(false);
    push_image(&scene, &plain, "test/it:1", &[noise(1, 2, 1000)]);
    let registry = scene.registry_with_login(USER.0, USER.1);
    let tls = RegistryConfig { ca_file: Some(scene.dir.join("ca.crt")), ..RegistryConfig::default() };
    let open = || scene.store("store", &registry, tls.clone());
    let name = format!("{registry}/test/it:1");
    let login = |secret: &str, password: &str| Credential {
        registry: registry.clone(),
        username: USER.0.to_owned(),
        password: password.to_owned(),
        origin: Origin::Secret { uid: format!("uid-{secret}"), namespace: "a".to_owned(), name: secret.to_owned() },
        ..Credential::default()
    };
    let store = open().await;
    let image = store.pull(&name, &[login("mine", USER.1)]).await.unwrap();
    drop(store);
    // also after a restart
    let store = open().await;
    assert_eq!(store.needs(&image, &name), Needs::Login);
    assert!(store.granted(&image, &name, &[login("mine", USER.1)]));
    assert!(store.granted(&image, &name, &[login("another", USER.1)]), "the same login");
    assert!(!store.granted(&image, &name, &[]) && !store.granted(&image, &name, &[login("guess", "wrong")]));
    let elsewhere = Credential { registry: "other.example".to_owned(), ..login("mine", USER.1) };
    assert!(!store.granted(&image, &name, &[elsewhere]), "a login that would not be sent there");
    assert_eq!(store.needs(&image, &image.id), Needs::Pull, "by its id it is nobody's");
    store.pull(&name, &[login("guess", "wrong")]).await.unwrap_err();
    assert!(!store.granted(&image, &name, &[login("guess", "wrong")]));
    // one that is gone is known no more, and one that a person pulls is there for all
    store.remove(&name).await.unwrap();
    assert_eq!(fs::read_dir(scene.dir.join("store/pulled")).unwrap().count(), 0);
    let by_hand = Credential { origin: Origin::Hand, ..login("mine", USER.1) };
    let image = store.pull(&name, &[by_hand]).await.unwrap();
    assert_eq!(store.needs(&image, &name), Needs::Nothing);
    // what needs no login is for all
    let open_to_all = scene.store("open", &plain, insecure()).await;
    let image = open_to_all.pull(&format!("{plain}/test/it:1"), &[]).await.unwrap();
    assert_eq!(open_to_all.needs(&image, &format!("{plain}/test/it:1")), Needs::Nothing);
}
