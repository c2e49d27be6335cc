//! Pulls that end in the middle: the process killed (SIGKILL), and the power cut (ext4 on a loop device shut down without
//! its journal, as the kernel's own tests do it). `PIKELET_TEST_CUTS` sets how many of the first, 60 if unset.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pikelet::image::{ImageStore, StoreConfig};
use rand::Rng;

use crate::scene::*;

const STORE: &str = "PIKELET_TEST_STORE";
const IMAGE: &str = "PIKELET_TEST_IMAGE";
const ALONE: &str = "PIKELET_TEST_ALONE";
const INSECURE: &str = "PIKELET_TEST_INSECURE";

/// A process of its own that pulls `image` into the store in `dir`, with plain HTTP for `host`.
pub fn puller(dir: &Path, image: &str, host: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "cuts::pull_in_a_process_of_its_own", "--ignored", "--nocapture"]);
    command.env(STORE, dir).env(IMAGE, image).env(INSECURE, host).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

async fn open(dir: &Path, host: &str) -> ImageStore {
    let registries = [(host.to_owned(), insecure())].into();
    ImageStore::open(StoreConfig { dir: dir.to_owned(), registries, ..StoreConfig::default() }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what other tests start"]
async fn pull_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os(STORE) else { return };
    let store = open(Path::new(&dir), &std::env::var(INSECURE).unwrap()).await;
    store.pull(&std::env::var(IMAGE).unwrap(), &[]).await.unwrap();
}

/// A store as it should be, to compare with.
struct Reference {
    image: String,
    layers: Vec<(String, Vec<String>)>,
}

fn layer_trees(store: &Path) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<_> = fs::read_dir(store.join("layers"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), tree(&p.join("diff"))))
        .collect();
    found.sort();
    found
}

impl Reference {
    async fn new(scene: &mut Scene) -> (Self, String) {
        let registry = scene.registry(false);
        let layers = [noise(1, 150, 20_000), noise(2, 20, 200_000), noise(3, 400, 500), noise(4, 3, 1 << 20)];
        push_image(scene, &registry, "test/it:1", &layers);
        let dir = scene.dir.join("reference");
        let image = format!("{registry}/test/it:1");
        open(&dir, &registry).await.pull(&image, &[]).await.unwrap();
        (Self { image, layers: layer_trees(&dir) }, registry)
    }

    /// Opens a store that was cut off: what it has is right. Returns whether it has the image.
    async fn check(&self, dir: &Path, host: &str) -> bool {
        let store = open(dir, host).await;
        for layer in layer_trees(dir) {
            assert!(self.layers.contains(&layer), "half a layer counts: {}", layer.0);
        }
        let has = store.get(&self.image).await.unwrap().is_some();
        assert_eq!(store.list().await.unwrap().len(), usize::from(has));
        let left = fs::read_dir(dir.join("blobs/sha256")).unwrap().chain(fs::read_dir(dir).unwrap());
        assert!(left.flatten().all(|e| e.path().extension().is_none_or(|e| e != "tmp")), "no half documents");
        has
    }

    /// Pulls to the end, compares, and takes the image out again.
    async fn finish(&self, dir: &Path, host: &str) {
        let store = open(dir, host).await;
        store.pull(&self.image, &[]).await.unwrap();
        assert!(layer_trees(dir) == self.layers, "differs from the reference");
        store.remove(&self.image).await.unwrap();
        assert!(layer_trees(dir).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_killed_at_any_moment_leaves_a_good_store() {
    let Some(mut scene) = scene("kills") else { return };
    let (reference, registry) = Reference::new(&mut scene).await;
    let dir = scene.dir.join("store");
    // the quickest of three: others may be at work here too
    let mut whole = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        assert!(puller(&dir, &reference.image, &registry).output().unwrap().status.success());
        whole = whole.min(start.elapsed());
        reference.finish(&dir, &registry).await;
    }
    let cuts = std::env::var("PIKELET_TEST_CUTS").ok().map_or(60, |n| n.parse().unwrap());
    let mut unfinished = 0;
    for cut in 0..cuts {
        let mut process = puller(&dir, &reference.image, &registry).spawn().unwrap();
        let moment = whole.mul_f64(rand::rng().random_range(0.0..1.0));
        std::thread::sleep(moment);
        process.kill().unwrap();
        process.wait().unwrap();
        unfinished += u32::from(!reference.check(&dir, &registry).await);
        // several cuts, then a pull that is let be
        if cut % 3 == 2 {
            reference.finish(&dir, &registry).await;
        }
    }
    assert!(unfinished * 2 > cuts, "only {unfinished} of {cuts} kills came before the end");
}

/// An ext4 file system in a file, on a loop device.
struct Card {
    file: PathBuf,
    mount: PathBuf,
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

impl Card {
    fn new(dir: &Path) -> Option<Self> {
        let card = Self { file: dir.join("card.img"), mount: dir.join("card") };
        fs::File::create(&card.file).unwrap().set_len(256 << 20).unwrap();
        fs::create_dir_all(&card.mount).unwrap();
        (run("mkfs.ext4", &["-q", card.file.to_str().unwrap()]) && card.insert()).then_some(card)
    }

    fn insert(&self) -> bool {
        run("mount", &["-o", "loop", self.file.to_str().unwrap(), self.mount.to_str().unwrap()])
    }

    /// `EXT4_IOC_SHUTDOWN` without flushing the log: what was not written is lost.
    fn cut(&self) {
        let program = "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        assert!(run("python3", &["-c", program, self.mount.to_str().unwrap()]));
    }

    fn remove(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while !run("umount", &[self.mount.to_str().unwrap()]) {
            assert!(Instant::now() < end, "card is still in use");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        run("umount", &[self.mount.to_str().unwrap()]);
    }
}

/// Where nobody else sees the card: a mount namespace made by others meanwhile would keep it in use.
#[test]
fn a_power_cut_at_any_moment_leaves_a_good_store() {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "cuts::power_cuts_in_a_mount_namespace_of_their_own", "--ignored", "--nocapture"]);
    let ended = command.env(ALONE, "1").output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what other tests start"]
async fn power_cuts_in_a_mount_namespace_of_their_own() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let Some(mut scene) = scene("power") else { return };
    let Some(card) = Card::new(&scene.dir) else {
        eprintln!("skipped: no loop device");
        return;
    };
    let (reference, registry) = Reference::new(&mut scene).await;
    let dir = card.mount.join("images");
    let start = Instant::now();
    assert!(puller(&dir, &reference.image, &registry).output().unwrap().status.success());
    let whole = start.elapsed();
    // what was said to be pulled is there
    card.cut();
    card.remove();
    assert!(card.insert());
    assert!(reference.check(&dir, &registry).await);
    assert!(layer_trees(&dir) == reference.layers, "differs from the reference");
    reference.finish(&dir, &registry).await;
    let cuts = if std::env::var_os("PIKELET_TEST_CUTS").is_some() { 60 } else { 15 };
    for cut in 0..cuts {
        let mut process = puller(&dir, &reference.image, &registry).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(rand::rng().random_range(0.0..1.2)));
        card.cut();
        // without its file system it has nothing to do
        let _ = process.kill();
        process.wait().unwrap();
        card.remove();
        assert!(card.insert(), "the card is readable after a cut");
        let has = reference.check(&dir, &registry).await;
        if has {
            assert!(layer_trees(&dir) == reference.layers, "differs from the reference");
        }
        if cut % 3 == 2 {
            reference.finish(&dir, &registry).await;
        }
    }
}
