//! How the board does: temperature, under-voltage, a slowed processor; as conditions of the Node.
//!
//! Names are in the style of node-problem-detector: a condition that is `True` is a problem. A board has those it has
//! sensors for. The Raspberry Pi's voltage sensor (`rpi_volt`) tells of changes by itself; the rest is read every ten
//! seconds, which is how often a kubelet looks at its node.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::notify::Notifying;

/// Raspberry Pis slow down from 80 °C on; in thousandths of a degree.
pub const HOT: i64 = 80_000;
/// Below this a board that was hot is not any more.
const COOL: i64 = 75_000;
/// How long a condition stays after its cause was last seen: dips come in swarms.
const LINGER: Duration = Duration::from_mins(5);
/// How often is looked.
const LOOK: Duration = Duration::from_secs(10);

/// Bits of the Raspberry Pi firmware's `get_throttled`; 16 places higher: the same since boot.
const UNDER_VOLTAGE: u32 = 1;
/// Frequency capped, throttled, or at the soft limit of temperature.
const SLOWED: u32 = 0b1110;

/// A thermal zone (kernel: thermal sysfs).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Its folder, such as `thermal_zone0`.
    pub name: String,
    /// Such as `cpu-thermal`.
    pub kind: String,
    /// Thousandths of a degree Celsius.
    pub temperature: i64,
}

/// What the sensors say, at one moment; `None` and empty where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readings {
    /// Every thermal zone that can be read, by name.
    pub zones: Vec<Zone>,
    /// The firmware's `get_throttled`.
    pub firmware: Option<u32>,
    /// The alarm of the kernel's sensor `rpi_volt`: the voltage was too low in the last two seconds.
    pub alarm: Option<bool>,
    /// The kernel holds a processor's frequency down for its temperature (cooling devices).
    pub cooled: Option<bool>,
}

fn line(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The entries of a folder whose names begin so, in their order.
fn entries(dir: &Path, start: &str) -> Vec<PathBuf> {
    let named = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(start));
    let mut found: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    found.retain(named);
    found.sort();
    found
}

/// The alarm file of the Raspberry Pi's voltage sensor.
fn alarm_file(root: &Path) -> Option<PathBuf> {
    let sensors = entries(&root.join("sys/class/hwmon"), "hwmon");
    let own = sensors.into_iter().find(|p| line(&p.join("name")).is_some_and(|name| name == "rpi_volt"))?;
    Some(own.join("in0_lcrit_alarm"))
}

/// Of the firmware's driver, by whatever name the device tree gives the device.
fn firmware(root: &Path) -> Option<u32> {
    let devices = entries(&root.join("sys/bus/platform/drivers/raspberrypi-firmware"), "");
    let text = devices.iter().find_map(|d| line(&d.join("get_throttled")))?;
    u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

fn zone(dir: &Path) -> Option<Zone> {
    let temperature = line(&dir.join("temp"))?.parse().ok()?;
    let name = dir.file_name()?.to_str()?.to_owned();
    Some(Zone { name, kind: line(&dir.join("type")).unwrap_or_default(), temperature })
}

/// Whether one of the cooling devices that are processors works; `None` where there are none.
fn cooled(root: &Path) -> Option<bool> {
    let processor = |dir: &PathBuf| {
        let kind = line(&dir.join("type")).unwrap_or_default();
        kind.starts_with("cpufreq-") || kind.starts_with("thermal-cpufreq-") || kind == "Processor"
    };
    let devices = entries(&root.join("sys/class/thermal"), "cooling_device").into_iter().filter(processor);
    let states = devices.filter_map(|d| line(&d.join("cur_state"))?.parse::<u64>().ok());
    states.fold(None, |any, state| Some(any.unwrap_or(false) || state > 0))
}

impl Readings {
    /// Reads all sensors; `root` is where `/sys` lies.
    pub fn read(root: &Path) -> Self {
        let alarm = alarm_file(root).and_then(|file| line(&file));
        Self {
            zones: entries(&root.join("sys/class/thermal"), "thermal_zone").iter().filter_map(|d| zone(d)).collect(),
            firmware: firmware(root),
            alarm: alarm.map(|text| text == "1"),
            cooled: cooled(root),
        }
    }

    /// The hottest zone, in thousandths of a degree.
    pub fn hottest(&self) -> Option<i64> {
        self.zones.iter().map(|z| z.temperature).max()
    }

    /// Whether the board's supply is too weak.
    pub fn under_voltage(&self) -> Option<bool> {
        either(self.firmware.map(|bits| bits & UNDER_VOLTAGE != 0), self.alarm)
    }

    /// Whether the processor is slower than it could be.
    pub fn slowed(&self) -> Option<bool> {
        either(self.firmware.map(|bits| bits & SLOWED != 0), self.cooled)
    }
}

fn either(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    match (one, other) {
        (None, None) => None,
        (one, other) => Some(one == Some(true) || other == Some(true)),
    }
}

/// A condition of the Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Such as `UnderVoltage`.
    pub kind: &'static str,
    /// There is a problem.
    pub status: bool,
    /// One word.
    pub reason: &'static str,
    /// For a person.
    pub message: &'static str,
}

