//! The entries of one layer as files of a directory.
//!
//! Rules: OCI Image Layer (whiteouts) and the kernel's overlayfs (character device 0/0, `trusted.overlay.opaque`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{PermissionsExt, fchown, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::libc;
use nix::sys::stat::{Mode, SFlag, mknod};
use tar::{Archive, Entry, EntryType, Header};
use tracing::warn;

use super::guard::{Guard, Limit};

use crate::files;

/// Bytes read and written at a time.
const PIECE: usize = 128 << 10;
/// Links that are followed on the way of one entry.
const MOST_LINKS: u32 = 255;
/// Latest time of a file, in seconds since the epoch: what ext4 can keep.
const LATEST: u64 = (1 << 34) - 1;

/// The path of an entry below the root; refuses one that would leave it.
fn parts(path: &Path) -> Result<Vec<&OsStr>, String> {
    let mut parts = Vec::new();
    for component in path.components() {
        let stays = match component {
            Component::Normal(part) => {
                parts.push(part);
                true
            }
            Component::ParentDir => parts.pop().is_some(),
            _ => true,
        };
        if !stays {
            return Err(format!("entry {} would leave the root: refused", path.display()));
        }
    }
    Ok(parts)
}

/// A root file system in the making.
struct Tree<'a> {
    root: &'a Path,
    /// Names that last led to a directory, and the directory, as nothing was removed since.
    known: Option<(PathBuf, PathBuf)>,
    /// Directories that no entry has told of yet.
    implied: Implied,
    /// An attribute was passed over.
    lossy: bool,
    limit: Limit,
    /// Times of directories, set when they are full.
    times: Times,
    /// Bytes of regular files.
    size: u64,
    piece: Vec<u8>,
}

impl Tree<'_> {
    /// The directory of an entry, made where missing. Links on the way are followed as if the root were `/`.
    fn parent(&mut self, parts: &[&OsStr], path: &Path) -> Result<PathBuf, String> {
        let whole: PathBuf = std::iter::once(self.root.as_os_str()).chain(parts.iter().copied()).collect();
        if let Some((names, dir)) = &self.known
            && *names == whole
        {
            return Ok(dir.clone());
        }
        let refused = |why: &str, at: &Path| format!("entry {} {why} {}: refused", path.display(), at.display());
        let mut dir = self.root.to_owned();
        let mut links = 0;
        // what is still to be gone, the next one last
        let mut ahead: Vec<OsString> = parts.iter().rev().map(|&part| part.to_owned()).collect();
        while let Some(part) = ahead.pop() {
            if part == ".." {
                if dir != self.root {
                    dir.pop();
                }
                continue;
            }
            dir.push(part);
            match fs::symlink_metadata(&dir) {
                Ok(found) if found.is_dir() => {}
                Ok(found) if found.is_symlink() => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(refused("follows too many links at", &dir));
                    }
                    let to = fs::read_link(&dir).map_err(|e| format!("reading the link {}: {e}", dir.display()))?;
                    if to.is_absolute() {
                        self.root.clone_into(&mut dir);
                    } else {
                        dir.pop();
                    }
                    ahead.extend(to.components().rev().filter_map(|c| match c {
                        Component::Normal(part) => Some(part.to_owned()),
                        Component::ParentDir => Some("..".into()),
                        _ => None,
                    }));
                }
                Ok(_) => return Err(refused("goes through what is no directory,", &dir)),
                Err(_) => {
                    files::new_dir(&dir, 0o755).map_err(|e| format!("creating {}: {e}", dir.display()))?;
                    // whatever the mask of the agent is
                    files::set_mode(&dir, 0o755).map_err(|e| format!("mode of {}: {e}", dir.display()))?;
                    self.implied.insert(dir.clone());
                }
            }
        }
        self.known = Some((whole, dir.clone()));
        Ok(dir)
    }

    /// Removes what is at `target`, if anything.
    fn remove(&mut self, target: &Path) -> io::Result<()> {
        match fs::symlink_metadata(target) {
            Ok(found) if found.is_dir() => {
                self.known = None;
                self.implied.remove_below(target);
                files::remove_tree(target)
            }
            Ok(found) => {
                if found.is_symlink() {
                    self.known = None;
                }
                fs::remove_file(target)
            }
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
        // archives of old have no other mark of a directory
        let old_dir = entry.header().as_bytes()[156] == 0 && entry.path_bytes().ends_with(b"/");
        let kind = if old_dir { EntryType::Directory } else { entry.header().entry_type() };
        let names = parts(path)?;
        let Some((name, above)) = names.split_last().filter(|_| kind != EntryType::XGlobalHeader) else {
            return Ok(());
        };
        let dir = self.parent(above, path)?;
        if name.as_encoded_bytes().starts_with(b".wh.") {
            return self.whiteout(&dir, name).map_err(|e| failed("whiteout", &e));
        }
        let target = dir.join(name);
        let extended = Extended::of(entry).map_err(|e| failed("entry", &e))?;
        let meta = Meta::of(entry.header(), &extended).map_err(broken)?;
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
        for (name, value) in &extended.attributes {
            self.attribute(&target, name, value).map_err(|e| failed("attribute of", &e))?;
        }
        if kind == EntryType::Directory {
            self.implied.remove(&target);
            self.times.note(target, meta.time);
        }
        Ok(())
    }

    /// Sets an extended attribute; one that this disk or this kind of file cannot take is passed over, as a Mac's
    /// (`com.apple.provenance`) or another system's (`security.selinux`) are elsewhere.
    fn attribute(&mut self, target: &Path, name: &str, value: &[u8]) -> io::Result<()> {
        let Err(error) = super::xattr::set(target, name, value) else { return Ok(()) };
        let plain = || fs::symlink_metadata(target).is_ok_and(|m| m.is_file() || m.is_dir());
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => {}
            Some(libc::EPERM) if name.starts_with("user.") && !plain() => {}
            _ => return Err(error),
        }
        // once for a layer: there may be one for each file
        if !std::mem::replace(&mut self.lossy, true) {
            let file = target.strip_prefix(self.root).unwrap_or(target).display();
            warn!(%file, attribute = name, %error, "files of a layer have attributes that cannot be kept here: without them");
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

    fn finish(mut self) -> Result<Tallied, String> {
        for (target, time) in self.times.all.iter().rev() {
            // a later entry may have put something else there, or a link above it
            if self.is_dir(target) {
                let set = File::open(target).and_then(|f| f.set_modified(*time));
                set.map_err(|e| format!("time of {}: {e}", target.display()))?;
            }
        }
        self.implied.remove(self.root);
        let below = |dir: &PathBuf| dir.strip_prefix(self.root).unwrap_or(dir).to_owned();
        Ok(Tallied { size: self.size, implied: self.implied.all.iter().map(below).collect() })
    }
}

/// Times of directories by their path. An archive may name one as often as it likes, and with long names; an image whose
/// directories are many has the later ones with the time they were made at.
#[derive(Default)]
struct Times {
    all: BTreeMap<PathBuf, SystemTime>,
    /// Bytes of their paths.
    size: usize,
}

/// Most bytes of the paths of directories whose times are kept: some hundred thousand of them.
const MOST_PATHS: usize = 16 << 20;
/// The same of those that are implied, which are looked for in each layer at each start of a container.
const MOST_IMPLIED: usize = 1 << 20;

/// Directories that no entry has told of yet; of very many the later ones count as told of.
#[derive(Default)]
struct Implied {
    all: BTreeSet<PathBuf>,
    /// Bytes of them.
    size: usize,
}

impl Implied {
    fn insert(&mut self, dir: PathBuf) {
        let length = dir.as_os_str().len();
        if self.size < MOST_IMPLIED && self.all.insert(dir) {
            self.size += length;
        }
    }

    fn remove(&mut self, dir: &Path) {
        if self.all.remove(dir) {
            self.size -= dir.as_os_str().len();
        }
    }

    /// With all below it: those are behind it, one after another.
    fn remove_below(&mut self, dir: &Path) {
        while let Some(next) = self.all.range(dir.to_owned()..).next().filter(|d| d.starts_with(dir)).cloned() {
            self.remove(&next);
        }
    }
}

impl Times {
    fn note(&mut self, target: PathBuf, time: SystemTime) {
        if let Some(known) = self.all.get_mut(&target) {
            *known = time;
        } else if self.size < MOST_PATHS {
            self.size += target.as_os_str().len();
            self.all.insert(target, time);
        }
    }
}

/// Owner, mode and time of an entry.
struct Meta {
    uid: Option<u32>,
    gid: Option<u32>,
    mode: u32,
    time: SystemTime,
}

/// What the extended header of an entry says beside owner and size.
#[derive(Default)]
struct Extended {
    attributes: Vec<(String, Vec<u8>)>,
    time: Option<SystemTime>,
}

impl Extended {
    fn of(entry: &mut Entry<impl Read>) -> Result<Self, String> {
        let mut found = Self::default();
        let extensions = entry.pax_extensions().map_err(|e| e.to_string())?;
        for extension in extensions.into_iter().flatten().flatten() {
            let Ok(key) = extension.key() else { continue };
            if key.starts_with("GNU.sparse.") {
                return Err("sparse files in the PAX form are not ones this store can unpack".to_owned());
            }
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                found.attributes.push((name.to_owned(), extension.value_bytes().to_vec()));
            } else if key == "mtime" {
                found.time = extension.value().ok().and_then(time);
            }
        }
        Ok(found)
    }
}

