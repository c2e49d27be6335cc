//! For tests: a folder with the files a board's kernel shows, made as a Raspberry Pi 4 has them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// KiB by which a process grows while it does `work` on a folder with 4 000 in it, beyond what it takes for 10: a process of
/// its own, in which `test` is run once more. `None` in that one.
pub fn growth(test: &str, work: impl Fn(&Path)) -> Option<u64> {
    const PLACE: &str = "PIKELET_TEST_FOLDER";
    if let Some(place) = std::env::var_os(PLACE) {
        let most = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        // of the program itself all that is needed is there after the first time
        let [_, grown] = ["10", "4000"].map(|folder| {
            // what was most begins anew (proc(5))
            fs::write("/proc/self/clear_refs", "5").unwrap();
            let before = most();
            work(&Path::new(&place).join(folder));
            most() - before
        });
        println!("grown by {grown}");
        return None;
    }
    let folder = Folder::new();
    for count in [10, 4_000] {
        for number in 0..count {
            fs::create_dir_all(folder.path().join(format!("{count}/{number:0>250}"))).unwrap();
        }
    }
    let mut own = std::process::Command::new(std::env::current_exe().unwrap());
    let told = own.args(["--exact", test, "--nocapture"]).env(PLACE, folder.path()).output().unwrap().stdout;
    let told = String::from_utf8(told).unwrap();
    Some(told.lines().find_map(|line| line.split_once("grown by ")?.1.parse().ok()).expect(&told))
}

/// Removed with its files when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// An empty one: a machine that tells nothing.
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("pikelet-board-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// A Raspberry Pi 4 at 48.7 °C with the kernel of Raspberry Pi OS.
    pub fn raspberry_pi_4() -> Self {
        let folder = Self::new();
        for (file, text) in [
            ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
            ("proc/device-tree/serial-number", "10000000a1b2c3d4\0"),
            ("proc/device-tree/compatible", "raspberrypi,4-model-b\0brcm,bcm2711\0"),
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone0/temp", "48686\n"),
            ("sys/class/thermal/cooling_device0/type", "cpufreq-cpu0\n"),
            ("sys/class/thermal/cooling_device0/cur_state", "0\n"),
            ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            ("sys/class/hwmon/hwmon1/name", "rpi_volt\n"),
            ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0\n"),
            ("sys/bus/platform/drivers/raspberrypi-firmware/soc:firmware/get_throttled", "0\n"),
        ] {
            folder.put(file, text);
        }
        folder
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file, and makes the folders on the way to it.
    pub fn put(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Takes a file or folder away.
    pub fn remove(&self, file: &str) {
        let path = self.0.join(file);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // nothing depends on it
        let _ = fs::remove_dir_all(&self.0);
    }
}