/// A kind of condition: its type, and reason and message of a problem and of none.
type Kind = (&'static str, (&'static str, &'static str), (&'static str, &'static str));

const TEMPERATURE: Kind = (
    "HighTemperature",
    ("TemperatureIsHigh", "the board is at 80 °C or was a moment ago, and slows down: cool it by a heat sink or a fan"),
    ("TemperatureIsNormal", "the board is cool enough"),
);
const VOLTAGE: Kind = (
    "UnderVoltage",
    (
        "UnderVoltageDetected",
        "the board's supply is too weak, or was in the last five minutes: use the board's own power supply and a short, \
         thick cable",
    ),
    ("NoUnderVoltage", "the board's supply is strong enough"),
);
const SPEED: Kind = (
    "CPUThrottled",
    ("CPUIsThrottled", "the processor is slowed down, or was in the last five minutes, for heat or a weak supply"),
    ("CPUIsNotThrottled", "the processor runs at full speed"),
);

/// Types of all conditions there are.
pub const CONDITIONS: [&str; 3] = [TEMPERATURE.0, VOLTAGE.0, SPEED.0];

fn condition((kind, problem, none): Kind, status: bool) -> Condition {
    let (reason, message) = if status { problem } else { none };
    Condition { kind, status, reason, message }
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Seen {
    hot: bool,
    under_voltage: Option<Instant>,
    slowed: Option<Instant>,
}

impl Seen {
    /// The conditions that follow from what was seen before and now.
    fn judge(&mut self, readings: &Readings, now: Instant) -> Vec<Condition> {
        let mut conditions = Vec::new();
        if let Some(temperature) = readings.hottest() {
            self.hot = temperature >= HOT || self.hot && temperature >= COOL;
            conditions.push(condition(TEMPERATURE, self.hot));
        }
        let lasting = |is: bool, last: &mut Option<Instant>| {
            if is {
                *last = Some(now);
            }
            last.is_some_and(|at| now.duration_since(at) < LINGER)
        };
        let voltage = readings.under_voltage().map(|is| condition(VOLTAGE, lasting(is, &mut self.under_voltage)));
        let speed = readings.slowed().map(|is| condition(SPEED, lasting(is, &mut self.slowed)));
        conditions.extend(voltage.into_iter().chain(speed));
        conditions
    }
}

/// Looks for ever, and hands on the conditions whenever they have changed. Returns at once from a machine with no sensors.
/// `root` is where `/sys` lies.
pub async fn keep(root: &Path, mut changed: impl FnMut(Vec<Condition>)) {
    let mut seen = Seen::default();
    let mut told = Vec::new();
    let alarm = alarm_file(root).and_then(|file| Notifying::open(&file));
    let mut tick = tokio::time::interval(LOOK);
    loop {
        let woken = async {
            match &alarm {
                Some(alarm) => alarm.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = tick.tick() => {}
            () = woken => {}
        }
        let now = seen.judge(&Readings::read(root), Instant::now());
        if now.is_empty() && told.is_empty() {
            return;
        }
        if now != told {
            told.clone_from(&now);
            changed(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::Folder;
    use super::*;

    fn problems(conditions: &[Condition]) -> Vec<&'static str> {
        conditions.iter().filter(|c| c.status).map(|c| c.kind).collect()
    }

    #[test]
    fn a_raspberry_pi_has_all_sensors() {
        let root = Folder::raspberry_pi_4();
        let readings = Readings::read(root.path());
        let zone = Zone { name: "thermal_zone0".into(), kind: "cpu-thermal".into(), temperature: 48_686 };
        let want = Readings { zones: vec![zone], firmware: Some(0), alarm: Some(false), cooled: Some(false) };
        assert_eq!(readings, want);
        let conditions = Seen::default().judge(&readings, Instant::now());
        let kinds: Vec<_> = conditions.iter().map(|c| (c.kind, c.status, c.reason)).collect();
        let want = [
            ("HighTemperature", false, "TemperatureIsNormal"),
            ("UnderVoltage", false, "NoUnderVoltage"),
            ("CPUThrottled", false, "CPUIsNotThrottled"),
        ];
        assert_eq!(kinds, want);
    }

    #[test]
    fn each_sensor_raises_its_condition() {
        let now = Instant::now();
        let firmware = "sys/bus/platform/drivers/raspberrypi-firmware/soc:firmware/get_throttled";
        for (file, text, want) in [
            ("sys/class/thermal/thermal_zone0/temp", "80000\n", &["HighTemperature"][..]),
            ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n", &["UnderVoltage"]),
            ("sys/class/thermal/cooling_device0/cur_state", "2\n", &["CPUThrottled"]),
            (firmware, "50005\n", &["UnderVoltage", "CPUThrottled"]),
            (firmware, "0x80008\n", &["CPUThrottled"]),
            // since boot, not now
            (firmware, "50000\n", &[]),
        ] {
            let root = Folder::raspberry_pi_4();
            root.put(file, text);
            let found = Seen::default().judge(&Readings::read(root.path()), now);
            assert_eq!(problems(&found), want, "{file} {text}");
        }
    }

    #[test]
    fn a_kernel_without_the_firmwares_driver_has_the_voltage_sensor() {
        let root = Folder::raspberry_pi_4();
        root.remove("sys/bus");
        let readings = Readings::read(root.path());
        assert_eq!((readings.firmware, readings.under_voltage(), readings.slowed()), (None, Some(false), Some(false)));
        root.remove("sys/class/hwmon");
        root.remove("sys/class/thermal");
        let readings = Readings::read(root.path());
        assert_eq!(readings, Readings::default());
        assert!(Seen::default().judge(&readings, Instant::now()).is_empty());
    }

    #[test]
    fn conditions_do_not_flap() {
        let mut seen = Seen::default();
        let start = Instant::now();
        let zone = |temperature| Zone { name: "z".into(), kind: "cpu".into(), temperature };
        let of = |temperature, firmware| Readings {
            zones: vec![zone(temperature)],
            firmware: Some(firmware),
            ..Readings::default()
        };
        assert_eq!(problems(&seen.judge(&of(80_000, 1), start)), ["HighTemperature", "UnderVoltage"]);
        let soon = start + Duration::from_mins(4);
        assert_eq!(problems(&seen.judge(&of(75_000, 0), soon)), ["HighTemperature", "UnderVoltage"]);
        let later = start + LINGER;
        assert!(problems(&seen.judge(&of(74_999, 0), later)).is_empty());
        assert!(problems(&seen.judge(&of(79_999, 0), later)).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_told_once() {
        let root = Folder::raspberry_pi_4();
        let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
        let path = root.path().to_owned();
        tokio::spawn(async move { keep(&path, |conditions| drop(tx.send(conditions))).await });
        assert!(problems(&rx.recv().await.unwrap()).is_empty());
        root.put("sys/class/thermal/thermal_zone0/temp", "85000\n");
        assert_eq!(problems(&rx.recv().await.unwrap()), ["HighTemperature"]);
        tokio::time::sleep(LOOK * 3).await;
        assert!(rx.try_recv().is_err(), "nothing changed");
        // a machine with no sensors is left in peace
        keep(Folder::new().path(), |_| panic!("it has no sensors")).await;
    }
}
