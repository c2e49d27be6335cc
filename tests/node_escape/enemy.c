/* What a hostile program in a container tries. Each command prints what it found, a line each, and `done` when it has
 * looked at all; the tests judge. Built without a C library of the container's: static.
 *
 *   look PID MARKER SECRET           one process, through every door /proc has: does it lead to the host's file MARKER,
 *                                    is the text SECRET in its environment or memory
 *   hunt MARKER SECRET STOP          the same of every process that appears, by guessing its pid, until the file STOP
 *                                    is there
 *   search SECRET STOP               searches the memory of every process that appears, which it stops for that
 *   grab STOP                        opens the program of every process that appears for writing
 *   environ MEBIBYTES                says that so much nothing is its environment, and waits
 *   calls                            system calls that no container should have
 *   chmod FD                         changes the mode of what a descriptor of its own is
 *   keep TEXT                        puts a key of that text into its session keyring
 *   keys                             looks for such a key
 *   stop STOP                        stops (SIGSTOP) every process that appears
 *   spoil STOP                       changes the code of every process that appears and does not run a program of this
 *                                    container yet, and kills it: who else has its memory runs that code
 *   rewrite                          changes the file that is descriptor 100 to what it is already
 *   pull STOP                        moves every process that hunts into a cgroup of its own, which no other's freezer reaches
 *   ptys                             opens as many terminals as it can have
 *   pause                            waits
 *
 * Some of this would harm a machine: it does nothing outside a container's root file system, where it is `/enemy`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define UP "../../../../../../../../../../../../../../../.."
/* most that is searched of a process's memory, in bytes */
#define MEMORY (64L << 20)

static const char *marker, *secret;
static unsigned long long own_caps;

/* Each kind of finding is told once. */
static void found(const char *kind, int pid, const char *what) {
    static char *told[64];
    int i;
    for (i = 0; i < 63 && told[i]; i++)
        if (!strcmp(told[i], kind)) return;
    told[i] = strdup(kind);
    printf("found %s of %d: %s\n", kind, pid, what);
    fflush(stdout);
}

static int holds(const char *text, size_t size) {
    return *secret && memmem(text, size, secret, strlen(secret)) != NULL;
}

/* Is the marker below the folder at `path`, or above it? */
static int leads_out(const char *path) {
    char full[8192];
    struct stat st;
    snprintf(full, sizeof full, "%s/%s", path, marker);
    if (!stat(full, &st)) return 1;
    snprintf(full, sizeof full, "%s/" UP "/%s", path, marker);
    return !stat(full, &st);
}

static unsigned long long caps_of(int pid) {
    char path[64], line[256];
    unsigned long long caps = 0;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "CapPrm: %llx", &caps) == 1) break;
    if (status) fclose(status);
    return caps;
}

static void look_at_memory(int pid) {
    char path[64], line[512];
    static char buffer[1 << 16];
    long left = MEMORY;
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = memory < 0 ? NULL : fopen(path, "re");
    while (maps && left > 0 && fgets(line, sizeof line, maps)) {
        unsigned long long from, to;
        char access[8];
        if (sscanf(line, "%llx-%llx %7s", &from, &to, access) != 3 || access[0] != 'r' || access[1] != 'w') continue;
        /* what lies across the border of two buffers is found as well */
        for (; from < to && left > 0; from += sizeof buffer - 256, left -= sizeof buffer) {
            ssize_t got = pread(memory, buffer, sizeof buffer < to - from ? sizeof buffer : to - from, (off_t)from);
            if (got <= 0) break;
            if (holds(buffer, got)) { found("memory", pid, "the secret is in it"); left = 0; }
        }
    }
    if (maps) fclose(maps);
    if (memory >= 0) close(memory);
}

