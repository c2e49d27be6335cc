//! The system calls a container may make: `RuntimeDefault`, the profile container engines agree on, and `Localhost`.
//!
//! What is not named here is answered with EPERM; what is newer than all that is with ENOSYS, so that programs fall
//! back. Calls a libseccomp does not know are left out.

use std::collections::BTreeSet;
use std::path::Path;

use libcontainer::oci_spec::runtime::LinuxSeccompAction::ScmpActNotify;
use libcontainer::oci_spec::runtime::{LinuxSeccomp, LinuxSyscall};
use serde_json::{Value, json};

use super::types::Seccomp;

/// Largest profile file in bytes.
const MAX_PROFILE: u64 = 1 << 20;
/// `AF_VSOCK`: would reach the host of a virtual machine.
const AF_VSOCK: u64 = 40;
/// Flags of clone(2) that make namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// personality(2): Linux, 32-bit Linux, `UNAME26`, both, and asking.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const FILES: &str = "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat \
    fcntl fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 \
    fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr _llseek \
    lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat \
    openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv \
    removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 \
    statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat \
    utime utimensat utimensat_time64 utimes vmsplice write writev";
const WAITING: &str = "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup \
    io_submit _newselect pause poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4";
const SOCKETS: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";
const MEMORY: &str = "brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 \
    mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
    process_mrelease remap_file_pages";
const IPC: &str = "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat \
    shmctl shmdt shmget";
const PROCESSES: &str = "capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait \
    futex_waitv futex_wake getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid \
    getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list \
    getrusage getsid get_thread_area gettid getuid getuid32 ioprio_get ioprio_set kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction \
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 \
    setgroups setgroups32 setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
    setreuid32 setrlimit set_robust_list setsid set_thread_area set_tid_address setuid setuid32 sigaltstack sigprocmask \
    sigreturn sysinfo tgkill times tkill ugetrlimit uname uretprobe vfork wait4 waitid waitpid";
const CLOCKS: &str = "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create \
    timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create \
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64";

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "arch_prctl modify_ldt";
#[cfg(any(target_arch = "arm", target_arch = "aarch64"))]
const ARCHITECTURE: &str = "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2";
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: &str = "riscv_flush_icache";

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
#[cfg(target_arch = "arm")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_ARM"];
#[cfg(target_arch = "riscv64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_RISCV64"];

/// Calls a capability brings.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];

/// The seccomp part of an OCI configuration; `None` leaves the container unconfined. `capabilities` are the container's,
/// with `CAP_`.
pub fn section(wanted: &Seccomp, capabilities: &BTreeSet<String>) -> Result<Option<Value>, String> {
    match wanted {
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => Ok(Some(runtime_default(capabilities))),
        Seccomp::Localhost(file) => localhost(file).map(Some),
    }
}

fn runtime_default(capabilities: &BTreeSet<String>) -> Value {
    let always = [FILES, WAITING, SOCKETS, MEMORY, IPC, PROCESSES, CLOCKS, ARCHITECTURE];
    let brought =
        BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(*capability)).map(|(_, calls)| *calls);
    let names: BTreeSet<&str> = always.into_iter().chain(brought).flat_map(str::split_whitespace).collect();
    let when = |name: &str, index: u32, value: u64, op: &str| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [{"index": index, "value": value, "op": op}]});
    let mut calls =
        vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"}), when("socket", 0, AF_VSOCK, "SCMP_CMP_NE")];
    calls.extend(PERSONALITIES.map(|value| when("personality", 0, value, "SCMP_CMP_EQ")));
    if !names.contains("clone") {
        let no_namespace = json!({"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"});
        calls.push(json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [no_namespace]}));
        // its flags are in memory, where a filter cannot look: programs fall back to clone
        calls.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": nix::libc::ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": nix::libc::EPERM,
        "architectures": ARCHITECTURES, "syscalls": calls,
    })
}

/// A profile from a file, in the format of the OCI runtime specification.
fn localhost(file: &Path) -> Result<Value, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot load seccomp profile {}: {e}", file.display());
    let size = std::fs::metadata(file).map_err(|e| failed(&e))?.len();
    if size > MAX_PROFILE {
        return Err(failed(&format!("{size} bytes, at most {MAX_PROFILE} are read")));
    }
    let text = std::fs::read(file).map_err(|e| failed(&e))?;
    let profile: LinuxSeccomp = serde_json::from_slice(&text).map_err(|e| failed(&e))?;
    let mut actions = profile.syscalls().iter().flatten().map(LinuxSyscall::action);
    if profile.default_action() == ScmpActNotify || actions.any(|a| a == ScmpActNotify) {
        return Err(failed(&"SCMP_ACT_NOTIFY: listeners are not supported"));
    }
    serde_json::to_value(profile).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(capabilities: &[&str]) -> BTreeSet<String> {
        let profile = runtime_default(&capabilities.iter().map(ToString::to_string).collect());
        let parsed: LinuxSeccomp = serde_json::from_value(profile.clone()).unwrap();
        assert!(parsed.syscalls().as_ref().is_some_and(|s| s.len() >= 7));
        profile["syscalls"][0]["names"].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn capabilities_bring_their_calls() {
        let plain = allowed(&["CAP_SYS_CHROOT"]);
        assert!(plain.contains("chroot") && plain.contains("openat") && plain.contains("write"));
        for call in
            ["mount", "unshare", "bpf", "reboot", "keyctl", "add_key", "io_uring_setup", "userfaultfd", "clone3"]
        {
            assert!(!plain.contains(call), "{call}");
        }
        let admin = allowed(&["CAP_SYS_ADMIN"]);
        assert!(admin.contains("mount") && admin.contains("clone3") && !admin.contains("reboot"));
    }

    #[test]
    fn a_profile_that_cannot_be_read_is_named() {
        let dir = std::env::temp_dir().join(format!("pikelet-seccomp-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("p.json");
        let load = || section(&Seccomp::Localhost(file.clone()), &BTreeSet::new());
        assert!(load().unwrap_err().contains("p.json: No such file"));
        std::fs::write(&file, "{").unwrap();
        assert!(load().unwrap_err().starts_with("cannot load seccomp profile"));
        std::fs::write(&file, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
        assert_eq!(load().unwrap().unwrap()["defaultAction"], "SCMP_ACT_ALLOW");
        let call = r#"{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}"#;
        std::fs::write(&file, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{call}]}}"#)).unwrap();
        assert!(load().unwrap_err().contains("listeners"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
