//! Who asks, and what the system allows a process: capabilities, limits, entropy; and whether its clock is kept.
#![allow(unsafe_code)]

use nix::sys::resource::{Resource, getrlimit};

use super::{Finding, read};

/// Open files an agent with 110 pods and their streams may need.
const OPEN_FILES: u64 = 4096;
/// Processes of 110 pods.
const PROCESSES: u64 = 8192;
/// Bits the kernel's random numbers must have been started with.
const ENTROPY: u32 = 128;
/// What agent and containers use (capabilities(7)): number, name, and whether a node can do without.
const CAPABILITIES: [(u32, &str, bool); 13] = [
    (0, "CAP_CHOWN", true),
    (1, "CAP_DAC_OVERRIDE", true),
    (3, "CAP_FOWNER", true),
    (5, "CAP_KILL", true),
    (6, "CAP_SETGID", true),
    (7, "CAP_SETUID", true),
    (8, "CAP_SETPCAP", true),
    (12, "CAP_NET_ADMIN", true),
    (18, "CAP_SYS_CHROOT", true),
    (19, "CAP_SYS_PTRACE", true),
    (21, "CAP_SYS_ADMIN", true),
    (24, "CAP_SYS_RESOURCE", false),
    (27, "CAP_MKNOD", true),
];

/// True when a time server keeps the kernel's clock.
pub fn clock_synchronized() -> bool {
    // SAFETY: the structure is plain numbers, for which zero is a value; with no mode set the kernel changes nothing.
    let mut state: nix::libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one timex, and state is one.
    let code = unsafe { nix::libc::adjtimex(&raw mut state) };
    code >= 0 && state.status & nix::libc::STA_UNSYNC == 0
}

/// `status`: `/proc/self/status` of root.
fn capabilities(status: &str) -> Finding {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let Some(held) = line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok()) else {
        return Finding::ok("user", "root");
    };
    let lacking = CAPABILITIES.iter().filter(|(bit, ..)| held >> bit & 1 == 0);
    let (needed, useful): (Vec<_>, Vec<_>) = lacking.partition(|(_, _, needed)| *needed);
    let names = |list: &[&(u32, &str, bool)]| list.iter().map(|(_, name, _)| *name).collect::<Vec<_>>().join(", ");
    let mend = "give the agent's container or unit all capabilities (privileged)";
    if !needed.is_empty() {
        return Finding::missing("user", format!("root without {}", names(&needed)), mend);
    }
    if !useful.is_empty() {
        return Finding::warning("user", format!("root without {}: limits cannot be raised", names(&useful)), mend);
    }
    Finding::ok("user", "root")
}

/// Who asks.
pub fn user(root: bool) -> Finding {
    if root {
        return capabilities(&read("/proc/self/status"));
    }
    Finding::unknown("user", "not root, as the agent has to be: some things are told, not tried")
}

fn limit(check: &str, hard: u64, wanted: u64, unit: &str) -> Finding {
    if hard >= wanted {
        let found = if hard > u64::from(u32::MAX) { "unlimited".to_owned() } else { hard.to_string() };
        return Finding::ok(check, found);
    }
    let mend =
        format!("raise it to {wanted} at least: {unit}=infinity in the unit, or ulimit in the shell that starts it");
    Finding::warning(check, format!("{hard}, too few for 110 pods"), mend)
}

fn entropy(available: &str) -> Finding {
    match available.trim().parse::<u32>() {
        Ok(bits) if bits < ENTROPY => Finding::warning(
            "entropy",
            format!("{bits} bits: keys are made slowly after boot"),
            "enable the board's random number generator (rng-tools), or wait",
        ),
        Ok(bits) => Finding::ok("entropy", format!("{bits} bits")),
        Err(_) => Finding::ok("entropy", "the kernel does not tell"),
    }
}

fn node_name(name: &str) -> Finding {
    let check = "node name";
    match name {
        "" | "localhost" => {
            Finding::missing(check, "none of its own", "hostnamectl set-hostname NAME, or set --node-name")
        }
        "raspberrypi" => Finding::warning(
            check,
            "raspberrypi, as every board is called at first: two nodes of one name drive each other out",
            "hostnamectl set-hostname NAME, or set --node-name",
        ),
        name => Finding::ok(check, name),
    }
}

/// What a process may have on this system, and the name of the Node.
pub fn check(name: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (check, resource, wanted, unit) in [
        ("open files", Resource::RLIMIT_NOFILE, OPEN_FILES, "LimitNOFILE"),
        ("processes", Resource::RLIMIT_NPROC, PROCESSES, "LimitNPROC"),
    ] {
        // the type of a limit differs between C libraries
        #[allow(clippy::useless_conversion)]
        findings.extend(getrlimit(resource).ok().map(|(_, hard)| limit(check, u64::from(hard), wanted, unit)));
    }
    let pids = read("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(u64::MAX);
    if pids < PROCESSES {
        let mend = "sysctl -w kernel.pid_max=32768, and the same in /etc/sysctl.d";
        findings.push(Finding::warning("process ids", format!("{pids}, too few for 110 pods"), mend));
    }
    findings.push(entropy(&read("/proc/sys/kernel/random/entropy_avail")));
    findings.push(node_name(name));
    findings
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn capabilities_a_node_needs() {
        let state = |held: u64| capabilities(&format!("Name:\tx\nCapEff:\t{held:016x}\n")).state;
        let all = (1 << 41) - 1;
        assert_eq!((state(all), state(all & !(1 << 24)), state(all & !(1 << 21))), {
            (State::Ok, State::Warning, State::Missing)
        });
    }

    #[test]
    fn limits_entropy_and_names() {
        assert_eq!((limit("a", 1024, 4096, "b").state, limit("a", u64::MAX, 4096, "b").state), {
            (State::Warning, State::Ok)
        });
        assert_eq!((entropy("12\n").state, entropy("256\n").state), (State::Warning, State::Ok));
        let states = ["localhost", "raspberrypi", "pi-1"].map(|n| node_name(n).state);
        assert_eq!(states, [State::Missing, State::Warning, State::Ok]);
    }
}
