//! Puts an image's system on the card beside the one that runs, which is left alone; it is tried at the next start.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use ring::digest::{Context, SHA256};

use super::choice::{Choice, Set};
use super::record::{Record, State};
use super::source::{Source, digest};
use super::{FOLDER, NOTE, Unfit};
use crate::files;
use crate::hex::hex;
use crate::init::{BOOT, Failure, boot, card, clock, fat, image};
use crate::machine::disk;

/// What a system cannot do without, beside its kernel.
const NEEDED: [&str; 3] = ["initrd.zst", COMMAND_LINE, NOTE];
const COMMAND_LINE: &str = "cmdline.txt";
/// What is fetched, and the FAT partition that was taken out of it.
const FETCHED: &str = "/var/lib/pikelet/upgrade/image";
const TAKEN: &str = "/var/lib/pikelet/upgrade/boot";
/// Bytes that are copied at once.
const CHUNK: usize = 64 << 10;

/// Puts the image's system on the card and lets the firmware start it next. What runs is not changed: until the new system
/// has shown that it works, every start but the first is the old one's.
/// `asked`: by the Node's annotation.
pub fn install(source: &Source, asked: bool) -> Result<Record, Failure> {
    let kernel = fs::read_to_string("/proc/cmdline")?;
    let running = Set::running(&kernel).ok_or("this card has one system only: write it anew with pikelet flash")?;
    let folder = Path::new(FOLDER);
    files::dir(folder, 0o700).map_err(|e| format!("creating {FOLDER}: {e}"))?;
    let lock = File::open(folder)?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| "another upgrade is under way")?;
    let before = Choice::read(Path::new(BOOT))?;
    if before != (Choice { next: running, trial: None }) {
        return Err("an upgrade is being tried: wait until it is confirmed, or has failed".into());
    }
    let done = put(source, running, &kernel, asked);
    if let Err(error) = clear() {
        eprintln!("pikelet: {error}");
    }
    done
}

/// Removes what upgrades need on the way.
pub fn clear() -> Result<(), Failure> {
    for file in [FETCHED, TAKEN] {
        if let Err(error) = fs::remove_file(file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(format!("removing {file}: {error}").into());
        }
    }
    Ok(())
}

/// Does it; `kernel` is the command line of the system that runs.
fn put(source: &Source, running: Set, kernel: &str, asked: bool) -> Result<Record, Failure> {
    let mut file = source.open(Path::new(FETCHED), asked)?;
    let taken = image::boot_partition(&source.to_string(), &mut file, Path::new(TAKEN));
    // of the very bytes that were unpacked
    let sha256 = file.finish().map_err(|e| format!("image {source}: {e}"))?;
    source.check(&sha256)?;
    let mut part = taken?;
    if source.is_url() {
        // the room is needed
        fs::remove_file(FETCHED)?;
    }
    let size = part.metadata()?.len();
    let system = fat::open(&mut part, 0, size)?;
    let root = system.root_dir();
    let no_folder = |_| Unfit("the image has no folder a: it is of before upgrades".to_owned());
    let from = root.open_dir(Set::A.folder()).map_err(no_folder)?;
    let mut names = names(&from)?;
    fits(&names, &folder_names(&Path::new(BOOT).join(running.folder()))?)?;
    // with it a system is whole
    names.sort_by_key(|name| name == NOTE);
    let text = |name: &str| {
        let mut text = String::new();
        from.open_file(name)?.read_to_string(&mut text).map(|_| text)
    };
    let note = text(NOTE)?;
    if !source.may_be_older() {
        not_older(made(&note), clock::made())?;
    }
    let new = running.other();
    let line = command_line(&text(COMMAND_LINE)?, &card::wanted(kernel)?, new);
    let before = Record::read(Path::new(FOLDER)).and_then(|record| record.asked);
    let record = Record {
        image: source.to_string(),
        asked: if asked { Some(sha256.clone()) } else { before },
        sha256,
        set: new.folder().to_owned(),
        system: note.lines().next().unwrap_or_default().to_owned(),
        state: State::Trying,
        reason: String::new(),
        told: false,
    };
    boot::writable(|| {
        let to = Path::new(BOOT).join(new.folder());
        empty(&to)?;
        for name in &names {
            if name == COMMAND_LINE {
                write(&mut line.as_bytes(), &to.join(name))?;
            } else {
                write(&mut from.open_file(name)?, &to.join(name))?;
            }
        }
        for folder in [to.as_path(), Path::new(BOOT)] {
            files::sync_dir(folder).map_err(|e| format!("writing {}: {e}", folder.display()))?;
        }
        // only now is there something to choose
        record.write(Path::new(FOLDER))?;
        Choice { next: new, trial: Some(new) }.write(Path::new(BOOT))
    })?;
    Ok(record)
}

