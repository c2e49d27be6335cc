//! The card with Debian's system on it (`VARIANT=debian`): what comes before systemd, and what tells a person how it is.
//!
//! From the initramfs `start` makes a root of the card's read-only one and an overlay, writes what the card's settings mean as
//! Debian's own files (`files.rs`), and becomes systemd, which so finds all as if it had always been there. Later a unit
//! runs `watch.rs`: the consoles' screen, and `pikelet-status.txt`. At the end systemd becomes `off.rs`. Rules about keys and
//! `WiFi` are in `access.rs`.

pub(super) mod access;
mod files;
pub(crate) mod off;
pub(super) mod watch;

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::MsFlags;
use nix::unistd::sethostname;

use super::card::Card;
use super::settings::{self, Variant};
use super::{BOOT, Failure, clock, console, early, mounts, secrets, status, system};

use crate::files::Durability;

/// Where the data partition is until there is a root.
pub(super) const DATA: &str = "/data";
/// Where it is then.
const KEPT: &str = "/var/lib/pikelet";
/// The card's root, which nobody writes to.
const LOWER: &str = "/lower";
/// What is changed of it.
const CHANGES: &str = "/changes";
/// What of it is changed in memory takes at most this.
const SIZE: &str = "mode=0755,size=50%";

/// Goes on as systemd. The FAT and the data partition are mounted.
pub(super) fn start(card: &Card, root: &Path) -> Result<Infallible, Failure> {
    clock::floor(&card.data)?;
    let keep = settings::read(Path::new(BOOT), "", Variant::Debian).board.keep_changes == Some(true);
    for dir in [LOWER, CHANGES, "/run"] {
        crate::files::dir_kept(Path::new(dir), 0o755)?;
    }
    mounts::mount(root, LOWER, "squashfs", MsFlags::MS_RDONLY, "")?;
    let changes = if keep {
        Path::new(DATA).join("system")
    } else {
        mounts::mount("changes", CHANGES, "tmpfs", MsFlags::empty(), SIZE)?;
        CHANGES.into()
    };
    let (upper, work) = (changes.join("upper"), changes.join("work"));
    let new = Path::new(early::ROOT);
    for dir in [new, &upper, &work] {
        crate::files::dir_kept(dir, 0o755).map_err(|e| format!("creating {}: {e}", dir.display()))?;
    }
    let options = format!("lowerdir={LOWER},upperdir={},workdir={}", upper.display(), work.display());
    mounts::mount("root", early::ROOT, "overlay", MsFlags::empty(), &options)?;
    mounts::mount("run", "/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755,size=20%")?;
    // takes no memory
    crate::files::dir_kept(Path::new(off::ROOT), 0o755)?;
    mounts::bind(LOWER, off::ROOT)?;
    for dir in ["proc", "sys", "dev", "run", "boot"] {
        mounts::move_to(Path::new("/").join(dir), new.join(dir))?;
    }
    mounts::move_to(DATA, new.join(KEPT.trim_start_matches('/')))?;
    early::enter(new)?;
    settle()?;
    let environment = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", c"HOME=/root", c"TERM=linux"];
    let init = c"/sbin/init";
    Ok(nix::unistd::execve(init, &[init], &environment).map_err(|e| format!("starting {init:?}: {e}"))?)
}

/// Makes the settings the system's.
fn settle() -> Result<(), Failure> {
    let (_, serial) = status::board();
    system::identify(&serial)?;
    let found = settings::read(Path::new(BOOT), &secrets::kept(), Variant::Debian);
    if let Some(name) = &found.name {
        sethostname(name)?;
    }
    for mistake in &found.mistakes {
        console::say(&format!("MISTAKE   {mistake}"));
    }
    mounts::kept_logs()?;
    for file in files::of(&found, &crate::machine::hostname())? {
        file.settle().map_err(|e| format!("{}: {e}", file.path))?;
    }
    crate::files::dir_kept(Path::new(files::WANTED), 0o755)?;
    for (unit, wanted) in files::units(&found) {
        let link = format!("{}/{unit}", files::WANTED);
        // an instance is that of its template
        let of = unit.split_once('@').map_or_else(|| unit.to_owned(), |(name, _)| format!("{name}@.service"));
        let made = || {
            remove(Path::new(&link))?;
            if wanted { symlink(format!("/usr/lib/systemd/system/{of}"), &link) } else { Ok(()) }
        };
        made().map_err(|e| format!("{link}: {e}"))?;
    }
    Ok(())
}

/// Removes a file of an earlier start, as what is changed may outlive one.
fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

impl files::File {
    /// Makes it what the settings say.
    fn settle(&self) -> io::Result<()> {
        let path = Path::new(self.path);
        remove(path)?;
        let Some(text) = &self.text else { return Ok(()) };
        if let Some(folder) = path.parent() {
            let mode = if self.mode == 0o600 { 0o700 } else { 0o755 };
            crate::files::dir_kept(folder, mode)?;
        }
        crate::files::write(path, text.as_bytes(), self.mode, Durability::Volatile)
    }
}
