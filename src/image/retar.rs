//! An unpacked layer as a tar archive again, the same each time: by name, with overlayfs' marks as whiteouts.
//!
//! It is what the layer's own archive says, but not byte for byte: the order of entries and the form of headers are lost
//! with unpacking, so the diff id is as a rule another one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::xattr;

/// The mark of a directory that hides what is below it.
const OPAQUE: &str = "trusted.overlay.opaque";

/// Writes the layer unpacked in `root`.
pub fn write(root: &Path, out: impl Write) -> io::Result<()> {
    let mut layer = Layer { tar: Builder::new(out), root, links: HashMap::new() };
    layer.directory(Path::new(""))?;
    layer.tar.into_inner()?.flush()
}

struct Layer<'a, W: Write> {
    tar: Builder<W>,
    root: &'a Path,
    /// First names of files with several, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Layer<'_, W> {
    /// What is in a directory, given by its path in the layer.
    fn directory(&mut self, dir: &Path) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(dir))? {
            names.push(entry?.file_name());
        }
        names.sort();
        for name in names {
            let path = dir.join(&name);
            self.entry(&path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> io::Result<()> {
        let file = self.root.join(path);
        let meta = fs::symlink_metadata(&file)?;
        let kind = meta.file_type();
        if kind.is_char_device() && meta.rdev() == 0 {
            let name = [b".wh.", path.file_name().unwrap_or_default().as_bytes()].concat();
            return self.empty(&path.with_file_name(OsStr::from_bytes(&name)));
        }
        let several = !meta.is_dir() && meta.nlink() > 1;
        if several && let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
            let mut header = header(&meta, EntryType::Link);
            return self.tar.append_link(&mut header, path, first);
        }
        self.attributes(&file)?;
        if meta.is_dir() {
            self.tar.append_data(&mut header(&meta, EntryType::Directory), path, io::empty())?;
            if xattr::get(&file, OPAQUE.as_ref())?.as_deref() == Some(b"y") {
                self.empty(&path.join(".wh..wh..opq"))?;
            }
            return self.directory(path);
        }
        if meta.is_file() {
            let mut header = header(&meta, EntryType::Regular);
            header.set_size(meta.len());
            self.tar.append_data(&mut header, path, File::open(&file)?.take(meta.len()))?;
        } else if kind.is_symlink() {
            self.tar.append_link(&mut header(&meta, EntryType::Symlink), path, fs::read_link(&file)?)?;
        } else {
            let kind = match () {
                () if kind.is_char_device() => EntryType::Char,
                () if kind.is_block_device() => EntryType::Block,
                () if kind.is_fifo() => EntryType::Fifo,
                // no archive has sockets
                () => return Ok(()),
            };
            let mut header = header(&meta, kind);
            header.set_device_major(nix::sys::stat::major(meta.rdev()) as u32)?;
            header.set_device_minor(nix::sys::stat::minor(meta.rdev()) as u32)?;
            self.tar.append_data(&mut header, path, io::empty())?;
        }
        if several {
            self.links.insert((meta.dev(), meta.ino()), path.to_owned());
        }
        Ok(())
    }

    /// A mark.
    fn empty(&mut self, path: &Path) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        self.tar.append_data(&mut header, path, io::empty())
    }

    /// Extended attributes, but for those of overlayfs.
    fn attributes(&mut self, file: &Path) -> io::Result<()> {
        let mut found = Vec::new();
        for name in xattr::list(file)? {
            if name.as_bytes().starts_with(b"trusted.overlay.") {
                continue;
            }
            let Some(value) = xattr::get(file, &name)? else { continue };
            let name =
                name.into_string().map_err(|n| io::Error::other(format!("attribute {}: not a text", n.display())))?;
            found.push((format!("SCHILY.xattr.{name}"), value));
        }
        if found.is_empty() {
            return Ok(());
        }
        found.sort();
        self.tar.append_pax_extensions(found.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

fn header(meta: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(meta.mode() & 0o7777);
    header.set_uid(meta.uid().into());
    header.set_gid(meta.gid().into());
    // links have no time of their own here: it would be that of unpacking
    let time = if kind == EntryType::Symlink { 0 } else { meta.mtime() };
    header.set_mtime(u64::try_from(time).unwrap_or_default());
    header
}