/// A time of an extended header: seconds since the epoch, with a sign and a fraction if they have one.
fn time(text: &str) -> Option<SystemTime> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (before, seconds) = seconds.strip_prefix('-').map_or((false, seconds), |seconds| (true, seconds));
    let seconds: u64 = seconds.parse().ok().filter(|seconds| *seconds <= LATEST)?;
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let distance = Duration::new(seconds, fraction.parse().ok()?);
    if before {
        // what ext4 keeps
        UNIX_EPOCH.checked_sub(distance.min(Duration::from_secs(1 << 31)))
    } else {
        UNIX_EPOCH.checked_add(distance)
    }
}

impl Meta {
    fn of(header: &Header, extended: &Extended) -> io::Result<Self> {
        let id = |n: io::Result<u64>| n.ok().and_then(|n| u32::try_from(n).ok());
        let seconds = header.mtime().unwrap_or(0).min(LATEST);
        Ok(Self {
            uid: id(header.uid()),
            gid: id(header.gid()),
            mode: header.mode()? & 0o7777,
            time: extended.time.unwrap_or(UNIX_EPOCH + Duration::from_secs(seconds)),
        })
    }
}

/// What an archive came to.
#[derive(Debug, Default)]
pub struct Tallied {
    /// Bytes of its regular files.
    pub size: u64,
    /// Directories that have something in them, but no entry of their own.
    pub implied: BTreeSet<PathBuf>,
}

/// Unpacks a layer's archive into `root`.
pub fn entries(from: impl Read, limit: Limit, root: &Path) -> Result<Tallied, String> {
    let (guarded, head) = Guard::new(from, limit);
    let mut archive = Archive::new(guarded);
    let mut tree = Tree {
        root,
        known: None,
        implied: Implied::default(),
        lossy: false,
        limit,
        times: Times::default(),
        size: 0,
        piece: vec![0; PIECE],
    };
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
mod tests;
