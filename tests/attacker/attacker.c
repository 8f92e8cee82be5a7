/* Attacks from inside a broker, for the test `isolation`.
 *
 * The test loads this library into a real broker (LD_PRELOAD). The broker's first wait for events, which comes after it
 * has entered its sandbox, starts a thread that makes every attack once, as an attacker would who has taken over the
 * process, and writes one line for each: `attack NAME: stopped: ERROR` or `attack NAME: SUCCEEDED`.
 *
 * VICTIM_* in the environment name another tenant's broker and the supervisor; VICTIM_SPARED names attacks to leave out.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_process_mrelease
#define SYS_process_mrelease 448
#endif
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

static const char *env(const char *name) {
    const char *value = getenv(name);
    return value ? value : "/nonexistent";
}
static pid_t victim(void) { return atoi(env("VICTIM_PID")); }
static pid_t supervisor(void) { return atoi(env("VICTIM_SUPERVISOR")); }

/* Formats a path; the buffers rotate, so that two may be used in one call. */
static const char *path(const char *folder, const char *name) {
    static char buffers[4][600];
    static int next;
    char *buffer = buffers[next++ % 4];
    snprintf(buffer, sizeof buffers[0], "%s/%s", folder, name);
    return buffer;
}
static const char *of_victim(const char *name) { return path(env("VICTIM_STATE"), name); }
static const char *of_own(const char *name) { return path(env("VICTIM_OWN_STATE"), name); }
static const char *proc(pid_t pid, const char *name) {
    char folder[40];
    snprintf(folder, sizeof folder, "/proc/%d", pid);
    return path(folder, name);
}

/* Attacks return a value below 0 with errno when they are stopped. */
static long reads(const char *file) {
    char byte;
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    long got = read(fd, &byte, 1);
    int error = errno;
    close(fd);
    errno = error;
    return got;
}
static long writes(const char *file, int flags) {
    int fd = open(file, O_WRONLY | O_CLOEXEC | flags, 0600);
    if (fd < 0) return -1;
    close(fd);
    return 0;
}
static long lists(const char *folder) {
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    close(fd);
    return 0;
}
/* A child that came into being ends at once. */
static long child(long pid) {
    if (pid == 0) syscall(SYS_exit_group, 0);
    return pid;
}
static long connects(const char *file, int type) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    strncpy(address.sun_path, file, sizeof address.sun_path - 1);
    long done = connect(fd, (struct sockaddr *)&address, sizeof address);
    int error = errno;
    close(fd);
    errno = error;
    return done;
}
static long opens_socket(int family, int type, int protocol) {
    int fd = socket(family, type | SOCK_CLOEXEC, protocol);
    if (fd < 0) return -1;
    close(fd);
    return 0;
}

