//! The system calls that are forbidden to a broker.
//!
//! A list of what is forbidden, and not of what is allowed: a new library or kernel may use new calls, and a broker that
//! is killed or fails for that would be worse. The forbidden calls reach other processes, start processes, or enlarge
//! the attack surface of the kernel.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// Calls that are forbidden with any arguments.
const FORBIDDEN: &[c_long] = &[
    // Other processes: their memory, descriptors, signals, priorities and resources.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_tkill,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setattr,
    // New programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Servers.
    libc::SYS_bind,
    libc::SYS_listen,
    // Files that Landlock does not guard: owners, modes, times, attributes; watches on files of others.
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_inotify_init1,
    libc::SYS_fanotify_init,
    // Memory shared by number.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    // Parts of the kernel that no broker uses.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_memfd_secret,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    libc::SYS_vhangup,
];

/// The older forms of forbidden calls, which only this processor has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_inotify_init,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_kexec_file_load,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_lookup_dcookie,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// The part of a socket's type that is not a flag.
const TYPE: u64 = 0xf;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Restricts this thread and its later threads. `streams` allows Unix stream sockets, which a database on a Unix socket
/// needs. Returns the parts in force, or the reason why none is.
pub(super) fn enter(streams: bool) -> Result<String, String> {
    install(streams).map_err(|error| error.to_string())?;
    let sockets = match streams {
        true => "Unix sockets free for the database",
        false => "no Unix streams",
    };
    Ok(format!(
        "no exec, fork, bind, ptrace, signals to others, {sockets}"
    ))
}

fn install(streams: bool) -> Result<(), Box<dyn std::error::Error>> {
    let mut rules = Rules::new();
    for call in FORBIDDEN.iter().chain(OLDER) {
        rules.insert(*call, Vec::new());
    }
    rules.extend(by_argument(u64::from(std::process::id()), streams)?);
    // `clone3` takes its flags in memory, where a filter cannot look: as if it did not exist, for libraries then use
    // `clone`.
    let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    for (rules, errno) in [(clone3, libc::ENOSYS), (rules, libc::EPERM)] {
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(u32::try_from(errno)?),
            std::env::consts::ARCH.try_into()?,
        )?;
        let program: BpfProgram = filter.try_into()?;
        apply_filter(&program)?;
    }
    Ok(())
}

/// Returns the calls that are forbidden with certain arguments. A call is forbidden when all conditions of one of its
/// rules hold.
fn by_argument(own: u64, streams: bool) -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let argument =
        |index, is, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, is, value);
    let family = |is, family: i32| argument(0, is, family as u64);
    let kind = |kind: i32| argument(1, MaskedEq(TYPE), kind as u64);
    let mut socket = vec![
        SeccompRule::new(vec![
            family(Ne, libc::AF_INET)?,
            family(Ne, libc::AF_INET6)?,
            family(Ne, libc::AF_UNIX)?,
            family(Ne, libc::AF_NETLINK)?,
        ])?,
        // The resolver asks for this host's addresses, and nothing else of the kernel.
        SeccompRule::new(vec![
            family(Eq, libc::AF_NETLINK)?,
            argument(2, Ne, libc::NETLINK_ROUTE as u64)?,
        ])?,
        SeccompRule::new(vec![family(Eq, libc::AF_INET)?, kind(libc::SOCK_RAW)?])?,
        SeccompRule::new(vec![family(Eq, libc::AF_INET6)?, kind(libc::SOCK_RAW)?])?,
        SeccompRule::new(vec![
            family(Eq, libc::AF_UNIX)?,
            kind(libc::SOCK_SEQPACKET)?,
        ])?,
    ];
    if !streams {
        socket.push(SeccompRule::new(vec![
            family(Eq, libc::AF_UNIX)?,
            kind(libc::SOCK_STREAM)?,
        ])?);
    }
    let of_others = || SeccompRule::new(vec![argument(0, Ne, own)?]);
    let threads = libc::CLONE_THREAD as u64;
    Ok(Rules::from([
        (libc::SYS_socket, socket),
        (libc::SYS_kill, vec![of_others()?]),
        (libc::SYS_tgkill, vec![of_others()?]),
        (libc::SYS_rt_sigqueueinfo, vec![of_others()?]),
        (libc::SYS_rt_tgsigqueueinfo, vec![of_others()?]),
        (
            libc::SYS_sched_setaffinity,
            vec![SeccompRule::new(vec![argument(0, Ne, 0)?])?],
        ),
        (
            libc::SYS_prlimit64,
            vec![SeccompRule::new(vec![
                argument(0, Ne, own)?,
                argument(0, Ne, 0)?,
            ])?],
        ),
        // A new process, as opposed to a thread of this one.
        (
            libc::SYS_clone,
            vec![SeccompRule::new(vec![argument(0, MaskedEq(threads), 0)?])?],
        ),
    ]))
}
