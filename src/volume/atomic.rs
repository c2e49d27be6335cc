//! The atomic writer: readers see the old files or the new ones, never half of either.
//!
//! Layout as kubelet's: files in a timestamped directory, `..data` pointing at it, and a link per top-level name.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

const DATA: &str = "..data";

/// A file's content and mode.
pub type Files = BTreeMap<String, (Vec<u8>, u32)>;

fn unchanged(dir: &Path, files: &Files) -> bool {
    let data = dir.join(DATA);
    let same = |(name, (content, mode)): (&String, &(Vec<u8>, u32))| {
        let path = data.join(name);
        fs::read(&path).is_ok_and(|old| old == *content)
            && fs::metadata(&path).is_ok_and(|m| m.permissions().mode() & 0o777 == mode & 0o777)
    };
    data.exists() && files.iter().all(same) && count(&data) == files.len()
}

fn count(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { count(&e.path()) } else { 1 }).sum()
}

/// Makes `files` (relative names) the content of `dir`. Nothing is written when nothing changed.
pub fn write(dir: &Path, files: &Files, group: Option<i64>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    if unchanged(dir, files) {
        return Ok(());
    }
    let group = group.and_then(|g| u32::try_from(g).ok());
    let name = format!("..{}", jiff::Timestamp::now().as_nanosecond());
    let fresh = dir.join(&name);
    fs::create_dir(&fresh)?;
    for (file, (content, mode)) in files {
        let path = fresh.join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content)?;
        let mut mode = *mode;
        if group.is_some() {
            chown(&path, None, group)?;
            mode |= 0o040;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    let next = dir.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&name, &next)?;
    fs::rename(&next, dir.join(DATA))?;
    let tops: Vec<&str> = files.keys().filter_map(|f| f.split('/').next()).collect();
    for top in &tops {
        let link = dir.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(top), &link)?;
        }
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !tops.contains(&name.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    match old {
        Some(old) => fs::remove_dir_all(dir.join(old)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter().map(|(k, v)| ((*k).to_owned(), (v.as_bytes().to_vec(), 0o644))).collect()
    }

    #[test]
    fn content_is_swapped_whole_and_stale_names_go() {
        let dir = std::env::temp_dir().join(format!("pikelet-atomic-{}", std::process::id()));
        write(&dir, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        let before = fs::read_link(dir.join(DATA)).unwrap();
        write(&dir, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), before, "unchanged content is not rewritten");
        write(&dir, &files(&[("a", "3")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join("d").exists() && !dir.join(before).exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