/* The files of another tenant, of the operator, of the host. */
static long read_pak(void) { return reads(of_victim("admin.pak")); }
static long read_key(void) { return reads(of_victim("webhook.key")); }
static long list_state(void) { return lists(env("VICTIM_STATE")); }
static long list_all_states(void) { return lists(path(env("VICTIM_STATE"), "..")); }
static long read_admitted(void) { return reads(path(env("VICTIM_STATE_DIR"), "admitted")); }
static long read_tenant_file(void) { return reads(env("VICTIM_FILE")); }
static long list_tenants(void) { return lists(env("VICTIM_TENANTS")); }
static long read_supervisor_file(void) { return reads(env("VICTIM_CONFIG")); }
static long read_shadow(void) { return reads("/etc/shadow"); }
static long read_passwd(void) { return reads("/etc/passwd"); }
static long list_tmp(void) { return lists("/tmp"); }
static long list_runtime(void) { return lists(env("VICTIM_RUNTIME")); }
static long read_lock(void) { return reads(env("VICTIM_LOCK")); }
static long write_pak(void) { return writes(of_victim("admin.pak"), 0); }
static long make_file_there(void) { return writes(of_victim("left"), O_CREAT); }
static long make_file_here(void) { return writes(of_own("left"), O_CREAT); }
static long write_own_pak(void) { return writes(of_own("admin.pak"), 0); }
static long write_tmp(void) { return writes("/tmp/brokkr-attack", O_CREAT); }
static long write_tenant_file(void) { return writes(env("VICTIM_FILE"), 0); }
static long add_tenant(void) { return writes(path(env("VICTIM_TENANTS"), "evil.toml"), O_CREAT); }
static long write_lock(void) { return writes(env("VICTIM_LOCK"), O_APPEND); }
static long write_inherited_lock(void) {
    /* Every inherited descriptor is tried: one of them is the lock file. */
    for (int fd = 3; fd < 20; fd++) {
        struct stat at;
        if (fstat(fd, &at) == 0 && S_ISREG(at.st_mode) && write(fd, "1 1 x\n", 6) > 0) return 0;
    }
    errno = EBADF;
    return -1;
}
static long reopen_lock(void) {
    for (int fd = 3; fd < 20; fd++) {
        char file[40];
        struct stat at;
        snprintf(file, sizeof file, "/proc/self/fd/%d", fd);
        if (fstat(fd, &at) == 0 && S_ISREG(at.st_mode)) {
            if (writes(file, O_APPEND) == 0) return 0;
        }
    }
    errno = EACCES;
    return -1;
}
static long unlink_pak(void) { return unlink(of_victim("webhook.key")); }
static long unlink_socket(void) { return unlink(env("VICTIM_PRIVATE")); }
static long rename_pak(void) { return rename(of_victim("webhook.key"), of_own("stolen")); }
static long link_pak(void) { return link(of_victim("webhook.key"), of_own("stolen")); }
static long symlink_here(void) { return symlink(of_victim("webhook.key"), of_own("stolen")); }
static long mkdir_there(void) { return mkdir(of_victim("left.d"), 0700); }
static long mknod_there(void) { return mknod(of_victim("left.n"), S_IFIFO | 0600, 0); }
static long truncate_pak(void) { return truncate(of_victim("webhook.key"), 0); }
static long chmod_state(void) { return chmod(env("VICTIM_STATE"), 0777); }
static long fchmodat2_state(void) {
    return syscall(SYS_fchmodat2, AT_FDCWD, env("VICTIM_STATE"), 0777, 0);
}
static long chown_state(void) { return chown(env("VICTIM_STATE"), 1, 1); }
static long touch_file(void) { return utimensat(AT_FDCWD, env("VICTIM_FILE"), NULL, 0); }
static long attribute(void) {
    return syscall(SYS_setxattr, env("VICTIM_FILE"), "user.brokkr", "x", 1, 0);
}
static long watch_tenants(void) { return syscall(SYS_inotify_init1, O_CLOEXEC); }
static long watch_mounts(void) { return syscall(SYS_fanotify_init, 0, 0); }
static long handle(void) {
    struct { unsigned bytes; int type; char data[128]; } at = {.bytes = 128};
    int mount;
    return syscall(SYS_name_to_handle_at, AT_FDCWD, of_victim("admin.pak"), &at, &mount, 0);
}
static long open_by_handle(void) {
    struct { unsigned bytes; int type; char data[128]; } at = {.bytes = 8, .type = 1};
    return syscall(SYS_open_by_handle_at, AT_FDCWD, &at, O_RDONLY);
}
static long read_kernel_log(void) { return reads("/dev/kmsg"); }
static long read_memory(void) { return reads("/dev/mem"); }
static long list_cgroups(void) { return lists("/sys/fs/cgroup"); }
static long leave_cgroup(void) { return writes("/sys/fs/cgroup/cgroup.procs", 0); }
static long grow_a_file(void) {
    struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    long done = setrlimit(RLIMIT_FSIZE, &limit);
    int fd = open(of_own("grown"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    close(fd);
    return done;
}

/* Other processes. */
static long victim_memory(void) { return reads(proc(victim(), "mem")); }
static long victim_maps(void) { return reads(proc(victim(), "maps")); }
static long victim_environment(void) { return reads(proc(victim(), "environ")); }
static long victim_command(void) { return reads(proc(victim(), "cmdline")); }
static long victim_descriptors(void) { return lists(proc(victim(), "fd")); }
static long victim_root(void) { return lists(proc(victim(), "root")); }
static long supervisor_memory(void) { return reads(proc(supervisor(), "mem")); }
static long supervisor_environment(void) { return reads(proc(supervisor(), "environ")); }
static long supervisor_descriptors(void) { return lists(proc(supervisor(), "fd")); }
static long list_processes(void) { return lists("/proc"); }
static long make_victim_killable(void) { return writes(proc(victim(), "oom_score_adj"), 0); }
static long sysctl(void) { return writes("/proc/sys/kernel/core_pattern", 0); }
static long kill_victim(void) { return kill(victim(), SIGCONT); }
static long kill_supervisor(void) { return kill(supervisor(), SIGCONT); }
static long kill_all(void) { return kill(-1, SIGCONT); }
static long tgkill_victim(void) { return syscall(SYS_tgkill, victim(), victim(), SIGCONT); }
static long tkill_victim(void) { return syscall(SYS_tkill, victim(), SIGCONT); }
static long queue_signal(void) {
    siginfo_t info = {.si_signo = SIGCONT, .si_code = SI_QUEUE};
    return syscall(SYS_rt_sigqueueinfo, victim(), SIGCONT, &info);
}
static long pidfd_victim(void) { return syscall(SYS_pidfd_open, victim(), 0); }
static long signal_by_descriptor(void) {
    long fd = syscall(SYS_pidfd_open, victim(), 0);
    return syscall(SYS_pidfd_send_signal, fd < 0 ? 0 : fd, SIGCONT, NULL, 0);
}
static long take_descriptor(void) {
    long fd = syscall(SYS_pidfd_open, victim(), 0);
    return syscall(SYS_pidfd_getfd, fd < 0 ? 0 : fd, 3, 0);
}
static long trace_victim(void) { return syscall(SYS_ptrace, 16 /* ATTACH */, victim(), 0, 0); }
static long trace_supervisor(void) {
    return syscall(SYS_ptrace, 16 /* ATTACH */, supervisor(), 0, 0);
}
static long vm_read(void) {
    char here[8];
    struct iovec local = {here, 8}, remote = {(void *)0x10000, 8};
    return process_vm_readv(victim(), &local, 1, &remote, 1, 0);
}
static long vm_write(void) {
    char here[8] = {0};
    struct iovec local = {here, 8}, remote = {(void *)0x10000, 8};
    return process_vm_writev(victim(), &local, 1, &remote, 1, 0);
}
static long limit_victim(void) {
    struct rlimit limit;
    return prlimit(victim(), RLIMIT_NOFILE, NULL, &limit);
}
static long nice_victim(void) { return setpriority(PRIO_PROCESS, victim(), 0); }
static long schedule_victim(void) {
    struct sched_param parameter = {0};
    return sched_setscheduler(victim(), SCHED_BATCH, &parameter);
}
static long bind_victim_to_cpu(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    return sched_setaffinity(victim(), sizeof set, &set);
}
static long io_victim(void) { return syscall(SYS_ioprio_set, 1, victim(), (2 << 13) | 4); }
static long compare(void) { return syscall(SYS_kcmp, getpid(), victim(), 0, 0, 0); }
static long release_memory(void) { return syscall(SYS_process_mrelease, 0, 0); }

/* New processes and programs. */
static long forks(void) { return child(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)); }
#ifdef SYS_fork
static long old_fork(void) { return child(syscall(SYS_fork)); }
#else
static long old_fork(void) { return errno = ENOSYS, -1; }
#endif
static long clones3(void) {
    unsigned long long arguments[11] = {0};
    arguments[4] = SIGCHLD;
    return child(syscall(SYS_clone3, arguments, sizeof arguments));
}
static long new_namespace(void) { return child(syscall(SYS_clone, 0x10000000 | SIGCHLD, 0, 0, 0, 0)); }
static long executes(void) {
    char *arguments[] = {"true", NULL};
    /* A refused call returns; a successful one ends this process, which the test sees. */
    return execve("/bin/true", arguments, NULL);
}
static long executes_memory(void) {
    char *arguments[] = {"true", NULL};
    int fd = syscall(SYS_memfd_create, "attack", 0);
    return syscall(SYS_execveat, fd, "", arguments, NULL, AT_EMPTY_PATH);
}

/* The kernel's other doors. */
static long unshares(void) { return syscall(SYS_unshare, 0x10000000 /* CLONE_NEWUSER */); }
static long enters_namespace(void) { return syscall(SYS_setns, 0, 0); }
static long rings(void) {
    char parameters[256] = {0};
    return syscall(SYS_io_uring_setup, 1, parameters);
}
static long keyring(void) { return syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -2, 0); }
static long adds_key(void) { return syscall(SYS_add_key, "user", "brokkr", "x", 1, -2); }
static long asks_key(void) { return syscall(SYS_request_key, "user", "brokkr", NULL, -2); }
static long bpf_program(void) { return syscall(SYS_bpf, 0, NULL, 0); }
static long counts_events(void) { return syscall(SYS_perf_event_open, NULL, victim(), -1, -1, 0); }
static long handles_faults(void) { return syscall(SYS_userfaultfd, 1); }
static long secret_memory(void) { return syscall(SYS_memfd_secret, 0); }
static long mounts(void) { return syscall(SYS_mount, "none", "/mnt", "tmpfs", 0, NULL); }
static long opens_filesystem(void) { return syscall(SYS_fsopen, "tmpfs", 0); }
static long opens_tree(void) { return syscall(SYS_open_tree, AT_FDCWD, "/", 1); }
static long changes_root(void) { return chroot("/usr"); }
static long shared_memory(void) { return syscall(SYS_shmget, 0x42726b, 4096, 01600); }
static long semaphores(void) { return syscall(SYS_semget, 0x42726b, 1, 01600); }
static long messages(void) { return syscall(SYS_msgget, 0x42726b, 01600); }
static long message_queue(void) { return syscall(SYS_mq_open, "brokkr", 0102, 0600, NULL); }
static long old_addresses(void) { return syscall(SYS_personality, 0x0040000); }
static long sets_clock(void) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    return syscall(SYS_clock_settime, CLOCK_REALTIME, &now);
}
static long names_host(void) { return sethostname("brokkr", 6); }
static long loads_module(void) { return syscall(SYS_init_module, "", 0, ""); }
static long reads_kernel_log(void) {
    char text[8];
    return syscall(SYS_syslog, 3, text, 8);
}

