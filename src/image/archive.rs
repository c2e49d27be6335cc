//! Reading an archive of images (OCI layout or docker's, compressed or not) once, front to back: what looks like a layer is
//! unpacked as it comes by, as its name is known by its digest; the small documents are kept in memory.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Component, Path};

use tar::{Archive, Entry, EntryType};

use super::compression::Compression;
use super::digest::is_hex;
use super::guard::{Grown, Guard, Limit, counted};
use super::hashed::digest_of;
use super::layers::Pins;
use super::registry::MAX_DOCUMENT;
use super::sink::Sink;

/// Bytes read at a time.
const PIECE: usize = 128 << 10;
/// Bytes of documents an archive may have together.
const MAX_DOCUMENTS: usize = 4 * MAX_DOCUMENT;
/// Names an archive may have, and their bytes: they are kept in memory.
const MAX_NAMES: usize = 20_000;
const MAX_NAME: usize = 1024;
/// Links followed from a name to a layer.
const MAX_LINKS: usize = 8;

/// A layer of an archive; it is in the store.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Digest of its blob.
    pub digest: String,
    /// Digest of the archive it decompresses to.
    pub diff_id: String,
    /// Bytes of its blob.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
}

/// What an archive holds, by path.
#[derive(Default)]
pub struct Contents {
    documents: HashMap<String, Vec<u8>>,
    layers: HashMap<String, Result<Layer, String>>,
    links: HashMap<String, String>,
    /// Keeps the layers.
    pub pins: Vec<Pins>,
}

/// The path of an entry in its archive, without `.`; `None` if it would leave the archive.
fn normal(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(parts.join("/"))
}

/// The digest a blob's name says, as in `blobs/sha256/<hex>`, `<hex>.tar` and `<hex>.json`.
fn named(name: &str) -> Option<String> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let stem = file.split('.').next().filter(|s| is_hex(s))?;
    Some(format!("sha256:{stem}"))
}

/// Reads an archive. `known` are blobs (by digest) whose diff id is known, so that what is here already is passed over.
pub fn read(from: impl Read, sink: &Sink, known: &HashMap<String, String>) -> Result<Contents, String> {
    let broken = |e: io::Error| format!("reading the archive: {e}");
    let (from, count) = counted(from);
    let mut from = BufReader::with_capacity(PIECE, from);
    let outer = Compression::of_bytes(from.fill_buf().map_err(broken)?);
    let plain: Box<dyn Read> = match outer {
        Compression::None => Box::new(from),
        _ => Box::new(Grown::new(outer.reader(from), count, sink.ratio)),
    };
    // as much as there is; only names and attributes are bounded here
    let (guarded, head) = Guard::new(plain, Limit::unbounded());
    let mut archive = Archive::new(guarded);
    let mut contents = Contents::default();
    let mut names = 0;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        head.passed();
        names += 1;
        if names > MAX_NAMES {
            return Err(format!("the archive has more than {MAX_NAMES} entries: refused"));
        }
        let path = entry.path().map_err(broken)?.into_owned();
        if path.as_os_str().len() > MAX_NAME {
            return Err(format!("the archive has a name of more than {MAX_NAME} bytes: refused"));
        }
        let name = normal(&path).ok_or_else(|| format!("entry {} would leave the archive: refused", path.display()))?;
        contents.take(&mut entry, &path, name, sink, known)?;
        io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
        head.next();
    }
    // what follows the end belongs to the compressed form's own check
    head.passed();
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    if names == 0 {
        return Err("the archive is empty: an OCI or docker archive (tar, also as gzip or zstd) is wanted".to_owned());
    }
    Ok(contents)
}

