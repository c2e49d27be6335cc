//! The entries of one layer as files of a directory.
//!
//! Rules: OCI Image Layer (whiteouts) and the kernel's overlayfs (character device 0/0, `trusted.overlay.opaque`).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{PermissionsExt, fchown, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::stat::{Mode, SFlag, mknod};
use tar::{Archive, Entry, EntryType, Header};

use super::guard::{Guard, Limit};

use crate::files;

/// Bytes read and written at a time.
const PIECE: usize = 128 << 10;
/// Latest time of a file, in seconds since the epoch: what ext4 can keep.
const LATEST: u64 = (1 << 34) - 1;

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
    limit: Limit,
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
                Err(_) => files::new_dir(&dir, 0o755).map_err(|e| format!("creating {}: {e}", dir.display()))?,
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
                files::remove_tree(target)
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

    /// Writes a regular file; the holes of a sparse one stay holes.
    fn file(&mut self, from: &mut Entry<impl Read>, target: &Path, meta: &Meta) -> io::Result<()> {
        let sparse = from.header().entry_type() == EntryType::GNUSparse;
        let mut file = files::create_new(target, 0o600)?;
        let mut size = 0;
        loop {
            let n = from.read(&mut self.piece).map_err(|e| io::Error::other(format!("reading the archive: {e}")))?;
            if n == 0 {
                break;
            }
            size += n as u64;
            // what a sparse file says of itself costs its maker nothing
            if self.size + size > self.limit.bytes {
                return Err(self.limit.exceeded());
            }
            if sparse && self.piece[..n].iter().all(|b| *b == 0) {
                file.seek_relative(n as i64)?;
            } else {
                file.write_all(&self.piece[..n])?;
            }
        }
        if sparse {
            file.set_len(size)?;
        }
        self.size += size;
        fchown(&file, meta.uid, meta.gid)?;
        file.set_permissions(fs::Permissions::from_mode(meta.mode))?;
        file.set_modified(meta.time)
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
                    files::new_dir(&target, 0o700)
                        .and_then(|()| own(&target, &meta))
                        .map_err(|e| failed("creating", &e))?;
                }
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    self.file(entry, &target, &meta).map_err(|e| failed("writing", &e))?;
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
            if attribute.key().is_ok_and(|k| k.starts_with("GNU.sparse.")) {
                return Err(failed("entry", &"sparse files in the PAX form are not ones this store can unpack"));
            }
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

/// Unpacks a layer's archive into `root`; returns the bytes of its regular files.
pub fn entries(from: impl Read, limit: Limit, root: &Path) -> Result<u64, String> {
    let (guarded, head) = Guard::new(from, limit);
    let mut archive = Archive::new(guarded);
    let mut tree = Tree { root, limit, known: None, times: Vec::new(), size: 0, piece: vec![0; PIECE] };
    for entry in archive.entries().map_err(|e| format!("reading the archive: {e}"))? {
        let mut entry = entry.map_err(|e| format!("reading the archive: {e}"))?;
        head.passed();
        let path = entry.path().map_err(|e| e.to_string())?.into_owned();
        tree.place(&mut entry, &path)?;
        // data of an entry that should have none
        io::copy(&mut entry, &mut io::sink()).map_err(|e| format!("reading {}: {e}", path.display()))?;
        head.next();
    }
    tree.finish()
}

/// Owner and mode of what is no link.
fn own(target: &Path, meta: &Meta) -> io::Result<()> {
    lchown(target, meta.uid, meta.gid)?;
    files::set_mode(target, meta.mode)
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
    use crate::image::guard::ENTRY_HEAD;

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
    fn nothing_leaves_the_root() {
        let dir = root("escape");
        assert!(entries(layer("../evil", None).as_slice(), Limit::of(0, 1), &dir).is_err());
        entries(layer("out", Some("/tmp")).as_slice(), Limit::of(0, 1), &dir).unwrap();
        assert!(entries(layer("out/evil", None).as_slice(), Limit::of(0, 1), &dir).is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_takes_too_much_is_refused() {
        let dir = root("bomb");
        let mut builder = tar::Builder::new(Vec::new());
        let long = "x".repeat(ENTRY_HEAD as usize);
        builder.append_pax_extensions([("comment", long.as_bytes())]).unwrap();
        let error = entries(builder.into_inner().unwrap().as_slice(), Limit::of(0, 1), &dir).unwrap_err();
        assert!(error.contains("too long"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    /// One sparse entry of `size` bytes that are all a hole (old GNU format).
    fn hole(size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path("hole").unwrap();
        header.set_mode(0o644);
        header.set_size(0);
        header.set_entry_type(EntryType::GNUSparse);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.sparse[0].offset[..11].copy_from_slice(format!("{:011o}", size.min(0o77_777_777_777)).as_bytes());
        gnu.sparse[0].numbytes[..11].copy_from_slice(b"00000000000");
        gnu.realsize[..11].copy_from_slice(format!("{:011o}", size.min(0o77_777_777_777)).as_bytes());
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b""[..]).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn holes_take_no_room_and_not_without_end() {
        use std::os::unix::fs::MetadataExt;
        let dir = root("sparse");
        assert_eq!(entries(hole(64 << 20).as_slice(), Limit::of(0, 1), &dir).unwrap(), 64 << 20);
        let found = fs::metadata(dir.join("hole")).unwrap();
        assert_eq!((found.len(), found.blocks()), (64 << 20, 0));
        let error = entries(hole(7 << 30).as_slice(), Limit::of(0, 1), &dir).unwrap_err();
        assert!(error.contains("maxImageUnpackRatio"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_whiteout_is_a_character_device() {
        use std::os::unix::fs::FileTypeExt;
        let dir = root("whiteout");
        entries(layer("a/.wh.gone", None).as_slice(), Limit::of(0, 1), &dir).unwrap();
        assert!(fs::symlink_metadata(dir.join("a/gone")).unwrap().file_type().is_char_device());
        fs::remove_dir_all(dir).unwrap();
    }
}
