//! Manifests, indexes and image configurations: what a registry sends is read or refused, what is found through indexes
//! ends, and is for the machine it was looked up for.
#![no_main]

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../src/image/manifest.rs"]
mod manifest;
#[allow(dead_code)]
#[path = "../../src/image/platform.rs"]
mod platform;
#[allow(dead_code)]
#[path = "../../src/image/resolve.rs"]
mod resolve;

use platform::Machine;
use resolve::{Documents, Start, Use, resolve};

/// Every document is the one that is tried.
struct Same(Vec<u8>);

impl Documents for Same {
    fn manifest<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        ready(Ok(self.0.clone())).boxed()
    }

    fn config<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        ready(Ok(self.0.clone())).boxed()
    }
}

fuzz_target!(|text: &[u8]| {
    let documents = Same(text.to_vec());
    for (arch, level) in [("x86_64", 3), ("aarch64", 8), ("arm", 7), ("arm", 6), ("riscv64", 0)] {
        let machine = Machine { arch: arch.to_owned(), level, page: 4096, emulated: Vec::new() };
        let start = Start::Text(text.to_vec());
        if let Some(Ok(found)) = resolve(start, &machine, Use::Run, &documents).now_or_never() {
            assert!(found.manifest.manifests.is_none());
            assert!(machine.refusal(&found.image.platform).is_none() || found.first.is_some());
        }
    }
});
