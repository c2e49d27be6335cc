//! Layers: whatever is unpacked stays below its directory and below its limits, and goes through both digests.
#![no_main]

use std::fs;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../src/image/compression.rs"]
mod compression;
#[allow(dead_code)]
#[path = "../../src/image/digest.rs"]
mod digest;
#[allow(dead_code, unused_imports)]
#[path = "../../src/files/mod.rs"]
mod files;
#[allow(dead_code)]
#[path = "../../src/image/guard.rs"]
mod guard;
#[allow(dead_code)]
#[path = "../../src/image/hashed.rs"]
mod hashed;
#[path = "../../src/hex.rs"]
mod hex;
#[allow(dead_code)]
#[path = "../../src/image/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "../../src/image/unpack.rs"]
mod unpack;
#[allow(dead_code)]
#[path = "../../src/image/xattr.rs"]
mod xattr;

use compression::Compression;
use guard::Limit;

/// Gives every block that may be a header its checksum, which no mutation would find.
fn with_checksums(text: &[u8]) -> Vec<u8> {
    let mut archive = text.to_vec();
    for block in archive.chunks_exact_mut(512).filter(|b| &b[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, text)) = input.split_first() else { return };
    let top = std::env::temp_dir().join(format!("pikelet-fuzz-layer-{}", std::process::id()));
    let root: PathBuf = top.join("a/b/root");
    fs::create_dir_all(&root).unwrap();
    let (compression, blob) = match kind % 4 {
        0 => (Compression::Gzip, text.to_vec()),
        1 => (Compression::Zstd, text.to_vec()),
        _ => (Compression::None, with_checksums(text)),
    };
    if let Ok(done) = unpack::unpack(blob.as_slice(), compression, Limit::of(0, 1), &root) {
        assert_eq!(done.digest, hashed::digest_of(&blob));
        assert!(done.size <= 256 << 20);
    }
    let names = |dir: PathBuf| fs::read_dir(dir).unwrap().count();
    assert_eq!([names(top.clone()), names(top.join("a")), names(top.join("a/b"))], [1, 1, 1], "something left the root");
    fs::remove_dir_all(&top).unwrap();
});