impl Contents {
    fn take(
        &mut self,
        entry: &mut Entry<impl Read>,
        path: &Path,
        name: String,
        sink: &Sink,
        known: &HashMap<String, String>,
    ) -> Result<(), String> {
        let broken = |e: io::Error| format!("reading {name} of the archive: {e}");
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {}
            kind @ (EntryType::Symlink | EntryType::Link) => {
                let target = entry.link_name().map_err(broken)?.unwrap_or_default();
                // a symbolic link is read from its own folder, the other from the archive's root
                let base = if kind == EntryType::Symlink { path.parent() } else { None };
                let target = base.unwrap_or(Path::new("")).join(target);
                if let Some(target) = normal(&target).filter(|t| t.len() <= MAX_NAME) {
                    self.links.insert(name, target);
                }
                return Ok(());
            }
            // its holes would be read as zeros, at no cost to its maker
            EntryType::GNUSparse => return Err(format!("{name} of the archive is a sparse file: refused")),
            _ => return Ok(()),
        }
        let size = entry.size();
        let mut start = [0; 512];
        let mut filled = 0;
        while filled < start.len() {
            match entry.read(&mut start[filled..]).map_err(broken)? {
                0 => break,
                n => filled += n,
            }
        }
        let start = &start[..filled];
        let compression = Compression::of_bytes(start);
        let tar = start.get(257..262) == Some(b"ustar") || (start.len() == 512 && start.iter().all(|b| *b == 0));
        if compression != Compression::None || tar {
            let layer = self.layer(io::Cursor::new(start).chain(entry), &name, size, compression, sink, known);
            self.layers.insert(name, layer);
        } else if matches!(start.trim_ascii_start().first(), Some(b'{' | b'[')) {
            let sum: usize = self.documents.values().map(Vec::len).sum();
            if size > MAX_DOCUMENT as u64 || sum + size as usize > MAX_DOCUMENTS {
                return Err(format!("{name} of the archive is a document of {size} bytes: too large, refused"));
            }
            let mut text = start.to_vec();
            entry.read_to_end(&mut text).map_err(broken)?;
            self.documents.insert(name, text);
        }
        Ok(())
    }

    /// Unpacks a layer, unless it is here. Its error matters only if an image needs it.
    fn layer(
        &mut self,
        from: impl Read,
        name: &str,
        size: u64,
        compression: Compression,
        sink: &Sink,
        known: &HashMap<String, String>,
    ) -> Result<Layer, String> {
        let says = named(name);
        // what is not compressed has the name of its content
        let plain = says.clone().filter(|_| compression == Compression::None);
        let here = says.as_ref().and_then(|d| known.get(d).cloned()).or(plain);
        if let Some((digest, diff_id)) = says.clone().zip(here)
            && sink.has(&digest, &diff_id)
        {
            self.pins.push(sink.layers.pin(&[diff_id.clone(), digest.clone()]));
            // pinned, then looked at: no removal can come between
            if sink.has(&digest, &diff_id) {
                return Ok(Layer { digest, diff_id, size, compression });
            }
        }
        // in docker's archives the name may be that of the uncompressed layer
        let (got, pins) = sink.place(from, compression, size, &|got| match &says {
            Some(says) if got.digest != *says && got.diff_id != *says => {
                Err(format!("it is called {says} and has the digest {}: digest does not match", got.digest))
            }
            _ => Ok(()),
        })?;
        self.pins.extend(pins);
        Ok(Layer { digest: got.digest, diff_id: got.diff_id, size, compression })
    }

    /// A document by its path.
    pub fn document(&self, name: &str) -> Option<&[u8]> {
        self.documents.get(&self.resolved(name)).map(Vec::as_slice)
    }

    /// A document of a layout by its digest.
    pub fn blob(&self, digest: &str) -> Result<&[u8], String> {
        let name = digest.replace(':', "/");
        let text = self.document(&format!("blobs/{name}")).ok_or_else(|| format!("{digest} is not in the archive"))?;
        let got = digest_of(text);
        if got == digest { Ok(text) } else { Err(format!("{digest} has the digest {got}: digest does not match")) }
    }

    /// A layer by its path.
    pub fn layer_at(&self, name: &str) -> Result<&Layer, String> {
        match self.layers.get(&self.resolved(name)) {
            Some(Ok(layer)) => Ok(layer),
            Some(Err(error)) => Err(format!("layer {name}: {error}")),
            None => Err(format!("layer {name} is not in the archive, or no tar, gzip or zstd")),
        }
    }

    fn resolved(&self, name: &str) -> String {
        let mut name = normal(Path::new(name)).unwrap_or_default();
        for _ in 0..MAX_LINKS {
            match self.links.get(&name) {
                Some(target) => name.clone_from(target),
                None => break,
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_archive() {
        let of = |path: &str| normal(Path::new(path));
        assert_eq!(of("./a/../b//c"), Some("b/c".into()));
        assert_eq!(of("/index.json"), Some("index.json".into()));
        assert_eq!((of("../x"), of("a/../../x")), (None, None));
        let hex = "a".repeat(64);
        assert_eq!(named(&format!("blobs/sha256/{hex}")), Some(format!("sha256:{hex}")));
        assert_eq!(named(&format!("{hex}.tar")), Some(format!("sha256:{hex}")));
        assert_eq!(named(&format!("{hex}/layer.tar")), None);
    }
}