/* Sockets. */
static long binds(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return bind(fd, (struct sockaddr *)&address, sizeof address);
}
static long listens(void) { return listen(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), 1); }
static long control(void) { return connects(env("VICTIM_CONTROL"), SOCK_STREAM); }
static long private_socket(void) { return connects(env("VICTIM_PRIVATE"), SOCK_STREAM); }
static long packets(void) { return connects(env("VICTIM_CONTROL"), SOCK_SEQPACKET); }
static long system_bus(void) { return connects("/run/dbus/system_bus_socket", SOCK_STREAM); }
static long abstract_socket(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *name = env("VICTIM_ABSTRACT");
    size_t length = strlen(name);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    memcpy(address.sun_path + 1, name, length);
    return connect(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + length);
}
static long raw_socket(void) { return opens_socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static long packet_socket(void) { return opens_socket(AF_PACKET, SOCK_RAW, 0); }
static long vsock(void) { return opens_socket(AF_VSOCK, SOCK_STREAM, 0); }
static long kernel_crypto(void) { return opens_socket(AF_ALG, SOCK_SEQPACKET, 0); }
static long kernel_events(void) { return opens_socket(AF_NETLINK, SOCK_DGRAM, 15); }
static long netfilter(void) { return opens_socket(AF_NETLINK, SOCK_RAW, 12); }
/* Not stopped, but not believed either: the test looks at the victim. */
static long false_datagram(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct iovec text = {"EXIT_STATUS=78\nSTOPPING=1", 25};
    char space[CMSG_SPACE(sizeof(struct ucred))] = {0};
    struct msghdr message = {&address, sizeof address, &text, 1, space, sizeof space, 0};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    struct ucred as = {victim(), getuid(), getgid()};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, env("VICTIM_NOTIFY"), sizeof address.sun_path - 1);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_CREDENTIALS;
    header->cmsg_len = CMSG_LEN(sizeof as);
    memcpy(CMSG_DATA(header), &as, sizeof as);
    return sendmsg(fd, &message, MSG_DONTWAIT);
}

