//! From the initramfs to a root in memory, or to Debian's: modules, the card and which system it starts next, its data
//! partition.
//!
//! The kernel's first root cannot be left by `pivot_root(2)`, which containers are started with: so all moves to a tmpfs.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use nix::mount::MsFlags;

use super::upgrade::trial;
use super::{BOOT, Failure, card, console, debian, ext4, modules, mounts};

use crate::files;

/// Options of the FAT partition. It has no journal: a power cut may leave a file whose chain of clusters is broken off, and
/// the kernel's default is that the whole partition can be written no more once that is seen, which is when the file is
/// removed to make room (`errors=` in `Documentation/filesystems/vfat.rst`).
const BOOT_OPTIONS: &str = "utf8,fmask=0077,dmask=0077,errors=continue";
/// How long a card may take to appear.
const CARD: Duration = Duration::from_mins(1);
/// The root to be, before it is the root.
pub(super) const ROOT: &str = "/new-root";
/// Names of folders that are mounted, and move along.
const MOVED: [&str; 5] = ["proc", "sys", "dev", "var", "boot"];

/// Prepares the machine and starts the second run.
pub fn run() -> Result<Infallible, Failure> {
    mounts::kernel()?;
    let troubles = modules::load(Path::new("/lib/modules"));
    for trouble in &troubles {
        console::say(&format!("pikelet: {trouble}"));
    }
    let card = card::find(&fs::read_to_string("/proc/cmdline")?, CARD)?;
    // the whole of the appliance's /var is kept
    let data = if card.system.is_some() { debian::DATA } else { "/var" };
    for dir in [BOOT, data] {
        files::dir_kept(Path::new(dir), 0o755)?;
    }
    mounts::mount(&card.boot, BOOT, "vfat", MsFlags::MS_RDONLY | mounts::SAFE, BOOT_OPTIONS)?;
    // before anything that may fail
    match if card.system.is_some() { Ok(false) } else { trial::take_back() } {
        Ok(false) => {}
        Ok(true) => console::say("pikelet: a new system is being tried: the old one is next until this one works"),
        Err(error) => console::say(&format!("pikelet: which system is next: {error}")),
    }
    card.grow().map_err(|e| format!("growing the data partition {}: {e}", card.data.display()))?;
    ext4::mend(&card.data)?;
    mounts::mount(&card.data, data, "ext4", MsFlags::MS_NOATIME, "errors=remount-ro,commit=30")?;
    if let Some(grown) = ext4::grow(Path::new(data), &card.data)? {
        console::say(&format!("pikelet: data partition grown to {} MiB", grown >> 20));
    }
    if let Some(root) = &card.system {
        return debian::start(&card, root);
    }
    new_root()?;
    let program = CString::new("/bin/pikelet")?;
    let args = [c"pikelet", c"init", c"system"];
    let environment = [c"PATH=/sbin:/bin:/usr/sbin:/usr/bin", c"HOME=/root", c"LANG=C.UTF-8"];
    Ok(nix::unistd::execve(&program, &args, &environment).map_err(|e| format!("starting {program:?}: {e}"))?)
}

/// Moves what is needed further on to a tmpfs that becomes the root.
fn new_root() -> Result<(), Failure> {
    let root = Path::new(ROOT);
    files::new_dir(root, 0o755)?;
    mounts::mount("root", ROOT, "tmpfs", MsFlags::empty(), "mode=0755,size=25%")?;
    for dir in ["bin", "etc", "root", "run", "tmp", "lib", "opt", "home", "mnt"].iter().chain(&MOVED) {
        files::new_dir(&root.join(dir), 0o755)?;
    }
    copy(Path::new("/etc"), &root.join("etc"))?;
    files::copy(Path::new("/bin/pikelet"), &root.join("bin/pikelet"))?;
    for link in ["sbin", "usr"] {
        symlink(if link == "usr" { "." } else { "bin" }, root.join(link))?;
    }
    for dir in MOVED {
        mounts::move_to(Path::new("/").join(dir), root.join(dir))?;
    }
    enter(root)
}

/// Gives back the memory of the initramfs, and makes the new root the root.
pub(super) fn enter(root: &Path) -> Result<(), Failure> {
    for name in ["bin", "etc", "lib", "sbin", "init"] {
        let path = Path::new("/").join(name);
        let gone = if path.is_dir() && !path.is_symlink() { files::remove_tree(&path) } else { fs::remove_file(&path) };
        if let Err(error) = gone.or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) }) {
            console::say(&format!("pikelet: memory of {} not given back: {error}", path.display()));
        }
    }
    nix::unistd::chdir(root)?;
    mounts::move_to(".", "/")?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")?;
    Ok(())
}

/// Files and folders; nothing else is in the image's `/etc`.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let (entry, target) = entry.map(|e| (e.path(), to.join(e.file_name())))?;
        if entry.is_dir() {
            files::new_dir(&target, 0o755)?;
            copy(&entry, &target)?;
        } else {
            files::copy(&entry, &target)?;
        }
    }
    Ok(())
}