static void look_at_descriptors(int pid) {
    char dir[64], path[512], target[4096];
    snprintf(dir, sizeof dir, "/proc/%d/fd", pid);
    DIR *list = opendir(dir);
    struct dirent *entry;
    while (list && (entry = readdir(list))) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        ssize_t length = readlink(path, target, sizeof target - 1);
        if (length < 0) continue;
        target[length] = 0;
        struct stat st;
        if (stat(path, &st)) continue;
        if (S_ISDIR(st.st_mode) && leads_out(path)) found("descriptor of a folder", pid, target);
        if (!strcmp(target, "/") || strstr(target, "/proc") == target) found("descriptor of a file system", pid, target);
        if (S_ISREG(st.st_mode) && !strstr(target, "memfd:") && access(target, F_OK)) found("descriptor of a file", pid, target);
        if (strstr(target, "mnt:[") || strstr(target, "pid:[")) found("descriptor of a namespace", pid, target);
    }
    if (list) closedir(list);
}

/* More capabilities than this container's own, of a process that can be made to do as it is told. */
static void look_at_capabilities(int pid) {
    char path[64], own[64] = "", its[64] = "";
    if (!(caps_of(pid) & ~own_caps)) return;
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDWR | O_CLOEXEC);
    if (memory < 0) return;
    close(memory);
    snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
    if (readlink("/proc/self/ns/user", own, sizeof own - 1) < 0 || readlink(path, its, sizeof its - 1) < 0) return;
    if (!(caps_of(pid) & ~own_caps)) return;
    found(strcmp(own, its) ? "capability over the host" : "capability", pid, "it has more than this container");
}

static void look_at(int pid, int thoroughly) {
    char path[64], text[1 << 16];
    snprintf(path, sizeof path, "/proc/%d/root", pid);
    if (leads_out(path)) found("root", pid, "it leads to the host");
    snprintf(path, sizeof path, "/proc/%d/cwd", pid);
    if (leads_out(path)) found("working directory", pid, "it leads to the host");
    look_at_descriptors(pid);
    snprintf(path, sizeof path, "/proc/%d/environ", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = file < 0 ? 0 : read(file, text, sizeof text);
    if (file >= 0) close(file);
    if (got > 0 && holds(text, got)) found("environment", pid, "the secret is in it");
    look_at_capabilities(pid);
    if (thoroughly) look_at_memory(pid);
}

/* The pids that appear after this one, of programs that are not this one's. */
static void every_new_process(const char *stop, void (*visit)(int)) {
    int next = getpid() + 1, seen = 0;
    char path[64];
    struct stat st;
    while (stat(stop, &st)) {
        int here = 0;
        for (int pid = next; pid < next + 64; pid++) {
            snprintf(path, sizeof path, "/proc/%d", pid);
            if (stat(path, &st)) continue;
            here = pid;
            seen++;
            /* it is looked at for as long as it is there: what it is changes on its way */
            for (int i = 0; i < 2000 && !stat(path, &st); i++) visit(pid);
        }
        if (here) next = here + 1;
    }
    printf("seen %d\n", seen);
}

static void glance(int pid) { look_at(pid, 0); }

static void grab_program(int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0) return;
    struct stat it, own;
    /* that of a program of the container's own, which may be over by now */
    if (!fstat(file, &it) && !stat("/bin/busybox", &own) && it.st_dev == own.st_dev && it.st_ino == own.st_ino) {
        close(file);
        return;
    }
    char target[4096] = "";
    if (readlink(path, target, sizeof target - 1) < 0) target[0] = 0;
    found("program to write to", pid, target);
    close(file);
}

static void halt(int pid) { kill(pid, SIGSTOP); }

static int runs_own_program(int pid) {
    char path[64], target[4096];
    struct stat its, own;
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length <= 0 || stat(path, &its)) return 1;
    target[length] = 0;
    return !stat(target, &own) && own.st_dev == its.st_dev && own.st_ino == its.st_ino;
}

