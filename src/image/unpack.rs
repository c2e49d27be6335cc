//! One layer: decompressed, verified and unpacked into a directory, as a stream.
//!
//! Rules: OCI Image Layer (whiteouts) and the kernel's overlayfs (character device 0/0, `trusted.overlay.opaque`).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::fchownat;
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

/// Counts and hashes what is read through it.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

fn digest(hash: Sha256) -> String {
    use std::fmt::Write;
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        // writing to a String cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `sha256:<hex>` of bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    digest(Sha256::new_with_prefix(bytes))
}

/// Unpacks a layer into `into`, checking the blob's digest and the diff id; returns the bytes of regular files.
pub fn unpack(blob: impl Read, media_type: &str, blob_digest: &str, diff_id: &str, into: &Path) -> Result<u64, String> {
    let mut blob = Hashed { inner: blob, hash: Sha256::new() };
    let decoded: Box<dyn Read + '_> = if media_type.ends_with("gzip") {
        Box::new(flate2::read::MultiGzDecoder::new(&mut blob))
    } else if media_type.ends_with("zstd") {
        Box::new(ruzstd::decoding::StreamingDecoder::new(&mut blob).map_err(|e| format!("zstd: {e}"))?)
    } else if media_type.ends_with("tar") {
        Box::new(&mut blob)
    } else {
        return Err(format!("layer media type {media_type:?} is not one this store can unpack"));
    };
    let mut plain = Hashed { inner: decoded, hash: Sha256::new() };
    let size = entries(&mut plain, into)?;
    io::copy(&mut plain, &mut io::sink()).map_err(|e| format!("reading layer {blob_digest}: {e}"))?;
    let got = digest(plain.hash.clone());
    drop(plain);
    io::copy(&mut blob, &mut io::sink()).map_err(|e| format!("reading layer {blob_digest}: {e}"))?;
    let got_blob = digest(blob.hash);
    if got_blob != blob_digest {
        return Err(format!("layer {blob_digest} arrived as {got_blob}: digest does not match"));
    }
    if got != diff_id {
        return Err(format!("layer {blob_digest} unpacks to {got}, its image says {diff_id}: digest does not match"));
    }
    Ok(size)
}

/// The parts of an entry's path; refuses those that would leave the root.
fn parts(path: &Path) -> Result<Vec<&OsStr>, String> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(part) => Some(Ok(part)),
            Component::CurDir | Component::RootDir => None,
            _ => Some(Err(format!("entry {} would leave the root: refused", path.display()))),
        })
        .collect()
}

/// The directory of an entry below `root`, made where missing. A link on the way is refused: it could lead out.
fn parent(root: &Path, parts: &[&OsStr], path: &Path) -> Result<PathBuf, String> {
    let mut dir = root.to_owned();
    for part in parts {
        dir.push(part);
        match fs::symlink_metadata(&dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                return Err(format!("entry {} goes through {}, no directory: refused", path.display(), dir.display()));
            }
            Err(_) => fs::create_dir(&dir).map_err(|e| format!("creating {}: {e}", dir.display()))?,
        }
    }
    Ok(dir)
}

