//! Eviction signals and thresholds, and which of them are met: pure rules, no machine.
//!
//! Rules: Kubernetes "Node-pressure Eviction".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use crate::quantity;

/// What is watched. In the order in which reclaiming begins: memory first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// `memory.available`: memory that is free or inactive page cache.
    MemoryAvailable,
    /// `nodefs.available`: bytes of the file system of the agent's root.
    NodefsAvailable,
    /// `nodefs.inodesFree`.
    NodefsInodesFree,
    /// `imagefs.available`: bytes of the file system of the image store.
    ImagefsAvailable,
    /// `imagefs.inodesFree`.
    ImagefsInodesFree,
    /// `pid.available`: processes that can still be made.
    PidAvailable,
}

/// The node conditions that signals bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// `MemoryPressure`.
    Memory,
    /// `DiskPressure`.
    Disk,
    /// `PIDPressure`.
    Pid,
}

impl Pressure {
    /// The type of the node's condition.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }
}

impl Signal {
    /// Every signal.
    pub const ALL: [Self; 6] = [
        Self::MemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    /// As the kubelet writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// The signal of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// The resource that runs short, as messages name it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// The node's condition.
    pub fn pressure(self) -> Pressure {
        match self {
            Self::MemoryAvailable => Pressure::Memory,
            Self::PidAvailable => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }

    /// True for counts of inodes.
    pub fn is_inodes(self) -> bool {
        matches!(self, Self::NodefsInodesFree | Self::ImagefsInodesFree)
    }

    /// How much of it can be used up in a second, at most and roughly: decides how soon one looks again.
    fn per_second(self) -> u64 {
        match self {
            Self::MemoryAvailable => 512 << 20,
            Self::NodefsAvailable | Self::ImagefsAvailable => 128 << 20,
            Self::NodefsInodesFree | Self::ImagefsInodesFree => 20_000,
            Self::PidAvailable => 5_000,
        }
    }
}

/// A quantity, or a share of the capacity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or processes.
    Quantity(u64),
    /// Of the capacity, above 0 and below 100.
    Percent(f64),
}

impl Amount {
    /// `100Mi` or `10%`; an error's text says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse().ok().filter(|p: &f64| (0.0..100.0).contains(p));
            return percent.map(Self::Percent).ok_or_else(|| format!("{text:?} is not a percentage from 0% to 100%"));
        }
        let whole = quantity::whole(text).and_then(|n| u64::try_from(n).ok());
        whole.map(Self::Quantity).ok_or_else(|| format!("{text:?} is no quantity such as 100Mi, and no percentage"))
    }

    /// The amount where there is `capacity` of it.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Quantity(quantity) => quantity,
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantity(quantity) => f.write_str(&quantity::binary(*quantity)),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Pods are evicted while less than `amount` is left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// What is watched.
    pub signal: Signal,
    /// What must be left.
    pub amount: Amount,
    /// How long it may be missing; `None`: a hard threshold.
    pub grace: Option<Duration>,
    /// How much more than `amount` there must be before it is enough again.
    pub minimum_reclaim: Option<Amount>,
}

/// When and how pods are evicted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// Hard and soft thresholds.
    pub thresholds: Vec<Threshold>,
    /// `evictionMaxPodGracePeriod`: the most a pod gets that is evicted by a soft threshold.
    pub max_pod_grace: Duration,
    /// `evictionPressureTransitionPeriod`: how long a condition stays after its cause has gone.
    pub transition: Duration,
}

impl Policy {
    /// What a hard threshold keeps of `capacity`.
    pub fn kept(&self, signal: Signal, capacity: u64) -> u64 {
        let hard = self.thresholds.iter().filter(|t| t.signal == signal && t.grace.is_none());
        hard.map(|t| t.amount.of(capacity)).max().unwrap_or(0)
    }
}

/// What is left of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Left.
    pub available: u64,
    /// All of it.
    pub capacity: u64,
}

/// The machine at one moment.
pub type Readings = BTreeMap<Signal, Reading>;

impl Threshold {
    /// Less is left than should be, with the minimum reclaim if it was so before.
    pub fn met(&self, readings: &Readings, before: bool) -> bool {
        let Some(reading) = readings.get(&self.signal) else { return false };
        let reclaim = self.minimum_reclaim.filter(|_| before).map_or(0, |a| a.of(reading.capacity));
        reading.available < self.amount.of(reading.capacity).saturating_add(reclaim)
    }
}

/// What follows from the readings of one moment.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    /// Conditions the node has.
    pub pressures: BTreeSet<Pressure>,
    /// Thresholds that ask for reclaiming now, memory first.
    pub reclaim: Vec<Threshold>,
}

/// Remembers since when thresholds are met and conditions hold.
#[derive(Debug)]
pub struct Judge {
    policy: Policy,
    /// Index into the policy's thresholds, and since when it is met.
    met: BTreeMap<usize, Instant>,
    held: BTreeMap<Pressure, Instant>,
}