/// Names of the files in a folder of an image.
fn names<T: fatfs::ReadWriteSeek>(folder: &fatfs::Dir<'_, T>) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for entry in folder.iter() {
        let entry = entry?;
        if entry.is_file() {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}

/// Names of the files in a folder of the card.
fn folder_names(folder: &Path) -> Result<Vec<String>, Failure> {
    let entries = fs::read_dir(folder).map_err(|e| format!("reading {}: {e}", folder.display()))?;
    Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
}

/// Says what an image lacks to be started in place of the system that has these files.
fn fits(names: &[String], own: &[String]) -> Result<(), Unfit> {
    let mut missing: Vec<&str> = NEEDED.into_iter().filter(|needed| !names.iter().any(|name| name == needed)).collect();
    let (new, old) = (kernel(names), kernel(own));
    if new.is_none() {
        missing.push(old.unwrap_or("a kernel"));
    }
    if !missing.is_empty() {
        return Err(Unfit(format!("the image lacks {} in its folder a", missing.join(", "))));
    }
    // the card's config.txt names it, and stays
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        return Err(Unfit(format!(
            "the image is for other processors: its kernel is {new}, and this board starts {old}"
        )));
    }
    // boards are known by their device trees
    let trees = own.iter().filter(|name| Path::new(name).extension().is_some_and(|e| e == "dtb"));
    let fewer: Vec<&str> = trees.filter(|tree| !names.contains(tree)).map(String::as_str).collect();
    if fewer.is_empty() {
        return Ok(());
    }
    Err(Unfit(format!("the image is for other boards: it lacks {}", fewer.join(", "))))
}

/// When an image says it was made, in seconds since 1970: a line of its note.
fn made(note: &str) -> Option<u64> {
    note.lines().find_map(|line| line.strip_prefix("made ")?.trim().parse().ok())
}

/// A hole that was mended is not opened again by an older image. `running`: when the system that runs was made, 0 if that is
/// not known.
fn not_older(image: Option<u64>, running: u64) -> Result<(), Unfit> {
    match image {
        Some(made) if made >= running => Ok(()),
        None if running == 0 => Ok(()),
        _ => Err(Unfit(
            "the image is older than the system that runs, or does not say when it was made: if it is meant, write \
             IMAGE#sha256:HEX,older"
                .to_owned(),
        )),
    }
}

/// The kernel among these files: `kernel.img` of the oldest boards, `kernel7.img` of the Pi 2, `kernel8.img` of 64 bits.
fn kernel(names: &[String]) -> Option<&str> {
    let mut names = names.iter().map(String::as_str);
    names.find(|name| name.starts_with("kernel") && Path::new(name).extension().is_some_and(|e| e == "img"))
}

/// The image's command line, for this card and this system on it.
fn command_line(line: &str, identifier: &str, set: Set) -> String {
    let own = ["pikelet.disk=", "pikelet.set="];
    let words = line.split_whitespace().filter(|word| !own.iter().any(|key| word.starts_with(key)));
    let words: Vec<&str> = words.collect();
    format!("{} pikelet.disk={identifier} pikelet.set={}\n", words.join(" "), set.folder())
}

/// Takes out what an upgrade that the power ended has left in the folder that is not in use, before anything else is written
/// to the partition: what is broken off there may lead to clusters that the next file is given.
pub fn sweep(running: Set) -> Result<(), Failure> {
    let folder = Path::new(BOOT).join(running.other().folder());
    if !is_unfinished(&folder) {
        return Ok(());
    }
    boot::writable(|| empty(&folder))
}

/// True of a folder with files, but not the one that is written last and removed first.
fn is_unfinished(folder: &Path) -> bool {
    folder_names(folder).is_ok_and(|names| !names.is_empty() && !names.iter().any(|name| name == NOTE))
}

