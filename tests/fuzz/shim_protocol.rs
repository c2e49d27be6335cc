//! The messages of shims: however they are cut, the same ones are found; what was read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[allow(dead_code)]
#[path = "../../src/runtime/cri_log.rs"]
mod cri_log;
#[allow(dead_code, unused_imports)]
#[path = "../../src/files/mod.rs"]
mod files;
#[allow(dead_code)]
#[path = "../../src/runtime/protocol.rs"]
mod protocol;
#[allow(dead_code)]
#[path = "../../src/runtime/types.rs"]
mod types;

use protocol::{ClientMessage, ShimMessage, decode, encode};

/// The messages of a stream that arrives in `parts`, written again, and whether it ended with an error.
fn read<'a, T: DeserializeOwned + Serialize>(parts: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, bool) {
    let (mut buffer, mut found) = (Vec::new(), Vec::new());
    for part in parts {
        buffer.extend_from_slice(part);
        loop {
            match decode::<T>(&mut buffer) {
                Ok(Some(message)) => found.push(encode(&message).unwrap()),
                Ok(None) => break,
                Err(_) => return (found, true),
            }
        }
    }
    (found, false)
}

fn check<T: DeserializeOwned + Serialize>(bytes: &[u8], size: usize) {
    let whole = read::<T>(std::iter::once(bytes));
    assert_eq!(read::<T>(bytes.chunks(size)), whole);
    let joined = whole.0.concat();
    assert_eq!(read::<T>(std::iter::once(joined.as_slice())), (whole.0, false));
}

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (size, framed, bytes) = input;
    // a length that is right is hard to come by
    let framed = if framed { [&(bytes.len() as u32).to_le_bytes(), bytes].concat() } else { bytes.to_vec() };
    check::<ClientMessage>(&framed, usize::from(size).max(1));
    check::<ShimMessage>(&framed, usize::from(size).max(1));
});
