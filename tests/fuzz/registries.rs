//! `registries.yaml`: what is accepted at the start gives places to ask for any image, and no login to another host.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../src/image/access.rs"]
mod access;
#[allow(dead_code)]
#[path = "../../src/image/credentials.rs"]
mod credentials;
#[allow(dead_code)]
#[path = "../../src/image/digest.rs"]
mod digest;
#[allow(dead_code)]
#[path = "../../src/image/endpoints.rs"]
mod endpoints;
#[allow(dead_code, unused_imports)]
#[path = "../../src/files/mod.rs"]
mod files;
#[allow(dead_code)]
#[path = "../../src/image/hashed.rs"]
mod hashed;
#[path = "../../src/hex.rs"]
mod hex;
#[allow(dead_code)]
#[path = "../../src/image/reference.rs"]
mod reference;
#[allow(dead_code)]
#[path = "../../src/image/types.rs"]
mod types;

use reference::Reference;
use types::StoreConfig;

fuzz_target!(|text: &str| {
    let Ok(private) = serde_saphyr::from_str::<endpoints::Registries>(text) else { return };
    if private.check().is_err() {
        return;
    }
    let config = StoreConfig { private, ..StoreConfig::default() };
    let given = credentials::docker_config(&serde_json::json!({"auths": {"own.example": {"auth": "dTpw"}}}));
    for name in ["r.example/a/b:1", "busybox", "localhost:5000/x", "own.example/x"] {
        let image = Reference::parse(name).unwrap();
        let found = endpoints::of(&image, &config, &given).expect("what was checked works");
        assert!(!found.is_empty());
        for endpoint in found {
            assert!(endpoint.base.starts_with("http://") || endpoint.base.starts_with("https://"));
            let own = endpoint.logins.iter().any(|l| l.registry == "own.example" && l.username == "u");
            assert!(!own || endpoint.base.contains("own.example"), "a login goes to {}", endpoint.base);
        }
    }
});