static void spoil(int pid) {
    static int spoilt;
    char path[64], line[512];
    if (ptrace(PTRACE_SEIZE, pid, 0, 0)) return;
    ptrace(PTRACE_INTERRUPT, pid, 0, 0);
    int status = 0;
    if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status)) return;
    if (runs_own_program(pid)) { ptrace(PTRACE_DETACH, pid, 0, 0); return; }
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDWR | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = memory < 0 ? NULL : fopen(path, "re");
    static char nothing[1 << 20];
    memset(nothing, 0, sizeof nothing);
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long long from, to;
        char access[8];
        if (sscanf(line, "%llx-%llx %7s", &from, &to, access) != 3 || access[2] != 'x') continue;
        for (; from < to; from += sizeof nothing) {
            size_t size = sizeof nothing < to - from ? sizeof nothing : to - from;
            if (pwrite(memory, nothing, size, (off_t)from) < 0) break;
        }
    }
    if (maps) { printf("spoilt %d\n", ++spoilt); fclose(maps); }
    if (memory >= 0) close(memory);
    kill(pid, SIGKILL);
    waitpid(pid, &status, __WALL);
}

static void search(int pid) {
    int status = 0;
    if (ptrace(PTRACE_SEIZE, pid, 0, 0)) return;
    ptrace(PTRACE_INTERRUPT, pid, 0, 0);
    if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status)) return;
    if (!runs_own_program(pid)) { static int searched; if (!searched++) puts("searched one"); look_at_memory(pid); }
    ptrace(PTRACE_DETACH, pid, 0, 0);
}

static void tell(const char *what, long result) { printf("%s: %s\n", what, result < 0 ? strerror(errno) : "ALLOWED"); }

static void rewrite(void) {
    char byte;
    int file = -1;
    struct stat st;
    if (!fstat(100, &st)) tell("mode", fchmod(100, st.st_mode & 07777));
    tell("owner", fchown(100, -1, st.st_gid));
    for (int i = 0; i < 1000 && file < 0; i++) file = open("/proc/self/fd/100", O_WRONLY);
    if (file < 0) { printf("open: %s\n", strerror(errno)); return; }
    if (pread(100, &byte, 1, 0) != 1 || pwrite(file, &byte, 1, 0) != 1) { printf("write: %s\n", strerror(errno)); return; }
    puts("WRITTEN");
}

/* With arguments that could not succeed: whether the kernel came as far as to look at them. */
static void refused(const char *what, long result) {
    tell(what, result < 0 && (errno == EPERM || errno == EACCES || errno == ENOSYS) ? -1 : 0);
}

static void calls(void) {
    mkdir("/tmp/at", 0755);
    tell("mount", mount("tmpfs", "/tmp/at", "tmpfs", 0, NULL));
    tell("mount proc", mount("proc", "/tmp/at", "proc", 0, NULL));
    tell("bind", mount("/proc/sys", "/tmp/at", NULL, MS_BIND, NULL));
    tell("remount", mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    tell("umount", umount2("/proc/sys", MNT_DETACH));
    tell("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    tell("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */));
    tell("unshare cgroup", unshare(CLONE_NEWCGROUP));
    int own = open("/proc/self/ns/net", O_RDONLY);
    tell("setns", setns(own, CLONE_NEWNET));
    tell("keyctl", syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -3, 0));
    tell("add_key", syscall(SYS_add_key, "user", "a", "b", 1, -4));
    refused("bpf", syscall(SYS_bpf, 0, NULL, 0));
    tell("userfaultfd", syscall(SYS_userfaultfd, 0));
    refused("perf_event_open", syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0));
    refused("io_uring_setup", syscall(SYS_io_uring_setup, 1, NULL));
    static struct { unsigned bytes; int type; unsigned char handle[8]; } root = {8, 1, {2}};
    tell("a call nobody knows", syscall(999));
    refused("open_by_handle_at", syscall(SYS_open_by_handle_at, open("/", O_RDONLY), &root, O_RDONLY));
    tell("kexec_load", syscall(SYS_kexec_load, 0, 0, NULL, 0));
    refused("init_module", syscall(SYS_init_module, NULL, 0, ""));
    refused("pivot_root", syscall(SYS_pivot_root, "/", "/tmp"));
    refused("swapoff", syscall(SYS_swapoff, "/none"));
    refused("reboot", syscall(SYS_reboot, 1, 2, 3, NULL));
    static const struct { const char *name; mode_t mode; int major, minor; } devices[] = {
        {"mem", S_IFCHR, 1, 1}, {"kmsg", S_IFCHR, 1, 11}, {"loop-control", S_IFCHR, 10, 237}, {"fuse", S_IFCHR, 10, 229},
        {"tun", S_IFCHR, 10, 200}, {"vda", S_IFBLK, 252, 0}, {"sda", S_IFBLK, 8, 0}, {"loop0", S_IFBLK, 7, 0},
        {"mmcblk0", S_IFBLK, 179, 0}, {"nvme0", S_IFBLK, 259, 0}, {"ram0", S_IFBLK, 1, 0},
    };
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        char path[64], what[64];
        snprintf(path, sizeof path, "/tmp/%s", devices[i].name);
        snprintf(what, sizeof what, "device %s", devices[i].name);
        /* a node may be made; what no machine has says ENXIO or ENODEV where the rules let it through */
        if (mknod(path, devices[i].mode | 0600, makedev(devices[i].major, devices[i].minor))) { tell(what, -1); continue; }
        int file = open(path, O_RDWR);
        refused(what, file);
    }
    /* the last: with users of its own it may do more, to itself */
    tell("unshare user", unshare(CLONE_NEWUSER));
}

