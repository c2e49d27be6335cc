//! Manifests, indexes and image configurations: what a registry sends is read or refused, and a platform chosen is one
//! of those offered.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../src/image/manifest.rs"]
mod manifest;

use manifest::{ImageConfig, Manifest, choose};

fuzz_target!(|text: &[u8]| {
    let _ = serde_json::from_slice::<ImageConfig>(text);
    let Ok(found) = serde_json::from_slice::<Manifest>(text) else { return };
    for arch in ["x86_64", "aarch64", "arm", "riscv64"] {
        if let Ok(chosen) = choose(&found.manifests, arch) {
            assert!(chosen.platform.as_ref().is_some_and(|p| p.os == "linux"));
        }
    }
});
