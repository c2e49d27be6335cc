//! `make bench`: create, start, wait and delete of `true` in a running sandbox through the shim's own protocol, beside
//! whole runs of the same bundle by crun and runc, and `unshare` as the floor. No pod, no API server.
//!
//! Expects the program to measure in `PIKELET_BIN`. crun refuses a machine with both versions of cgroups:
//! tests/bench/containers.sh shows one. `BENCH_UNLIMITED` says that it has no controllers: nobody gets limits then, and the
//! peers no device rules either, for which crun wants `CAP_SYS_RESOURCE`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "../harness/node.rs"]
#[allow(dead_code)]
mod node;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use node::{Node, exit_of};
use pikelet::runtime::{ContainerSpec, Resources, Runtime, RuntimeEvent, Seccomp, seccomp_profile};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What one way of running `true` has cost so far.
#[derive(Default)]
struct Cost {
    /// Of single runs.
    wall: Vec<Duration>,
    /// Of all together.
    cpu: Duration,
}

impl Cost {
    fn wall(&self) -> f64 {
        let mut times = self.wall.clone();
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1000.0
    }

    fn cpu(&self) -> f64 {
        self.cpu.as_secs_f64() * 1000.0 / self.wall.len() as f64
    }
}

/// A process and all it has waited for.
fn cpu_of(pid: i32) -> Outcome<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').ok_or("a stat without a name")?.1.split_whitespace();
    // utime, stime, cutime and cstime: the 14th to 17th of proc_pid_stat(5), in hundredths of a second
    let ticks: u64 = fields.skip(11).take(4).filter_map(|n| n.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn cpu_of_children() -> Outcome<Duration> {
    let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(Duration::from_micros((used.user_time() + used.system_time()).num_microseconds() as u64))
}

/// The sandbox all of ours run in.
struct Ours {
    node: Node,
    runtime: Runtime,
    events: UnboundedReceiver<RuntimeEvent>,
    /// Whether containers get limits, which takes controllers.
    limited: bool,
}

impl Ours {
    fn spec(&self, id: &str, seccomp: &Seccomp) -> ContainerSpec {
        let resources = if self.limited {
            Resources { cpu_shares: Some(100), memory_limit: Some(64 << 20), ..Default::default() }
        } else {
            Resources::default()
        };
        ContainerSpec { cwd: "/".into(), seccomp: seccomp.clone(), resources, ..self.node.container(id, &["true"]) }
    }

    async fn run(&mut self, count: usize, seccomp: &Seccomp, cost: &mut Cost) -> Outcome<()> {
        let shim = self.runtime.shim("s").ok_or("no shim")?;
        let before = cpu_of(shim)?;
        for _ in 0..count {
            let spec = self.spec("c", seccomp);
            let start = Instant::now();
            self.runtime.create_container("s", spec).await?;
            self.runtime.start_container("s", "c").await?;
            let exit = exit_of(&mut self.events, "c").await;
            self.runtime.remove_container("s", "c").await?;
            cost.wall.push(start.elapsed());
            if exit.code != 0 {
                return Err(format!("true ended with {}", exit.code).into());
            }
        }
        cost.cpu += cpu_of(shim)?.saturating_sub(before);
        Ok(())
    }

    /// A bundle of the same container for other runtimes: with the limits that our shim writes itself.
    async fn bundle(&mut self, seccomp: &Seccomp) -> Outcome<PathBuf> {
        let bundle = self.node.dir.join("bundle");
        fs::create_dir_all(&bundle)?;
        let spec = self.spec("model", seccomp);
        self.runtime.create_container("s", spec).await?;
        let made = self.node.config.state_dir.join("sandboxes/s/containers/model");
        let mut config: Value = serde_json::from_slice(&fs::read(made.join("config.json"))?)?;
        // what our shim does itself
        config["process"] = serde_json::from_slice(&fs::read(made.join("process.json"))?)?;
        let capabilities = serde_json::from_value(config["process"]["capabilities"]["bounding"].clone())?;
        if let Some(profile) = seccomp_profile(seccomp, &capabilities)? {
            config["linux"]["seccomp"] = profile;
        }
        self.runtime.remove_container("s", "model").await?;
        config["linux"]["cgroupsPath"] = json!(format!("/{}/peer", self.node.config.cgroup_root));
        if self.limited {
            config["linux"]["resources"]["cpu"] = json!({"shares": 100});
            config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        } else {
            config["linux"]["resources"] = json!({});
        }
        fs::write(bundle.join("config.json"), config.to_string())?;
        Ok(bundle)
    }
}

/// Runs `command`, which ends when the container has ended and is removed.
fn theirs(count: usize, cost: &mut Cost, command: impl Fn() -> Command) -> Outcome<()> {
    let before = cpu_of_children()?;
    for _ in 0..count {
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let start = Instant::now();
        let status = command.status().map_err(|e| format!("{command:?}: {e}"))?;
        cost.wall.push(start.elapsed());
        if !status.success() {
            return Err(format!("{command:?}: {status}").into());
        }
    }
    cost.cpu += cpu_of_children()?.saturating_sub(before);
    Ok(())
}

fn oci(program: &str, state: &Path, bundle: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--root").arg(state).args(["run", "--bundle"]).arg(bundle).arg(format!("bench-{}", std::process::id()));
    command
}

fn row(what: &str, value: &str, mark: &str) {
    println!("{what:<52} {value:>24}   {mark}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let (rounds, count) = if std::env::var_os("BENCH_SHORT").is_some() { (1, 3) } else { (8, 15) };
    let mut node = Node::new("bench").ok_or("nothing can be measured")?;
    node.config.shim_exe = std::env::var_os("PIKELET_BIN").ok_or("PIKELET_BIN names no program")?.into();
    let (runtime, events) = Runtime::open(node.config.clone())?;
    runtime.create_sandbox(node.sandbox("s")).await?;
    let limited = std::env::var_os("BENCH_UNLIMITED").is_none();
    let (state, mut ours) = (node.dir.join("peers"), Ours { node, runtime, events, limited });
    let version = if limited { "" } else { ", cgroup v2" };
    for (seccomp, name) in [(Seccomp::Unconfined, ""), (Seccomp::RuntimeDefault, ", seccomp")] {
        let bundle = ours.bundle(&seccomp).await?;
        let mut costs: [Cost; 4] = Default::default();
        let [own, crun, runc, floor] = &mut costs;
        // side by side, so that what else the machine does is everybody's
        for _ in 0..rounds {
            ours.run(count, &seccomp, own).await?;
            theirs(count, crun, || oci("crun", &state, &bundle))?;
            theirs(count, runc, || oci("runc", &state, &bundle))?;
            theirs(count, floor, || {
                let mut command = Command::new("unshare");
                command.args(["-mnpuif", "true"]);
                command
            })?;
        }
        for (cost, who) in costs.iter().zip(["pikelet's shim", "crun", "runc", "unshare -mnpuif"]) {
            let value = format!("{:.2} / {:.2} ms", cost.wall(), cost.cpu());
            row(&format!("`true` by {who}, wall p50 / CPU{version}{name}"), &value, "");
        }
        let [own, crun, runc, _] = &costs;
        for (peer, who, mark) in [(crun, "crun", "0.70 / 0.70"), (runc, "runc", "")] {
            let value = format!("{:.2} / {:.2}", own.wall() / peer.wall(), own.cpu() / peer.cpu());
            row(&format!("  in times of {who}"), &value, mark);
        }
    }
    ours.runtime.remove_sandbox("s").await?;
    Ok(())
}
