//! Image references: whatever is written, what parses leads nowhere but to its registry, and is the same when parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../src/image/digest.rs"]
mod digest;
#[allow(dead_code)]
#[path = "../../src/image/reference.rs"]
mod reference;

use reference::Reference;

fuzz_target!(|text: &str| {
    let Ok(found) = Reference::parse(text) else { return };
    assert!(!found.host.contains('/') && !found.repository.split('/').any(|p| p.is_empty() || p == "." || p == ".."));
    assert!(
        !found.canonical().contains(|c: char| c.is_whitespace() || c.is_control() || "?#%\\".contains(c)),
        "{found:?}"
    );
    let again = Reference::parse(&found.canonical()).unwrap();
    assert_eq!(again.canonical(), found.canonical());
});
