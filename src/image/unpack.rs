//! One layer: decompressed, verified and unpacked into a directory, as a stream.
//!
//! Rules: OCI Image Layer (whiteouts) and the kernel's overlayfs (character device 0/0, `trusted.overlay.opaque`).

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::libc::O_NOFOLLOW;
use nix::sys::stat::{Mode, SFlag, mknod};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use tar::{Archive, Entry, EntryType, Header};

use super::hashed::Hashed;
use super::manifest::Descriptor;

/// Bytes read and written at a time.
const PIECE: usize = 128 << 10;
/// Largest zstd window: no level of a common compressor needs more.
const WINDOW: u64 = 32 << 20;
/// Names and attributes of one entry, in bytes with their padding.
const ENTRY_HEAD: u64 = 2 << 20;
/// A layer may unpack to so many times its size, and ...
const RATIO: u64 = 100;
/// ... to so many bytes in any case.
const SMALL: u64 = 256 << 20;
/// Latest time of a file, in seconds since the epoch: what ext4 can keep.
const LATEST: u64 = (1 << 34) - 1;

/// Unpacks a layer into `into`, checking the blob's digest and the diff id; returns the bytes of regular files.
pub fn unpack(blob: impl Read, layer: &Descriptor, diff_id: &str, into: &Path) -> Result<u64, String> {
    let (media_type, digest) = (&layer.media_type, &layer.digest);
    let mut blob = BufReader::with_capacity(PIECE, Hashed::new(blob));
    let decoded: Box<dyn Read + '_> = if media_type.ends_with("gzip") {
        Box::new(flate2::bufread::MultiGzDecoder::new(&mut blob))
    } else if media_type.ends_with("zstd") {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW);
        Box::new(StreamingDecoder::new_with_decoder(&mut blob, decoder).map_err(|e| format!("zstd: {e}"))?)
    } else if media_type.ends_with("tar") {
        Box::new(&mut blob)
    } else {
        return Err(format!("layer media type {media_type:?} is not one this store can unpack"));
    };
    let broken = |e: io::Error| format!("reading layer {digest}: {e}");
    let mut plain = BufReader::with_capacity(PIECE, Hashed::new(decoded));
    let limit = layer.size.saturating_mul(RATIO).max(SMALL);
    let size = entries(&mut plain, limit, into).map_err(|e| format!("layer {digest}: {e}"))?;
    // what follows the archive's end belongs to the digests
    io::copy(&mut (&mut plain).take(limit), &mut io::sink()).map_err(broken)?;
    let got = plain.get_ref().digest();
    drop(plain);
    io::copy(&mut blob, &mut io::sink()).map_err(broken)?;
    let got_blob = blob.get_ref().digest();
    if got_blob != *digest {
        return Err(format!("layer {digest} arrived as {got_blob}: digest does not match"));
    }
    if got != diff_id {
        return Err(format!("layer {digest} unpacks to {got}, its image says {diff_id}: digest does not match"));
    }
    Ok(size)
}

/// Lets an archive take no more than it may.
struct Guard<'a, R> {
    inner: R,
    /// Bytes that may still be read, all together.
    total: u64,
    /// Bytes that may be read before the next entry's data.
    head: &'a Cell<u64>,
}

impl<R: Read> Read for Guard<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let refused = |what: &str| Err(io::Error::other(format!("{what}: refused")));
        let (Some(total), Some(head)) = (self.total.checked_sub(n as u64), self.head.get().checked_sub(n as u64))
        else {
            return if self.total < n as u64 {
                refused(&format!("unpacks to more than {RATIO} times its size"))
            } else {
                refused("an entry's name and attributes are too long")
            };
        };
        self.total = total;
        self.head.set(head);
        Ok(n)
    }
}

/// The path of an entry below the root; refuses one that would leave it.
fn parts(path: &Path) -> Result<Vec<&OsStr>, String> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(part) => Some(Ok(part)),
            Component::CurDir | Component::RootDir => None,
            _ => Some(Err(format!("entry {} would leave the root: refused", path.display()))),
        })
        .collect()
}

/// A root file system in the making.
struct Tree<'a> {
    root: &'a Path,
    /// The directory last found to be one, as nothing was removed since.
    known: Option<PathBuf>,
    /// Times of directories, set when they are full.
    times: Vec<(PathBuf, SystemTime)>,
    /// Bytes of regular files.
    size: u64,
    piece: Vec<u8>,
}

