//! The frame parser: however the bytes are cut, it finds the same frames, and never more data than arrived.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../src/server/spdy/frame.rs"]
mod frame;

use frame::{Frame, Parser};

/// What is found: (stream, data) pieces joined, other frames, and whether the end was an error.
fn parse<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Vec<(u32, Vec<u8>)>, Vec<Frame>, bool) {
    let (mut parser, mut buffer) = (Parser::default(), BytesMut::new());
    let (mut data, mut others): (Vec<(u32, Vec<u8>)>, _) = (Vec::new(), Vec::new());
    for part in parts {
        buffer.extend_from_slice(part);
        loop {
            match parser.next(&mut buffer) {
                Ok(Some(Frame::Data { stream, data: piece, .. })) => match data.last_mut() {
                    Some((last, bytes)) if *last == stream => bytes.extend_from_slice(&piece),
                    _ => data.push((stream, piece.to_vec())),
                },
                Ok(Some(other)) => others.push(other),
                Ok(None) => break,
                Err(_) => return (data, others, true),
            }
        }
    }
    (data, others, false)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let whole = parse(std::iter::once(bytes));
    let cut = parse(bytes.chunks(usize::from(size).max(1)));
    assert_eq!(whole, cut);
    assert!(whole.0.iter().map(|(_, d)| d.len()).sum::<usize>() <= bytes.len());
});
