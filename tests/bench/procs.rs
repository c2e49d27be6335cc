//! The processes of the measured node: its agent and shims, their CPU time, memory and writes.

use std::fs;
use std::path::PathBuf;

use super::Outcome;

/// A node of a test cluster on this machine.
pub struct Node {
    dir: PathBuf,
    agent: i32,
}

fn children_of(pids: &[i32], key: &str, file: &str) -> u64 {
    let value = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        text.lines().find_map(|l| l.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok())
    };
    pids.iter().filter_map(value).sum()
}

impl Node {
    /// The node `n1` of the cluster in `PIKELET_CLUSTER_DIR`.
    pub fn find() -> Outcome<Self> {
        let dir = PathBuf::from(std::env::var("PIKELET_CLUSTER_DIR")?);
        let text = fs::read_to_string(dir.join("pids/agent-n1"))?;
        let agent = text.split_whitespace().next().ok_or("no pid of the agent")?.parse()?;
        Ok(Self { dir, agent })
    }

    fn shims(&self) -> Vec<i32> {
        let mark = format!("{}/n1/run", self.dir.display());
        let is_shim = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|b| *b == 0).skip(1);
            words.next() == Some(b"shim") && words.any(|w| String::from_utf8_lossy(w).starts_with(&mark))
        };
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        pids.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(is_shim).collect()
    }

    /// Seconds of CPU of everything in the agent's cgroup: the agent, its shims, and what they start until it has
    /// moved to its pod's cgroup.
    pub fn cpu(&self) -> Outcome<f64> {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", self.agent))?;
        let v1 = text.lines().find_map(|l| {
            let mut fields = l.splitn(3, ':').skip(1);
            fields.next()?.split(',').any(|c| c == "cpuacct").then(|| fields.next())?
        });
        if let Some(path) = v1 {
            let usage = fs::read_to_string(format!("/sys/fs/cgroup/cpuacct{path}/cpuacct.usage"))?;
            return Ok(usage.trim().parse::<f64>()? / 1e9);
        }
        let path = text.trim().strip_prefix("0::").ok_or("no cgroup of the agent")?;
        let stat = fs::read_to_string(format!("/sys/fs/cgroup{path}/cpu.stat"))?;
        let usage = stat.lines().find_map(|l| l.strip_prefix("usage_usec ")).ok_or("no usage_usec")?;
        Ok(usage.parse::<f64>()? / 1e6)
    }

    /// Seconds of CPU of the agent alone, in hundredths.
    pub fn agent_cpu(&self) -> Outcome<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.agent))?;
        let fields = stat.rsplit_once(')').ok_or("the agent's stat has no name")?.1.split_whitespace();
        // utime and stime, the 14th and 15th of proc_pid_stat(5)
        let ticks: u64 = fields.skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        Ok(ticks as f64 / 100.0)
    }

    /// Where the node keeps the logs of pods.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("n1/log")
    }

    /// PSS of the agent, and of a shim on average, in MiB.
    pub fn memory(&self) -> Outcome<(f64, f64)> {
        let shims = self.shims();
        let pss = |pids: &[i32]| children_of(pids, "Pss:", "smaps_rollup") as f64 / 1024.0;
        if shims.is_empty() {
            return Err("no shims were found".into());
        }
        Ok((pss(&[self.agent]), pss(&shims) / shims.len() as f64))
    }

    /// Bytes agent and shims have sent to disks.
    pub fn written(&self) -> u64 {
        let mut pids = self.shims();
        pids.push(self.agent);
        children_of(&pids, "write_bytes:", "io")
    }
}