impl Tree<'_> {
    /// The directory of an entry, made where missing. A link on the way is refused: it could lead out.
    fn parent(&mut self, parts: &[&OsStr], path: &Path) -> Result<PathBuf, String> {
        let whole: PathBuf = std::iter::once(self.root.as_os_str()).chain(parts.iter().copied()).collect();
        if self.known.as_ref() == Some(&whole) {
            return Ok(whole);
        }
        let mut dir = self.root.to_owned();
        for part in parts {
            dir.push(part);
            match fs::symlink_metadata(&dir) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => {
                    return Err(format!(
                        "entry {} goes through {}, no directory: refused",
                        path.display(),
                        dir.display()
                    ));
                }
                Err(_) => fs::create_dir(&dir).map_err(|e| format!("creating {}: {e}", dir.display()))?,
            }
        }
        self.known = Some(whole);
        Ok(dir)
    }

    /// Removes what is at `target`, if anything.
    fn remove(&mut self, target: &Path) -> io::Result<()> {
        match fs::symlink_metadata(target) {
            Ok(found) if found.is_dir() => {
                self.known = None;
                fs::remove_dir_all(target)
            }
            Ok(_) => fs::remove_file(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn whiteout(&mut self, dir: &Path, name: &OsStr) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        if name == ".wh..wh..opq" {
            return super::xattr::set(dir, "trusted.overlay.opaque", b"y");
        }
        let hidden = &name.as_bytes()[b".wh.".len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(io::Error::other("hides nothing: refused"));
        }
        let target = dir.join(OsStr::from_bytes(hidden));
        self.remove(&target)?;
        mknod(&target, SFlag::S_IFCHR, Mode::empty(), 0).map_err(io::Error::from)
    }

    fn place(&mut self, entry: &mut Entry<impl Read>, path: &Path) -> Result<(), String> {
        let failed = |what: &str, e: &dyn std::fmt::Display| format!("{what} {}: {e}", path.display());
        let broken = |e: io::Error| failed("reading", &e);
        let kind = entry.header().entry_type();
        let names = parts(path)?;
        let Some((name, above)) = names.split_last().filter(|_| kind != EntryType::XGlobalHeader) else {
            return Ok(());
        };
        let dir = self.parent(above, path)?;
        if name.as_encoded_bytes().starts_with(b".wh.") {
            return self.whiteout(&dir, name).map_err(|e| failed("whiteout", &e));
        }
        let target = dir.join(name);
        let meta = Meta::of(entry.header()).map_err(broken)?;
        let link = || entry.link_name().map(Option::unwrap_or_default).map_err(broken);
        if kind == EntryType::Directory && fs::symlink_metadata(&target).is_ok_and(|m| m.is_dir()) {
            own(&target, &meta).map_err(|e| failed("owner and mode of", &e))?;
        } else {
            self.remove(&target).map_err(|e| failed("replacing", &e))?;
            match kind {
                EntryType::Directory => {
                    fs::create_dir(&target).and_then(|()| own(&target, &meta)).map_err(|e| failed("creating", &e))?;
                }
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    self.size += file(entry, &target, &meta, &mut self.piece).map_err(|e| failed("writing", &e))?;
                }
                EntryType::Symlink => symlink(link()?, &target)
                    .and_then(|()| lchown(&target, meta.uid, meta.gid))
                    .map_err(|e| failed("linking", &e))?,
                EntryType::Link => {
                    let link = link()?;
                    let from = parts(&link)?;
                    let Some((name, above)) = from.split_last() else { return Err(failed("linking", &"no target")) };
                    let source = self.parent(above, &link)?.join(name);
                    // owner, mode and attributes are the other name's
                    return fs::hard_link(source, &target).map_err(|e| failed("linking", &e));
                }
                EntryType::Char | EntryType::Block | EntryType::Fifo => device(entry.header(), kind, &target)
                    .and_then(|()| own(&target, &meta))
                    .map_err(|e| failed("creating device", &e))?,
                other => return Err(failed("entry", &format!("type {other:?} is not one this store can unpack"))),
            }
        }
        for attribute in entry.pax_extensions().map_err(broken)?.into_iter().flatten().flatten() {
            if let Some(name) = attribute.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr.")) {
                super::xattr::set(&target, name, attribute.value_bytes()).map_err(|e| failed("attribute of", &e))?;
            }
        }
        if kind == EntryType::Directory {
            self.times.push((target, meta.time));
        }
        Ok(())
    }

    /// True while every part of `path` is a directory.
    fn is_dir(&self, path: &Path) -> bool {
        let below = path.strip_prefix(self.root).unwrap_or(path);
        below
            .ancestors()
            .filter(|p| !p.as_os_str().is_empty())
            .all(|p| fs::symlink_metadata(self.root.join(p)).is_ok_and(|m| m.is_dir()))
    }

    fn finish(self) -> Result<u64, String> {
        for (target, time) in self.times.iter().rev() {
            // a later entry may have put something else there, or a link above it
            if self.is_dir(target) {
                let set = File::open(target).and_then(|f| f.set_modified(*time));
                set.map_err(|e| format!("time of {}: {e}", target.display()))?;
            }
        }
        Ok(self.size)
    }
}

/// Owner, mode and time of an entry.
struct Meta {
    uid: Option<u32>,
    gid: Option<u32>,
    mode: u32,
    time: SystemTime,
}

