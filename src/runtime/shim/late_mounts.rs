//! What libcontainer does not do of a container's mounts, done when it is made and before its program runs: each volume's
//! own `mountPropagation`, a volume at `/dev`, and volumes that lie in others.
//!
//! libcontainer has one propagation for all of a container, and makes device nodes and links in whatever is mounted at
//! `/dev`: in the node's own, if that is the volume. So it is given a `/dev` of the container's own, and the volume is
//! mounted over it afterwards, with what was mounted below on top again. A child of the shim does it, in the container's
//! mount namespace: looking up a path may wait for a file system.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe2};

use super::setup::context;
use crate::mount_tree::{Peers, Tree};
use crate::runtime::rooted;
use crate::runtime::spec::{self, DEV};
use crate::runtime::types::{ContainerSpec, Mount, Propagation};

/// How long all of it may take, in milliseconds.
const LIMIT: u16 = 10_000;
/// What libcontainer has below `/dev` of itself; the node's `ptmx` would make terminals of the node.
const OWN: [&str; 5] = ["/dev/pts", "/dev/ptmx", "/dev/mqueue", "/dev/shm", "/dev/console"];

/// Changes the mounts of the container whose first process is `pid`, which has not started its program; `mapped`: its pod has
/// users of its own.
pub fn apply(spec: &ContainerSpec, mapped: bool, pid: i32) -> Result<(), String> {
    let (dev, changes) = (spec::volume_at_dev(spec), changes(spec, mapped));
    let mut late: Vec<_> = spec.mounts.iter().filter(|m| spec::is_late(spec, mapped, m)).collect();
    if dev.is_none() && changes.is_empty() && late.is_empty() {
        return Ok(());
    }
    late.sort_by_key(|m| Path::new(&m.destination).components().count());
    let namespace = format!("/proc/{pid}/ns/mnt");
    let namespace = File::open(&namespace).map_err(|e| format!("opening {namespace}: {e}"))?;
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(context("creating a pipe"))?;
    // SAFETY: the shim has a single thread, so the child may go on as an ordinary process.
    let child = match unsafe { fork() }.map_err(context("changing the container's mounts: fork"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(ours);
            let changed = change(spec, (dev, &late), &changes, &namespace);
            // the parent sees the end anyway
            let _ = File::from(theirs).write_all(changed.err().unwrap_or_default().as_bytes());
            // SAFETY: ends this process without running what its parent has registered for its own end.
            unsafe { libc::_exit(0) }
        }
    };
    drop(theirs);
    let said = answer(ours);
    if said.is_err() {
        let _ = kill(child, Signal::SIGKILL);
    }
    let _ = waitpid(child, None);
    match said?.as_str() {
        "" => Ok(()),
        error => Err(error.to_owned()),
    }
}

fn answer(pipe: OwnedFd) -> Result<String, String> {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(LIMIT)) {
        Ok(0) => return Err("changing the container's mounts: a file system does not answer".into()),
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(format!("changing the container's mounts: {e}")),
    }
    let mut said = String::new();
    File::from(pipe).read_to_string(&mut said).map_err(context("changing the container's mounts"))?;
    Ok(said)
}

/// A mount of the container, by its path there, that is not as libcontainer leaves it.
#[derive(Debug, PartialEq, Eq)]
struct Change<'a> {
    destination: &'a str,
    peers: Peers,
    /// With all that is mounted below it: nothing of that is another volume.
    recursive: bool,
}

/// What is to be changed, parents first. libcontainer leaves all mounts as the container's root is to be.
fn changes(spec: &ContainerSpec, mapped: bool) -> Vec<Change<'_>> {
    let all = spec::root_propagation(spec, mapped);
    let volumes = || spec.mounts.iter().filter(|m| !spec::is_dev(m) && !spec::is_late(spec, mapped, m));
    let below = |m: &Mount| volumes().any(|o| o.destination != m.destination && spec::is_below(o, &m.destination));
    let wrong = volumes().filter(|m| m.propagation != all);
    let mut changes: Vec<_> = wrong
        .map(|m| Change { destination: &m.destination, peers: peers(m.propagation), recursive: !below(m) })
        .collect();
    changes.sort_by_key(|c| c.destination.len());
    changes
}

fn peers(propagation: Propagation) -> Peers {
    match propagation {
        Propagation::None => Peers::Private,
        Propagation::HostToContainer => Peers::Slave,
        Propagation::Bidirectional => Peers::Shared,
    }
}