/// Makes the folder, or takes out the system that is there, or what an upgrade has left. The clusters are used anew only when
/// the card knows that they are free: else two files could have the same after a power cut.
fn empty(folder: &Path) -> Result<(), Failure> {
    files::dir_kept(folder, 0o700).map_err(|e| format!("creating {}: {e}", folder.display()))?;
    let (note, rest): (Vec<_>, Vec<_>) = folder_names(folder)?.into_iter().partition(|name| name == NOTE);
    for names in [note, rest] {
        for name in names {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(|e| format!("removing {} of an earlier upgrade: {e}", path.display()))?;
        }
        files::sync_dir(folder).map_err(|e| format!("writing {}: {e}", folder.display()))?;
    }
    Ok(())
}

/// Writes a file to the card, for good, and compares what the card gives back.
fn write(from: &mut dyn Read, path: &Path) -> Result<(), Failure> {
    let failed = |e: std::io::Error| format!("writing {}: {e}", path.display());
    let mut file = files::create(path, 0o700).map_err(failed)?;
    let (mut written, mut buffer) = (Context::new(&SHA256), vec![0; CHUNK]);
    let mut first = true;
    loop {
        let read = image::fill(from, &mut buffer).map_err(|e| format!("reading the image: {e}"))?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read]).map_err(failed)?;
        written.update(&buffer[..read]);
        // its place is known from now on, so that what a power cut leaves is removed with it
        if std::mem::take(&mut first) {
            file.sync_all().map_err(failed)?;
        }
    }
    file.sync_all().map_err(failed)?;
    disk::forget(&file).map_err(failed)?;
    drop(file);
    let back = File::open(path).and_then(|mut file| digest(&mut file)).map_err(failed)?;
    if back == hex(written.finish().as_ref()) {
        return Ok(());
    }
    Err(format!("{}: the card gives back something else than was written: it is broken", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::folder::Folder;

    #[test]
    fn a_command_line_is_made_for_the_card() {
        let made = command_line("console=tty0 pikelet.disk=0 quiet pikelet.set=a\n", "70696b65", Set::B);
        assert_eq!(made, "console=tty0 quiet pikelet.disk=70696b65 pikelet.set=b\n");
    }

    #[test]
    fn a_folder_without_its_note_is_emptied() {
        let dir = Folder::new();
        let folder = dir.path().join("b");
        assert!(!is_unfinished(&folder));
        empty(&folder).unwrap();
        assert!(!is_unfinished(&folder));
        for name in ["initrd.zst", NOTE] {
            fs::write(folder.join(name), name).unwrap();
            assert_eq!(is_unfinished(&folder), name != NOTE);
        }
        empty(&folder).unwrap();
        assert_eq!(folder_names(&folder).unwrap(), [""; 0]);
    }

    #[test]
    fn an_older_image_is_no_upgrade() {
        assert_eq!(made("pikelet 0.1.0\nmade 1764000000\n"), Some(1_764_000_000));
        assert_eq!([made("pikelet"), made("made of air")], [None, None]);
        assert!(not_older(Some(5), 5).is_ok() && not_older(None, 0).is_ok());
        assert!(not_older(Some(4), 5).unwrap_err().to_string().contains(",older"));
        assert!(not_older(None, 5).is_err());
    }

    #[test]
    fn an_image_for_other_boards_is_refused() {
        let names = |more: &[&str]| NEEDED.iter().chain(more).map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let refusal = |more: &[&str], own: &[String]| fits(&names(more), own).unwrap_err().to_string();
        let own = names(&["kernel8.img", "bcm2711-rpi-4-b.dtb"]);
        assert!(fits(&names(&["kernel8.img", "bcm2711-rpi-4-b.dtb", "bcm2712.dtb"]), &own).is_ok());
        assert!(refusal(&["kernel8.img", "bcm2712.dtb"], &own).contains("lacks bcm2711-rpi-4-b.dtb"));
        assert!(refusal(&["bcm2711-rpi-4-b.dtb"], &own).contains("lacks kernel8.img"));
        assert!(fits(&own[1..], &own).unwrap_err().to_string().contains("lacks initrd.zst"));
        // of another processor, even if it knew the board
        let error = refusal(&["kernel7.img", "bcm2711-rpi-4-b.dtb"], &own);
        assert!(error.contains("its kernel is kernel7.img, and this board starts kernel8.img"), "{error}");
        let zero = names(&["kernel.img", "bcm2835-rpi-zero.dtb"]);
        assert!(refusal(&["kernel7.img", "bcm2836-rpi-2-b.dtb"], &zero).contains("for other processors"));
    }
}