static void big_environment(long mebibytes) {
    struct prctl_mm_map map = {0};
    size_t size = (size_t)mebibytes << 20;
    char *nothing = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (nothing == MAP_FAILED) { perror("mmap"); exit(1); }
    FILE *stat = fopen("/proc/self/stat", "r");
    static char text[4096];
    char *at = fgets(text, sizeof text, stat) ? strrchr(text, ')') + 2 : text;
    unsigned long long field[64] = {0};
    int n = 3;
    for (char *word = strtok(at, " "); word && n < 64; word = strtok(NULL, " ")) field[n++] = strtoull(word, NULL, 10);
    map.start_code = field[26]; map.end_code = field[27]; map.start_stack = field[28];
    map.start_data = field[45]; map.end_data = field[46]; map.start_brk = field[47];
    map.brk = (unsigned long long)sbrk(0);
    map.arg_start = field[48]; map.arg_end = field[49];
    map.env_start = (unsigned long long)nothing; map.env_end = (unsigned long long)nothing + size;
    map.exe_fd = -1;
    if (prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0)) { printf("not possible: %s\n", strerror(errno)); fflush(stdout); }
    else { puts("ready"); fflush(stdout); }
    for (;;) pause();
}

static int put(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    return file < 0 || write(file, text, strlen(text)) < 0 ? -1 : close(file);
}

/* Runs a program as root of user, mount and cgroup namespaces of its own. */
static int as_root_of_its_own(char **program) {
    char map[64];
    snprintf(map, sizeof map, "0 %u 1", (unsigned)getuid());
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP) || put("/proc/self/uid_map", map)) return perror("unshare"), 3;
    execvp(program[0], program);
    return perror(program[0]), 3;
}

/* Makes folders in each other. */
static void nest(long depth) {
    long made = 0;
    while (made < depth && !mkdir("d", 0755) && !chdir("d")) made++;
    printf("made %ld\n", made);
}