fn change(
    spec: &ContainerSpec,
    (dev, late): (Option<&Mount>, &[&Mount]),
    changes: &[Change<'_>],
    namespace: &File,
) -> Result<(), String> {
    let dev = dev.map(|mount| copy(mount).map(|tree| (mount, tree))).transpose()?;
    let late = late.iter().map(|mount| copy(mount).map(|tree| (*mount, tree))).collect::<Result<Vec<_>, _>>()?;
    setns(namespace, CloneFlags::CLONE_NEWNS).map_err(context("joining the container's mount namespace"))?;
    let root = File::open("/").map_err(context("opening the container's root"))?;
    for change in changes {
        let failed =
            |e: &dyn std::fmt::Display| format!("mountPropagation of the volume at {}: {e}", change.destination);
        let place = find(&root, change.destination).map_err(|e| failed(&e))?;
        change.peers.set(place.as_fd(), change.recursive).map_err(|e| failed(&e))?;
    }
    for (mount, tree) in late {
        put_into(mount, &tree, &root).map_err(|e| format!("mounting the volume at {}: {e}", mount.destination))?;
    }
    match dev {
        Some((mount, tree)) => put_over_dev(spec, mount, &tree, &root),
        None => Ok(()),
    }
}

fn copy(mount: &Mount) -> Result<Tree, String> {
    Tree::copy(&mount.source).map_err(|e| format!("copying the mount of {}: {e}", mount.source.display()))
}

/// Mounts `tree` at its place in another volume, which is made where it is missing.
fn put_into(mount: &Mount, tree: &Tree, root: &File) -> std::io::Result<()> {
    let path = &*mount.destination;
    if matches!(find(root, path), Err(Errno::ENOENT)) {
        make(root, path, tree.is_folder()?)?;
    }
    tree.set_peers(peers(mount.propagation))?;
    tree.restrict(mount.read_only, mount.recursive_read_only, mount.no_exec)?;
    tree.attach_to(find(root, path)?.as_fd())
}

/// Mounts `tree` at `/dev`, and what is mounted below that now on top.
fn put_over_dev(spec: &ContainerSpec, mount: &Mount, tree: &Tree, root: &File) -> Result<(), String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("{what} for the volume at {DEV}: {e}");
    let mut volumes: Vec<&str> = spec
        .mounts
        .iter()
        .filter(|m| spec::is_below(m, DEV) && !spec::is_late(spec, false, m))
        .map(|m| &*m.destination)
        .collect();
    volumes.sort_by_key(|path| path.len());
    let own = OWN.into_iter().filter(|path| !volumes.contains(path)).filter(|path| spec.tty || *path != "/dev/console");
    let mut above = Vec::new();
    for path in own.chain(volumes.iter().copied()) {
        let place = find(root, path).map_err(|e| failed(&format!("finding {path}"), &e))?;
        let copy = Tree::copy_of(place.as_fd()).map_err(|e| failed(&format!("copying {path}"), &e))?;
        let directory = File::from(place).metadata().is_ok_and(|m| m.is_dir());
        above.push((path, directory, copy));
    }
    tree.set_peers(peers(mount.propagation)).map_err(|e| failed("setting the propagation", &e))?;
    let place = find(root, DEV).map_err(|e| failed("finding the place", &e))?;
    tree.attach_to(place.as_fd()).map_err(|e| failed("mounting", &e))?;
    // what the volume lacks is made there, as other engines do: before it is read-only
    let volumes = above.iter().filter(|(path, ..)| volumes.contains(path));
    for (path, directory, _) in volumes.filter(|(path, ..)| find(root, path).is_err()) {
        make(root, path, *directory).map_err(|e| failed(&format!("making {path}"), &e))?;
    }
    let restricted = tree.restrict(mount.read_only, mount.recursive_read_only, mount.no_exec);
    restricted.map_err(|e| failed("restricting", &e))?;
    for (path, _, copy) in above {
        match find(root, path) {
            Ok(place) => copy.attach_to(place.as_fd()).map_err(|e| failed(&format!("mounting {path}"), &e))?,
            // no volume, but one of those every container has: a node that lacks it has no use for it
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(failed(&format!("finding {path}"), &e)),
        }
    }
    Ok(())
}

/// Opens a path of the container as a place. Links lead nowhere else.
fn find(root: &File, path: &str) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

fn make(root: &File, path: &str, directory: bool) -> std::io::Result<()> {
    if directory {
        return rooted::create_dir_all(Path::new("/"), path, 0);
    }
    let path = PathBuf::from(path);
    let parent = path.parent().and_then(Path::to_str).unwrap_or(DEV);
    rooted::create_dir_all(Path::new("/"), parent, 0)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let name = path.file_name().unwrap_or_default();
    openat(find(root, parent)?, name, flags, Mode::from_bits_truncate(0o644))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(destination: &str, propagation: Propagation) -> Mount {
        Mount {
            source: "/a".into(),
            destination: destination.into(),
            read_only: false,
            recursive_read_only: false,
            no_exec: false,
            propagation,
            mapped: false,
        }
    }

    #[test]
    fn each_volume_gets_its_own_propagation() {
        use Propagation::{Bidirectional, HostToContainer, None};
        let spec = |mounts: &[(&str, Propagation)]| ContainerSpec {
            mounts: mounts.iter().map(|(path, propagation)| mount(path, *propagation)).collect(),
            ..ContainerSpec::default()
        };
        let of = |mounts: &[(&str, Propagation)]| -> Vec<(String, Peers, bool)> {
            let spec = spec(mounts);
            changes(&spec, false).into_iter().map(|c| (c.destination.to_owned(), c.peers, c.recursive)).collect()
        };
        assert_eq!(of(&[("/a", None), ("/b", None)]), []);
        assert_eq!(of(&[("/a", None), ("/b", HostToContainer)]), [("/a".into(), Peers::Private, true)]);
        let three = of(&[("/c/c", HostToContainer), ("/b", None), ("/a", Bidirectional)]);
        assert_eq!(three, [("/b".into(), Peers::Private, true), ("/c/c".into(), Peers::Slave, true)]);
        // what lies in another gets its own when it is mounted
        assert_eq!(of(&[("/b", None), ("/b/a", Bidirectional), ("/bc", None)]), []);
        // the volume at /dev is mounted later
        assert_eq!(of(&[("/dev", None), ("/a", Bidirectional)]), []);
    }
}
