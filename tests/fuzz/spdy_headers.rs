//! The header blocks: nothing a peer compresses makes the reader fail other than by its own error, or grow without end.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../src/server/spdy/frame.rs"]
mod frame;
#[path = "../../src/server/spdy/headers.rs"]
mod headers;

use headers::{Deflater, Inflater};

fuzz_target!(|input: (Vec<&[u8]>, Vec<(String, String)>)| {
    let (blocks, pairs) = input;
    let mut reader = Inflater::default();
    for block in blocks {
        if let Ok(found) = reader.read(block) {
            assert!(found.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() <= 128 << 10);
        }
    }
    let small = pairs.len() <= 200 && pairs.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() < 32 << 10;
    if small {
        let written: Vec<(&str, &str)> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let block = Deflater::new().unwrap().write(&written).unwrap();
        let read = Inflater::default().read(&block).unwrap();
        let wanted: Vec<(String, String)> = pairs.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.clone())).collect();
        assert_eq!(read, wanted);
    }
});
