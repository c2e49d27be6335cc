//! Who a process runs as: `user[:group]` of an image or pod, resolved with the image's own files.

use std::path::Path;

use super::rooted;
use super::types::{RuntimeError, User};

/// Resolves an image's or pod's `user[:group]` (names or numbers) with the `/etc/passwd` and `/etc/group` of `rootfs`.
/// Names are looked up below `rootfs` without following links out of it.
pub fn resolve_user(rootfs: &Path, user: &str) -> Result<User, RuntimeError> {
    let read = |path: &str| {
        rooted::read_file(rootfs, path).map(Option::unwrap_or_default).map_err(|source| RuntimeError::Io {
            what: format!("reading {path} of the image at {}", rootfs.display()),
            source,
        })
    };
    lookup(user, &read("/etc/passwd")?, &read("/etc/group")?).map_err(RuntimeError::Shim)
}

/// The home directory of a user by the `/etc/passwd` of `rootfs`; `/` where that does not say.
pub fn home(rootfs: &Path, uid: u32) -> String {
    let text = rooted::read_file(rootfs, "/etc/passwd").ok().flatten().unwrap_or_default();
    let home =
        passwd(&text).find(|entry| entry.uid == uid).map(|entry| entry.home).filter(|home| home.starts_with('/'));
    home.unwrap_or("/").to_owned()
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut field = line.split(':');
        let name = field.next()?;
        let uid = field.nth(1)?.parse().ok()?;
        let gid = field.next()?.parse().ok()?;
        Some(Passwd { name, uid, gid, home: field.nth(1).unwrap_or_default() })
    })
}

fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut field = line.split(':');
        let name = field.next()?;
        let gid = field.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: field.next().unwrap_or_default() })
    })
}

fn lookup(user: &str, passwd_text: &str, group_text: &str) -> Result<User, String> {
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|g| !g.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number: Option<u32> = name.parse().ok();
    let entry = passwd(passwd_text).find(|e| e.name == name || number == Some(e.uid));
    let (uid, mut gid) = match (&entry, number) {
        (_, Some(uid)) => (uid, entry.as_ref().map_or(0, |e| e.gid)),
        (Some(entry), None) => (entry.uid, entry.gid),
        (None, None) => {
            return Err(format!("unable to find user {name}: no such entry in the image's /etc/passwd; use a number"));
        }
    };
    let mut additional_gids = Vec::new();
    if let Some(group) = group {
        let found = groups(group_text).find(|g| g.name == group).map(|g| g.gid);
        gid = match found.or_else(|| group.parse().ok()) {
            Some(gid) => gid,
            None => {
                return Err(format!("unable to find group {group}: no such entry in the image's /etc/group"));
            }
        };
    } else if let Some(entry) = &entry {
        let member_of = groups(group_text).filter(|g| g.members.split(',').any(|m| m.trim() == entry.name));
        additional_gids = member_of.map(|g| g.gid).filter(|&g| g != gid).collect();
    }
    Ok(User { uid, gid, additional_gids })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:web\nlogs:x:50:other,web\n7:x:70:\n";

    fn user(uid: u32, gid: u32, more: &[u32]) -> User {
        User { uid, gid, additional_gids: more.to_vec() }
    }

    #[test]
    fn names_and_numbers() {
        let find = |text| lookup(text, PASSWD, GROUP).unwrap();
        assert_eq!(find(""), user(0, 0, &[]));
        assert_eq!(find("web"), user(33, 34, &[50]));
        assert_eq!(find("33"), user(33, 34, &[50]));
        assert_eq!(find("1000"), user(1000, 0, &[]));
        assert_eq!(find("1000:2000"), user(1000, 2000, &[]));
        assert_eq!(find("web:logs"), user(33, 50, &[]));
        assert_eq!(find("web:7"), user(33, 70, &[]));
    }

    #[test]
    fn unknown_names_are_errors() {
        assert!(lookup("nobody", PASSWD, GROUP).unwrap_err().contains("nobody"));
        assert!(lookup("web:nogroup", PASSWD, GROUP).unwrap_err().contains("nogroup"));
    }
}