#define A(name) {#name, name}
static const struct { const char *name; long (*attack)(void); } ATTACKS[] = {
    A(read_pak), A(read_key), A(list_state), A(list_all_states), A(read_admitted), A(read_tenant_file),
    A(list_tenants), A(read_supervisor_file), A(read_shadow), A(read_passwd), A(list_tmp), A(list_runtime),
    A(read_lock), A(write_pak), A(make_file_there), A(make_file_here), A(write_own_pak), A(write_tmp),
    A(write_tenant_file), A(add_tenant), A(write_lock), A(write_inherited_lock), A(reopen_lock), A(unlink_pak),
    A(unlink_socket), A(rename_pak), A(link_pak), A(symlink_here), A(mkdir_there), A(mknod_there),
    A(truncate_pak), A(chmod_state), A(fchmodat2_state), A(chown_state), A(touch_file), A(attribute),
    A(watch_tenants), A(watch_mounts), A(handle), A(open_by_handle), A(read_kernel_log), A(read_memory),
    A(list_cgroups), A(leave_cgroup), A(grow_a_file),
    A(victim_memory), A(victim_maps), A(victim_environment), A(victim_command), A(victim_descriptors),
    A(victim_root), A(supervisor_memory), A(supervisor_environment), A(supervisor_descriptors),
    A(list_processes), A(make_victim_killable), A(sysctl), A(kill_victim), A(kill_supervisor),
    A(kill_all), A(tgkill_victim), A(tkill_victim), A(queue_signal), A(pidfd_victim),
    A(signal_by_descriptor), A(take_descriptor), A(trace_victim), A(trace_supervisor), A(vm_read),
    A(vm_write), A(limit_victim), A(nice_victim), A(schedule_victim), A(bind_victim_to_cpu), A(io_victim),
    A(compare), A(release_memory),
    A(forks), A(old_fork), A(clones3), A(new_namespace), A(executes), A(executes_memory),
    A(unshares), A(enters_namespace), A(rings), A(keyring), A(adds_key), A(asks_key), A(bpf_program),
    A(counts_events), A(handles_faults), A(secret_memory), A(mounts), A(opens_filesystem), A(opens_tree),
    A(changes_root), A(shared_memory), A(semaphores), A(messages), A(message_queue), A(old_addresses),
    A(sets_clock), A(names_host), A(loads_module), A(reads_kernel_log),
    A(binds), A(listens), A(control), A(private_socket), A(packets), A(system_bus), A(abstract_socket),
    A(raw_socket), A(packet_socket), A(vsock), A(kernel_crypto), A(kernel_events), A(netfilter),
    A(false_datagram),
};

