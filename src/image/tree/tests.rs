//! Layers that are odd, old or hostile.

use super::*;
use crate::image::guard::ENTRY_HEAD;

#[test]
fn paths_are_kept_once_and_bounded() {
    let (mut times, mut implied) = (Times::default(), Implied::default());
    for _ in 0..3 {
        times.note("a".into(), UNIX_EPOCH);
        implied.insert("a".into());
    }
    assert_eq!((times.all.len(), times.size, implied.all.len(), implied.size), (1, 1, 1, 1));
    for below in ["a/b", "a/b/c", "a-b", "b"] {
        implied.insert(below.into());
    }
    implied.remove_below(Path::new("a"));
    assert_eq!((implied.all.len(), implied.size), (2, 4));
    for n in 0..2 * MOST_PATHS / 4096 {
        times.note(format!("{n:04096}").into(), UNIX_EPOCH);
        implied.insert(format!("{n:04096}").into());
    }
    assert!(times.size < MOST_PATHS + 4096 && implied.size < MOST_IMPLIED + 4096, "{} {}", times.size, implied.size);
}

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

/// Unpacks entries (path, type, link or content) one after another.
fn unpacked(dir: &Path, all: &[(&str, EntryType, &str)]) -> Result<Tallied, String> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, text) in all {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o755);
        header.set_entry_type(*kind);
        if *kind == EntryType::Regular && path.starts_with("v7") {
            header.as_old_mut().linkflag = [0];
        }
        let link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if link {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let text = if link { "" } else { text };
        header.set_size(text.len() as u64);
        header.set_cksum();
        builder.append(&header, text.as_bytes()).unwrap();
    }
    entries(builder.into_inner().unwrap().as_slice(), Limit::of(0, 1), dir)
}

#[test]
fn nothing_leaves_the_root() {
    let dir = root("escape");
    assert!(entries(layer("../evil", None).as_slice(), Limit::of(0, 1), &dir).is_err());
    assert!(entries(layer("a/../../evil", None).as_slice(), Limit::of(0, 1), &dir).is_err());
    let out = format!("pikelet-escaped-{}", std::process::id());
    for (number, link) in ["/tmp", "../../../../../../../../../../tmp", "../tmp", "/../tmp/."].iter().enumerate() {
        let (name, below) = (format!("out{number}"), format!("out{number}/{out}{number}"));
        unpacked(&dir, &[(&name, EntryType::Symlink, link), (&below, EntryType::Regular, "x")]).unwrap();
        assert!(dir.join("tmp").join(format!("{out}{number}")).is_file(), "{link} is one of the root itself");
        assert!(!Path::new("/tmp").join(format!("{out}{number}")).exists(), "{link}");
    }
    let circle = [("a", EntryType::Symlink, "b"), ("b", EntryType::Symlink, "a"), ("a/x", EntryType::Regular, "")];
    assert!(unpacked(&dir, &circle).unwrap_err().contains("too many links"));
    let error = unpacked(&dir, &[("f", EntryType::Regular, ""), ("f/x", EntryType::Regular, "")]).unwrap_err();
    assert!(error.contains("no directory"), "{error}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn entries_go_through_links_of_their_layer() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let dir = root("links");
    let all = [
        ("usr/lib/", Directory, ""),
        ("lib", Symlink, "usr/lib"),
        ("lib/one", Regular, "1"),
        ("srv/up", Symlink, "../lib/./sub/../deep"),
        ("srv/up/two", Regular, "2"),
        ("srv/up/", Directory, ""),
        ("lib/hard", Link, "lib/one"),
        ("lib/.wh.gone", Regular, ""),
        ("x/../top", Regular, "3"),
        // another directory by the same name
        ("way", Symlink, "usr"),
        ("way/a", Regular, "4"),
        ("way", Symlink, "srv"),
        ("way/b", Regular, "5"),
    ];
    let implied = unpacked(&dir, &all).unwrap().implied;
    assert_eq!(
        implied.iter().map(|p| p.to_str().unwrap()).collect::<Vec<_>>(),
        ["srv", "usr", "usr/lib/deep", "usr/lib/sub"]
    );
    let text = |path: &str| fs::read_to_string(dir.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    for (path, wanted) in [("usr/lib/one", "1"), ("usr/lib/hard", "1"), ("top", "3"), ("usr/a", "4"), ("srv/b", "5")] {
        assert_eq!(text(path), wanted, "{path}");
    }
    assert_eq!(text("usr/lib/deep/two"), "2");
    // an entry of the link's own name is no entry below it
    assert!(fs::symlink_metadata(dir.join("srv/up")).unwrap().is_dir());
    assert!(fs::symlink_metadata(dir.join("usr/lib/gone")).is_ok());
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn attributes_that_cannot_be_kept_are_passed_over() {
    let dir = root("attributes");
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, name: &str, kind: EntryType| {
        builder.append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), b"x" as &[u8])]).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_entry_type(kind);
        header.set_size(0);
        if kind == EntryType::Symlink {
            builder.append_link(&mut header, path, "mac").unwrap();
        } else {
            builder.append_data(&mut header, path, &b""[..]).unwrap();
        }
    };
    add("mac", "com.apple.provenance", EntryType::Regular);
    add("link", "user.overlay.origin", EntryType::Symlink);
    entries(builder.into_inner().unwrap().as_slice(), Limit::of(0, 1), &dir).unwrap();
    assert!(dir.join("mac").is_file() && fs::symlink_metadata(dir.join("link")).unwrap().is_symlink());
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn old_directories_and_exact_times_are_understood() {
    use std::os::unix::fs::MetadataExt;
    let dir = root("old");
    unpacked(&dir, &[("v7/", EntryType::Regular, ""), ("v7/file", EntryType::Regular, "x")]).unwrap();
    assert!(dir.join("v7").is_dir() && dir.join("v7/file").is_file());
    let mut builder = tar::Builder::new(Vec::new());
    for (path, time) in [("after", "1600000000.25"), ("before", "-86400.5"), ("wrong", "soon")] {
        builder.append_pax_extensions([("mtime", time.as_bytes())]).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        header.set_mtime(7);
        builder.append_data(&mut header, path, &b""[..]).unwrap();
    }
    entries(builder.into_inner().unwrap().as_slice(), Limit::of(0, 1), &dir).unwrap();
    let of = |path: &str| fs::metadata(dir.join(path)).map(|m| (m.mtime(), m.mtime_nsec())).unwrap();
    assert_eq!([of("after"), of("before"), of("wrong")], [(1_600_000_000, 250_000_000), (-86401, 500_000_000), (7, 0)]);
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
    assert_eq!(entries(hole(64 << 20).as_slice(), Limit::of(0, 1), &dir).unwrap().size, 64 << 20);
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

#[test]
fn an_archive_may_end_with_its_last_byte() {
    let folder = crate::machine::folder::Folder::new();
    let whole = layer("a", None);
    // two bytes in the block behind the header
    entries(&whole[..514], Limit::of(0, 1), folder.path()).unwrap();
    assert_eq!(std::fs::metadata(folder.path().join("a")).unwrap().len(), 2);
    for cut in [100, 511] {
        assert!(entries(&whole[..cut], Limit::of(0, 1), folder.path()).is_err(), "{cut}");
    }
}