impl Judge {
    /// A judge by that policy.
    pub fn new(policy: Policy) -> Self {
        Self { policy, met: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// Takes the newest readings.
    pub fn judge(&mut self, readings: &Readings, now: Instant) -> Verdict {
        let mut met = BTreeMap::new();
        for (index, threshold) in self.policy.thresholds.iter().enumerate() {
            let since = self.met.get(&index);
            if threshold.met(readings, since.is_some()) {
                met.insert(index, since.copied().unwrap_or(now));
                self.held.insert(threshold.signal.pressure(), now);
            }
        }
        self.met = met;
        let transition = self.policy.transition;
        self.held.retain(|_, seen| now.saturating_duration_since(*seen) < transition || *seen == now);
        let due = |(index, since): (&usize, &Instant)| {
            let threshold = self.policy.thresholds[*index];
            let due = threshold.grace.is_none_or(|g| now.saturating_duration_since(*since) >= g);
            due.then_some(threshold)
        };
        let mut reclaim: Vec<_> = self.met.iter().filter_map(due).collect();
        // of one signal the hard one counts
        reclaim.sort_by_key(|t| (t.signal, t.grace));
        Verdict { pressures: self.held.keys().copied().collect(), reclaim }
    }

    /// True when nothing more has to be freed for `threshold`.
    pub fn resolved(threshold: &Threshold, readings: &Readings) -> bool {
        !threshold.met(readings, true)
    }

    /// How long a threshold cannot be reached, whatever happens: between `least` and `most`.
    pub fn pause(&self, readings: &Readings, least: Duration, most: Duration) -> Duration {
        let left = |threshold: &Threshold| {
            let reading = readings.get(&threshold.signal)?;
            let distance = reading.available.saturating_sub(threshold.amount.of(reading.capacity));
            Some(Duration::from_secs_f64(distance as f64 / threshold.signal.per_second() as f64))
        };
        self.policy.thresholds.iter().filter_map(left).min().unwrap_or(most).clamp(least, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threshold(signal: Signal, amount: &str, grace: Option<u64>, reclaim: Option<&str>) -> Threshold {
        Threshold {
            signal,
            amount: Amount::parse(amount).unwrap(),
            grace: grace.map(Duration::from_secs),
            minimum_reclaim: reclaim.map(|r| Amount::parse(r).unwrap()),
        }
    }

    fn memory(mebibytes: u64) -> Readings {
        [(Signal::MemoryAvailable, Reading { available: mebibytes << 20, capacity: 1 << 30 })].into()
    }

    fn judge(thresholds: Vec<Threshold>) -> Judge {
        Judge::new(Policy { thresholds, max_pod_grace: Duration::ZERO, transition: Duration::from_mins(5) })
    }

    #[test]
    fn amounts_are_written_as_the_kubelet_writes_them() {
        assert_eq!(Amount::parse("100Mi").unwrap(), Amount::Quantity(100 << 20));
        assert_eq!(Amount::parse("10%").unwrap().of(200), 20);
        assert_eq!(Amount::parse("100Mi").unwrap().to_string(), "100Mi");
        for bad in ["", "101%", "-1%", "x", "-5"] {
            assert!(Amount::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hard_threshold_acts_at_once_and_its_condition_holds_for_a_while() {
        let mut judge = judge(vec![threshold(Signal::MemoryAvailable, "100Mi", None, None)]);
        let start = Instant::now();
        assert_eq!(judge.judge(&memory(100), start), Verdict::default());
        let verdict = judge.judge(&memory(99), start);
        assert_eq!((verdict.reclaim.len(), verdict.pressures), (1, [Pressure::Memory].into()));
        let verdict = judge.judge(&memory(500), start + Duration::from_secs(299));
        assert_eq!((verdict.reclaim.len(), verdict.pressures), (0, [Pressure::Memory].into()));
        assert_eq!(judge.judge(&memory(500), start + Duration::from_secs(301)), Verdict::default());
    }

    #[test]
    fn a_soft_threshold_acts_after_its_grace_and_starts_anew_when_it_was_gone() {
        let mut judge = judge(vec![threshold(Signal::MemoryAvailable, "200Mi", Some(60), None)]);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let verdict = judge.judge(&memory(150), start);
        assert_eq!((verdict.reclaim.len(), verdict.pressures), (0, [Pressure::Memory].into()));
        assert!(judge.judge(&memory(150), after(59)).reclaim.is_empty());
        assert!(judge.judge(&memory(250), after(60)).reclaim.is_empty());
        assert!(judge.judge(&memory(150), after(61)).reclaim.is_empty());
        assert_eq!(judge.judge(&memory(150), after(121)).reclaim.len(), 1);
    }

    #[test]
    fn minimum_reclaim_is_asked_for_once_a_threshold_was_met() {
        let mut judge = judge(vec![threshold(Signal::MemoryAvailable, "100Mi", None, Some("50Mi"))]);
        let now = Instant::now();
        assert!(judge.judge(&memory(120), now).reclaim.is_empty());
        assert_eq!(judge.judge(&memory(90), now).reclaim.len(), 1);
        let verdict = judge.judge(&memory(120), now);
        assert_eq!(verdict.reclaim.len(), 1);
        assert!(!Judge::resolved(&verdict.reclaim[0], &memory(149)));
        assert!(judge.judge(&memory(150), now).reclaim.is_empty());
    }

    #[test]
    fn nobody_looks_often_while_there_is_plenty() {
        let judge = judge(vec![threshold(Signal::MemoryAvailable, "100Mi", None, None)]);
        let (least, most) = (Duration::from_millis(500), Duration::from_secs(10));
        assert_eq!(judge.pause(&memory(20_000), least, most), most);
        assert_eq!(judge.pause(&memory(1124), least, most), Duration::from_secs(2));
        assert_eq!(judge.pause(&memory(90), least, most), least);
    }
}