static void *attack_all(void *unused) {
    const char *skipped = env("VICTIM_SPARED");
    signal(SIGXFSZ, SIG_IGN);
    for (size_t n = 0; n < sizeof ATTACKS / sizeof *ATTACKS; n++) {
        char name[64];
        snprintf(name, sizeof name, ",%s,", ATTACKS[n].name);
        if (strstr(skipped, name)) continue;
        errno = 0;
        long done = ATTACKS[n].attack();
        int error = errno;
        if (done < 0)
            dprintf(2, "attack %s: stopped: %s\n", ATTACKS[n].name, strerrorname_np(error));
        else
            dprintf(2, "attack %s: SUCCEEDED\n", ATTACKS[n].name);
    }
    dprintf(2, "attacks: done\n");
    return unused;
}

__attribute__((constructor)) static void loaded(void) { unsetenv("LD_PRELOAD"); }

int epoll_wait(int fd, struct epoll_event *events, int most, int timeout) {
    static int (*real)(int, struct epoll_event *, int, int);
    static int began;
    if (!real) real = (int (*)(int, struct epoll_event *, int, int))dlsym(RTLD_NEXT, "epoll_wait");
    if (getenv("VICTIM_PID") && !began) {
        pthread_t thread;
        began = 1;
        pthread_create(&thread, NULL, attack_all, NULL);
    }
    return real(fd, events, most, timeout);
}

/* The same attacks from a program that is in no sandbox; with an argument, only the kernel's version of Landlock. */
int main(int count, char **arguments) {
    (void)arguments;
    if (count > 1)
        printf("%ld\n", syscall(444 /* landlock_create_ruleset */, NULL, 0, 1 /* VERSION */));
    else
        attack_all(NULL);
    return 0;
}