fn entries(from: impl Read, root: &Path) -> Result<u64, String> {
    let mut archive = Archive::new(from);
    let mut size = 0;
    let mut times = Vec::new();
    let broken = |e: io::Error| format!("reading layer: {e}");
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        let names = parts(&path)?;
        let failed = |what: &str, e: &dyn std::fmt::Display| format!("{what} {}: {e}", path.display());
        let header = entry.header().clone();
        let Some((name, above)) = names.split_last() else { continue };
        let dir = parent(root, above, &path)?;
        if name.as_encoded_bytes().starts_with(b".wh.") {
            whiteout(&dir, name).map_err(|e| failed("whiteout", &e))?;
            continue;
        }
        let target = dir.join(name);
        let kind = header.entry_type();
        if let Ok(found) = fs::symlink_metadata(&target) {
            match (found.is_dir(), kind) {
                (true, EntryType::Directory) => {}
                (true, _) => fs::remove_dir_all(&target).map_err(|e| failed("replacing", &e))?,
                (false, _) => fs::remove_file(&target).map_err(|e| failed("replacing", &e))?,
            }
        }
        let link = entry.link_name().map_err(broken)?.map(std::borrow::Cow::into_owned);
        let attributes: Vec<(String, Vec<u8>)> = entry
            .pax_extensions()
            .map_err(broken)?
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| Some((e.key().ok()?.strip_prefix("SCHILY.xattr.")?.to_owned(), e.value_bytes().to_vec())))
            .collect();
        let node = |kind: SFlag| {
            let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0).into();
            let device = nix::sys::stat::makedev(number(header.device_major()), number(header.device_minor()));
            mknod(&target, kind, Mode::from_bits_truncate(0o600), device).map_err(io::Error::from)
        };
        match kind {
            EntryType::Directory if target.is_dir() => {}
            EntryType::Directory => fs::create_dir(&target).map_err(|e| failed("creating", &e))?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut options = File::options();
                let mut file = options
                    .write(true)
                    .create_new(true)
                    .custom_flags(nix::libc::O_NOFOLLOW)
                    .open(&target)
                    .map_err(|e| failed("creating", &e))?;
                size += io::copy(&mut entry, &mut file).map_err(|e| failed("writing", &e))?;
            }
            EntryType::Symlink => symlink(link.unwrap_or_default(), &target).map_err(|e| failed("linking", &e))?,
            EntryType::Link => {
                let link = link.unwrap_or_default();
                let from = parts(&link)?;
                let Some((name, above)) = from.split_last() else { return Err(failed("linking", &"no target")) };
                let source = parent(root, above, &link)?.join(name);
                fs::hard_link(source, &target).map_err(|e| failed("linking", &e))?;
                continue;
            }
            EntryType::Char => node(SFlag::S_IFCHR).map_err(|e| failed("creating device", &e))?,
            EntryType::Block => node(SFlag::S_IFBLK).map_err(|e| failed("creating device", &e))?,
            EntryType::Fifo => node(SFlag::S_IFIFO).map_err(|e| failed("creating fifo", &e))?,
            EntryType::XGlobalHeader => continue,
            other => return Err(failed("entry", &format!("type {other:?} is not one this store can unpack"))),
        }
        let id = |n: io::Result<u64>| n.ok().and_then(|n| u32::try_from(n).ok());
        let (uid, gid) = (id(header.uid()).map(Into::into), id(header.gid()).map(Into::into));
        fchownat(AT_FDCWD, &target, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| failed("owner of", &e))?;
        if kind != EntryType::Symlink {
            use std::os::unix::fs::PermissionsExt;
            let mode = header.mode().map_err(broken)? & 0o7777;
            fs::set_permissions(&target, fs::Permissions::from_mode(mode)).map_err(|e| failed("mode of", &e))?;
        }
        for (name, value) in attributes {
            super::xattr::set(&target, &name, &value).map_err(|e| failed("attribute of", &e))?;
        }
        if kind != EntryType::Symlink {
            times.push((target, header.mtime().unwrap_or(0)));
        }
    }
    for (target, seconds) in times.into_iter().rev() {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        // a fifo or device cannot be opened for this, and a later entry may have replaced the file
        let _ = File::options()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(&target)
            .and_then(|f| f.set_modified(time));
    }
    Ok(size)
}

fn whiteout(dir: &Path, name: &OsStr) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    if name == ".wh..wh..opq" {
        return super::xattr::set(dir, "trusted.overlay.opaque", b"y");
    }
    let target = dir.join(OsStr::from_bytes(&name.as_bytes()[4..]));
    match fs::symlink_metadata(&target) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(&target)?,
        Ok(_) => fs::remove_file(&target)?,
        Err(_) => {}
    }
    mknod(&target, SFlag::S_IFCHR, Mode::empty(), 0).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(unpack(tar.as_slice(), "x.tar", &digest, &digest, &dir).unwrap(), 2);
        assert_eq!(fs::read(dir.join("a/b")).unwrap(), b"hi");
        let error = unpack(tar.as_slice(), "x.tar", &digest, "sha256:0", &dir).unwrap_err();
        assert!(error.contains("does not match"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn nothing_leaves_the_root() {
        let dir = root("escape");
        assert!(entries(layer("../evil", None).as_slice(), &dir).is_err());
        entries(layer("out", Some("/tmp")).as_slice(), &dir).unwrap();
        assert!(entries(layer("out/evil", None).as_slice(), &dir).is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_whiteout_is_a_character_device() {
        use std::os::unix::fs::FileTypeExt;
        let dir = root("whiteout");
        entries(layer("a/.wh.gone", None).as_slice(), &dir).unwrap();
        assert!(fs::symlink_metadata(dir.join("a/gone")).unwrap().file_type().is_char_device());
        fs::remove_dir_all(dir).unwrap();
    }
}
