//! Where the bytes of a layer go: unpacked into the store, and as they came into the blobs where those are kept.

use std::io::{self, Read};
use std::sync::Arc;

use nix::sys::statvfs::statvfs;

use super::blobs::Blobs;
use super::compression::Compression;
use super::guard::Limit;
use super::layers::{Layers, Pins};
use super::manifest::Descriptor;
use super::unpack::{Unpacked, unpack};
use crate::machine::usage::block_size;

/// Bytes that say how something is compressed.
const START: u64 = 4;

/// The two places of a store; cheap to clone.
#[derive(Clone)]
pub struct Sink {
    /// Unpacked layers.
    pub layers: Arc<Layers>,
    /// Blobs.
    pub blobs: Blobs,
    /// Compressed layers are kept too.
    pub keep_blobs: bool,
    /// Times its size to which something may unpack.
    pub ratio: u64,
}

impl Sink {
    /// True if nothing of a layer is missing.
    pub fn has(&self, digest: &str, diff_id: &str) -> bool {
        self.layers.size(diff_id).is_some() && (!self.keep_blobs || self.blobs.has(digest))
    }

    /// Refuses a layer that the disk has no room for even as it comes.
    pub fn fits(&self, layer: &Descriptor) -> Result<(), String> {
        let dir = self.layers.dir();
        let disk = statvfs(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        // the type of a number differs between C libraries
        #[allow(clippy::useless_conversion)]
        let free = u64::from(disk.blocks_available()) * block_size(&disk);
        if layer.size > free {
            let (digest, size) = (&layer.digest, layer.size);
            return Err(format!(
                "layer {digest} has {size} bytes, and {free} are free where images are: No space left on device"
            ));
        }
        Ok(())
    }

    /// Takes the layer an image names.
    pub fn take(&self, mut from: impl Read, layer: &Descriptor, diff_id: &str) -> Result<(), String> {
        let failed = |e: String| {
            let (digest, kind) = (&layer.digest, &layer.media_type);
            let unknown = !Compression::knows(kind);
            let also =
                if unknown { format!(" (its media type {kind:?} is not one of a layer)") } else { String::new() };
            format!("layer {digest}: {e}{also}")
        };
        if layer.media_type.ends_with("+encrypted") {
            return Err(failed("it is encrypted, and this store has no keys".to_owned()));
        }
        if self.layers.size(diff_id).is_some() {
            return self.keep(from, layer).map_err(failed);
        }
        // media types are wrong now and then: the bytes say what it is
        let mut start = Vec::new();
        (&mut from).take(START).read_to_end(&mut start).map_err(|e| failed(format!("reading the layer: {e}")))?;
        let compression = Compression::of_bytes(&start);
        let check = |got: &Unpacked| got.check(&layer.digest, diff_id);
        let whole = io::Cursor::new(start).chain(from);
        self.place(whole, compression, layer.size, &check).map(drop).map_err(failed)
    }

    /// Takes only the blob: the layer is unpacked already.
    fn keep(&self, from: impl Read, layer: &Descriptor) -> Result<(), String> {
        let mut copied = self.blobs.copy(from).map_err(kept)?;
        io::copy(&mut copied, &mut io::sink()).map_err(kept)?;
        copied.keep_if(&self.blobs, &layer.digest).map_err(kept)
    }

    /// Takes whatever layer `from` is, if `check` agrees; it is kept while the pins live.
    pub fn place(
        &self,
        from: impl Read,
        compression: Compression,
        size: u64,
        check: &dyn Fn(&Unpacked) -> Result<(), String>,
    ) -> Result<(Unpacked, Vec<Pins>), String> {
        let limit = Limit::of(size, self.ratio);
        let fill = |from: &mut dyn Read, dir: &std::path::Path| {
            let got = unpack(from, compression, limit, dir)?;
            check(&got).map(|()| got)
        };
        if !self.keep_blobs {
            let mut from = from;
            return self.layers.place(|dir| fill(&mut from, dir)).map(|(got, pins)| (got, vec![pins]));
        }
        let mut blob = Vec::new();
        let (got, pins) = self.layers.place(|dir| {
            let mut copied = self.blobs.copy(from).map_err(kept)?;
            let got = fill(&mut copied, dir)?;
            // before it gets its name: whoever removes blobs must know that it is wanted
            blob.push(self.layers.pin(std::slice::from_ref(&got.digest)));
            copied.keep_if(&self.blobs, &got.digest).map_err(kept)?;
            Ok(got)
        })?;
        blob.push(pins);
        Ok((got, blob))
    }
}

fn kept(error: io::Error) -> String {
    format!("keeping the blob: {error}")
}