/* Version 1 of cgroups lets any root move processes of root; a cgroup namespace of one's own shows where to. */
static void pull(const char *stop) {
    int procs = -1, told = 0;
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP)) printf("unshare: %s\n", strerror(errno));
    else {
        int setgroups = open("/proc/self/setgroups", O_WRONLY), uids = open("/proc/self/uid_map", O_WRONLY);
        if (write(setgroups, "deny", 4) < 0 || write(uids, "0 0 1", 5) < 0) printf("users: %s\n", strerror(errno));
        mkdir("/pulled", 0755);
        if (mount("cgroup", "/pulled", "cgroup", 0, "freezer")) printf("mount: %s\n", strerror(errno));
        else procs = open("/pulled/cgroup.procs", O_WRONLY);
    }
    puts("ready");
    while (access(stop, F_OK)) {
        DIR *all = opendir("/proc");
        struct dirent *entry;
        while (procs >= 0 && all && (entry = readdir(all))) {
            char path[300], line[64] = "";
            int file, length;
            snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
            if (atoi(entry->d_name) <= 1 || (file = open(path, O_RDONLY)) < 0) continue;
            length = read(file, line, sizeof line - 1);
            close(file);
            if (length < 12 || memcmp(line, "/enemy\0hunt", 11)) continue;
            if (dprintf(procs, "%s", entry->d_name) > 0 && !told++) puts("moved");
        }
        if (all) closedir(all);
        usleep(10000);
    }
    puts("done");
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    if (access("/enemy", X_OK)) {
        fputs("enemy: only in a container\n", stderr);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    own_caps = caps_of(getpid());
    if (!strcmp(command, "look") && argc == 5) {
        marker = argv[3]; secret = argv[4];
        look_at(atoi(argv[2]), 1);
        puts("done");
    } else if (!strcmp(command, "hunt") && argc == 5) {
        marker = argv[2]; secret = argv[3];
        puts("ready");
        every_new_process(argv[4], glance);
        puts("done");
    } else if (!strcmp(command, "search") && argc == 4) {
        secret = argv[2];
        puts("ready");
        every_new_process(argv[3], search);
        puts("done");
    } else if (!strcmp(command, "keep") && argc == 3) {
        if (syscall(SYS_add_key, "user", "kept", argv[2], strlen(argv[2]), -3) < 0) perror("add_key");
        puts("done");
    } else if (!strcmp(command, "keys")) {
        char text[256];
        long key = syscall(SYS_request_key, "user", "kept", NULL, 0);
        long length = key < 0 ? -1 : syscall(SYS_keyctl, 11 /* READ */, key, text, sizeof text - 1);
        if (length < 0) printf("none: %s\n", strerror(errno));
        else printf("found key: %.*s\n", (int)length, text);
        puts("done");
    } else if (!strcmp(command, "grab") && argc == 3) {
        puts("ready");
        every_new_process(argv[2], grab_program);
        puts("done");
    } else if (!strcmp(command, "environ") && argc == 3) {
        big_environment(atol(argv[2]));
    } else if (!strcmp(command, "calls")) {
        calls();
        puts("done");
    } else if (!strcmp(command, "chmod") && argc == 3) {
        if (fchmod(atoi(argv[2]), 0600)) perror("fchmod");
        puts("done");
    } else if (!strcmp(command, "stop") && argc == 3) {
        puts("ready");
        every_new_process(argv[2], halt);
        puts("done");
    } else if (!strcmp(command, "spoil") && argc == 3) {
        puts("ready");
        every_new_process(argv[2], spoil);
        puts("done");
    } else if (!strcmp(command, "users") && argc > 2) {
        return as_root_of_its_own(argv + 2);
    } else if (!strcmp(command, "nest") && argc == 3) {
        nest(atol(argv[2]));
    } else if (!strcmp(command, "rewrite")) {
        rewrite();
    } else if (!strcmp(command, "pull") && argc == 3) {
        pull(argv[2]);
    } else if (!strcmp(command, "ptys")) {
        struct rlimit most = {1 << 16, 1 << 16};
        int count = 0;
        (void)!setrlimit(RLIMIT_NOFILE, &most);
        while (count < 1000 && open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0) count++;
        printf("terminals: %d\ndone\n", count);
        for (;;) pause();
    } else if (!strcmp(command, "pause")) {
        for (;;) pause();
    } else {
        fprintf(stderr, "enemy: no command %s with so many words\n", command);
        return 2;
    }
    return 0;
}
