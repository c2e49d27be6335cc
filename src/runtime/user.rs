//! `user[:group]` of an image or pod to numbers, by the `/etc/passwd` and `/etc/group` inside the container.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::types::{RuntimeError, User};

/// Largest passwd or group file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Reads a file below `rootfs`; links are followed inside it only. Missing files read as empty.
fn read_inside(rootfs: &Path, path: &str) -> String {
    let Ok(root) = File::options().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(rootfs) else {
        return String::new();
    };
    let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let Ok(fd) = openat2(&root, path, how) else { return String::new() };
    let mut text = String::new();
    let read = File::from(fd).take(MAX_FILE).read_to_string(&mut text);
    if read.is_err() { String::new() } else { text }
}

/// Resolves `user` (empty: root), which may be `uid`, `name`, `uid:gid`, `name:group`...
pub fn resolve_user(rootfs: &Path, user: &str) -> Result<User, RuntimeError> {
    let (user, group) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g)));
    let passwd = read_inside(rootfs, "etc/passwd");
    let groups = read_inside(rootfs, "etc/group");
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry = passwd
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 4 && number.map_or(f[0] == user, |n| f[2].parse() == Ok(n)));
    let mut found = match (&entry, number) {
        (Some(f), _) => {
            User { uid: f[2].parse().unwrap_or(0), gid: f[3].parse().unwrap_or(0), additional_gids: Vec::new() }
        }
        (None, Some(uid)) => User { uid, gid: 0, additional_gids: Vec::new() },
        (None, None) => {
            return Err(RuntimeError::Shim(format!("unable to find user {user}: no matching entries in passwd file")));
        }
    };
    if let Some(group) = group.filter(|g| !g.is_empty()) {
        let by_name = || {
            let line =
                groups.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.len() >= 3 && f[0] == group)?;
            line[2].parse().ok()
        };
        found.gid = group.parse().ok().or_else(by_name).ok_or_else(|| {
            RuntimeError::Shim(format!("unable to find group {group}: no matching entries in group file"))
        })?;
    } else if let Some(name) = entry.as_ref().map(|f| f[0]) {
        found.additional_gids = groups
            .lines()
            .map(|l| l.split(':').collect::<Vec<_>>())
            .filter(|f| f.len() >= 4 && f[3].split(',').any(|m| m == name))
            .filter_map(|f| f[2].parse().ok())
            .collect();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let root = std::env::temp_dir().join(format!("pikelet-user-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:\nweb:x:33:34::/:\n").unwrap();
        std::fs::write(root.join("etc/group"), "web:x:34:\nlog:x:4:web\n").unwrap();
        let user = |s| resolve_user(&root, s).map(|u| (u.uid, u.gid, u.additional_gids));
        assert_eq!(user("").unwrap(), (0, 0, vec![]));
        assert_eq!(user("web").unwrap(), (33, 34, vec![4]));
        assert_eq!(user("33").unwrap(), (33, 34, vec![4]));
        assert_eq!(user("1000").unwrap(), (1000, 0, vec![]));
        assert_eq!(user("web:log").unwrap(), (33, 4, vec![]));
        assert!(user("nobody-here").is_err());
        std::fs::remove_dir_all(root).unwrap();
    }
}