impl Meta {
    fn of(header: &Header) -> io::Result<Self> {
        let id = |n: io::Result<u64>| n.ok().and_then(|n| u32::try_from(n).ok());
        let seconds = header.mtime().unwrap_or(0).min(LATEST);
        Ok(Self {
            uid: id(header.uid()),
            gid: id(header.gid()),
            mode: header.mode()? & 0o7777,
            time: UNIX_EPOCH + Duration::from_secs(seconds),
        })
    }
}

fn entries(from: impl Read, limit: u64, root: &Path) -> Result<u64, String> {
    let head = Cell::new(ENTRY_HEAD);
    let mut archive = Archive::new(Guard { inner: from, total: limit, head: &head });
    let mut tree = Tree { root, known: None, times: Vec::new(), size: 0, piece: vec![0; PIECE] };
    for entry in archive.entries().map_err(|e| format!("reading the archive: {e}"))? {
        let mut entry = entry.map_err(|e| format!("reading the archive: {e}"))?;
        head.set(u64::MAX);
        let path = entry.path().map_err(|e| e.to_string())?.into_owned();
        tree.place(&mut entry, &path)?;
        // data of an entry that should have none
        io::copy(&mut entry, &mut io::sink()).map_err(|e| format!("reading {}: {e}", path.display()))?;
        head.set(ENTRY_HEAD);
    }
    tree.finish()
}

/// Owner and mode of what is no link.
fn own(target: &Path, meta: &Meta) -> io::Result<()> {
    lchown(target, meta.uid, meta.gid)?;
    fs::set_permissions(target, fs::Permissions::from_mode(meta.mode))
}

/// Writes a regular file; returns its bytes.
fn file(from: &mut impl Read, target: &Path, meta: &Meta, piece: &mut [u8]) -> io::Result<u64> {
    let mut file = File::options().write(true).create_new(true).custom_flags(O_NOFOLLOW).mode(0o600).open(target)?;
    let mut size = 0;
    loop {
        let n = from.read(piece).map_err(|e| io::Error::other(format!("reading the archive: {e}")))?;
        if n == 0 {
            break;
        }
        file.write_all(&piece[..n])?;
        size += n as u64;
    }
    fchown(&file, meta.uid, meta.gid)?;
    file.set_permissions(fs::Permissions::from_mode(meta.mode))?;
    file.set_modified(meta.time)?;
    Ok(size)
}

fn device(header: &Header, kind: EntryType, target: &Path) -> io::Result<()> {
    let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0).into();
    let device = nix::sys::stat::makedev(number(header.device_major()), number(header.device_minor()));
    let kind = match kind {
        EntryType::Char => SFlag::S_IFCHR,
        EntryType::Block => SFlag::S_IFBLK,
        _ => SFlag::S_IFIFO,
    };
    mknod(target, kind, Mode::from_bits_truncate(0o600), device).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::hashed::digest_of;

    fn layer(path: &str, link: Option<&str>) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        // set as bytes: the library refuses `..` itself
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o644);
        match link {
            Some(link) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_link_name(link).unwrap();
                header.set_size(0);
            }
            None => header.set_size(2),
        }
        header.set_cksum();
        builder.append(&header, if link.is_some() { &b""[..] } else { b"hi" }).unwrap();
        builder.into_inner().unwrap()
    }

    fn root(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("pikelet-unpack-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn files_arrive_and_digests_are_checked() {
        let dir = root("file");
        let tar = layer("a/b", None);
        let digest = digest_of(&tar);
        let layer =
            Descriptor { media_type: "x.tar".into(), digest: digest.clone(), size: tar.len() as u64, platform: None };
        assert_eq!(unpack(tar.as_slice(), &layer, &digest, &dir).unwrap(), 2);
        assert_eq!(fs::read(dir.join("a/b")).unwrap(), b"hi");
        let error = unpack(tar.as_slice(), &layer, "sha256:0", &dir).unwrap_err();
        assert!(error.contains("does not match"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn nothing_leaves_the_root() {
        let dir = root("escape");
        assert!(entries(layer("../evil", None).as_slice(), SMALL, &dir).is_err());
        entries(layer("out", Some("/tmp")).as_slice(), SMALL, &dir).unwrap();
        assert!(entries(layer("out/evil", None).as_slice(), SMALL, &dir).is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_takes_too_much_is_refused() {
        let dir = root("bomb");
        let error = entries(layer("a", None).as_slice(), 100, &dir).unwrap_err();
        assert!(error.contains("more than"), "{error}");
        let mut builder = tar::Builder::new(Vec::new());
        let long = "x".repeat(ENTRY_HEAD as usize);
        builder.append_pax_extensions([("comment", long.as_bytes())]).unwrap();
        let error = entries(builder.into_inner().unwrap().as_slice(), SMALL, &dir).unwrap_err();
        assert!(error.contains("too long"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_whiteout_is_a_character_device() {
        use std::os::unix::fs::FileTypeExt;
        let dir = root("whiteout");
        entries(layer("a/.wh.gone", None).as_slice(), SMALL, &dir).unwrap();
        assert!(fs::symlink_metadata(dir.join("a/gone")).unwrap().file_type().is_char_device());
        fs::remove_dir_all(dir).unwrap();
    }
}
