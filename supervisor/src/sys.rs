//! System calls without a safe form in std or nix. All `unsafe` code of the supervisor is here.
//!
//! Only `instance/` may call the functions that spawn or kill.

#![allow(unsafe_code, reason = "this is the one module that may")]

#[cfg(test)]
mod tests;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The first descriptor after standard input, output and error, where `sd_listen_fds` begins.
const FIRST_PASSED: RawFd = 3;
/// The largest number of descriptors passed to a child, limited because the child cannot allocate and uses fixed
/// arrays.
const MOST_PASSED: usize = 8;
/// `LISTEN_PID=` with room for any pid; the child writes its own pid there.
const LISTEN_PID: &str = "LISTEN_PID=0000000000";

static SPAWNING: Mutex<()> = Mutex::new(());

/// The attributes of a new process. It inherits nothing else.
pub(crate) struct SpawnPlan<'a> {
    /// The absolute path of the program.
    pub(crate) program: CString,
    /// Its arguments, `argv[0]` included.
    pub(crate) arguments: Vec<CString>,
    /// Its whole environment. When descriptors are passed, `LISTEN_PID` is added with the child's pid.
    pub(crate) environment: Vec<CString>,
    /// Standard input, output and error.
    pub(crate) standard: [BorrowedFd<'a>; 3],
    /// Descriptors from 3 up, in order.
    pub(crate) passed: Vec<BorrowedFd<'a>>,
    /// The soft and hard limit of open files.
    pub(crate) open_files: (u64, u64),
    /// The user it runs as; `None` is this process's own user, with what that user may do.
    pub(crate) user: Option<ChildUser>,
}

/// A user without groups and without any right that root has. Only root can start a process as another user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChildUser {
    /// The user id, which is the group id too.
    pub(crate) uid: u32,
    /// The most processes and threads of this user.
    pub(crate) processes: u64,
}

/// A new process, with a descriptor that identifies it permanently.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// Forks, calls `before_exec` with the child's pid while the child waits, then lets the child execute the plan.
///
/// If the supervisor dies in between, the child sees its pipe close and exits. The child gets its own session, default
/// signal dispositions, an empty signal mask and `no_new_privs`; with [`SpawnPlan::user`] it is that user and has no
/// capability, no group and an empty bounding set.
///
/// # Errors
/// The kernel's error from fork, pidfd or execve (the child reports its `errno`), or the error of `before_exec`.
pub(crate) fn spawn(
    plan: &SpawnPlan<'_>,
    before_exec: impl FnOnce(i32) -> io::Result<()>,
) -> io::Result<Spawned> {
    if plan.passed.len() > MOST_PASSED {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors to pass",
        ));
    }
    let mut listen_pid = CString::new(LISTEN_PID)?.into_bytes_with_nul();
    let arguments = pointers(&plan.arguments, None);
    let environment = pointers(
        &plan.environment,
        (!plan.passed.is_empty()).then_some(listen_pid.as_mut_ptr()),
    );
    let mut sources = [-1; FIRST_PASSED as usize + MOST_PASSED];
    let wanted = plan.standard.iter().chain(&plan.passed);
    let count = FIRST_PASSED as usize + plan.passed.len();
    for (slot, fd) in sources.iter_mut().zip(wanted) {
        *slot = fd.as_raw_fd();
    }
    // Serialises spawns until the exec, because a second child would hold the first child's pipe open.
    let _alone = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
    let (go_read, go_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (error_read, error_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;

    // SAFETY: between fork and exec the child calls async-signal-safe functions only and uses memory made before the
    // fork: `become_child` allocates nothing, takes no lock and never returns.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => unsafe {
            become_child(
                plan,
                &arguments,
                &environment,
                listen_pid.as_mut_ptr(),
                &mut sources[..count],
                go_read.as_raw_fd(),
                go_write.as_raw_fd(),
                error_write.as_raw_fd(),
            )
        },
        pid => pid,
    };
    drop((go_read, error_write));
    // The child is not reaped yet, so its pid cannot belong to another process.
    let pidfd = match pidfd_open(pid) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            drop(go_write);
            reap(pid);
            return Err(error);
        }
    };
    let said = before_exec(pid).and_then(|()| {
        nix::unistd::write(&go_write, b"g")?;
        Ok(())
    });
    drop(go_write);
    let mut errno = [0u8; 4];
    let refused = match said {
        Err(error) => Some(error),
        // End of file: a successful exec has closed the pipe.
        Ok(()) => match read_exact(error_read.as_fd(), &mut errno) {
            0 => None,
            _ => Some(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        },
    };
    match refused {
        None => Ok(Spawned { pid, pidfd }),
        Some(error) => {
            reap(pid);
            Err(error)
        }
    }
}

/// # Safety
/// Only in a child just forked. `arguments` and `environment` end with a null pointer; `listen_pid` points at
/// [`LISTEN_PID`] with its closing NUL.
#[allow(
    clippy::too_many_arguments,
    reason = "the child may not allocate a struct of its own"
)]
unsafe fn become_child(
    plan: &SpawnPlan<'_>,
    arguments: &[*const c_char],
    environment: &[*const c_char],
    listen_pid: *mut u8,
    sources: &mut [RawFd],
    go: RawFd,
    go_write: RawFd,
    error: RawFd,
) -> ! {
    // SAFETY: every call is async-signal-safe, and its pointers are to live memory of this process.
    unsafe {
        let fail = || -> ! {
            let errno = *libc::__errno_location();
            libc::write(error, (&raw const errno).cast(), size_of::<c_int>());
            libc::_exit(127)
        };
        // Closes our copy of the write end, because otherwise the read below would never see its end when the parent
        // dies.
        libc::close(go_write);
        let mut byte = 0u8;
        if libc::read(go, (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(127);
        }
        if libc::setsid() == -1 {
            fail();
        }
        libc::umask(0o077);
        // Resets signals, because Rust ignores SIGPIPE and a thread may have masked others.
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        if let Some(user) = plan.user
            && !become_user(user)
        {
            fail();
        }
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1 {
            fail();
        }
        // Moves all sources out of the target range first, because a source may have another source's target number.
        let above = sources.len() as RawFd;
        for source in &mut *sources {
            *source = libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, above);
            if *source == -1 {
                fail();
            }
        }
        for (target, source) in sources.iter().enumerate() {
            if libc::dup2(*source, target as RawFd) == -1 {
                fail();
            }
        }
        // Marks all other descriptors close-on-exec, in case a library left some open; the error pipe lives until the
        // exec.
        libc::syscall(
            libc::SYS_close_range,
            above as u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        // Sets the limit after duplicating, because the parent may use more descriptors than the child's limit allows.
        let limit = libc::rlimit {
            rlim_cur: plan.open_files.0,
            rlim_max: plan.open_files.1,
        };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        write_pid(listen_pid.add("LISTEN_PID=".len()), libc::getpid());
        libc::execve(
            plan.program.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
        );
        fail()
    }
}

/// Gives up root for good. Returns false, with `errno`, when the kernel refuses a step.
///
/// # Safety
/// Only in a child just forked.
unsafe fn become_user(user: ChildUser) -> bool {
    let ChildUser { uid, processes } = user;
    let none = std::ptr::null::<libc::gid_t>();
    let mut header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let nothing = [0u32; 6];
    let limit = libc::rlimit {
        rlim_cur: processes,
        rlim_max: processes,
    };
    // SAFETY: system calls only, with pointers to this function's own memory. The calls are raw, because libc's would
    // look for other threads, which this child does not have.
    unsafe {
        // First, because giving up the bounding set is a right of root's.
        for capability in 0.. {
            match libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) {
                // The kernel knows no capability from this number up.
                -1 => break,
                0 => {}
                _ if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) == -1 => return false,
                _ => {}
            }
        }
        let limited = libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit) == 0;
        limited
            && libc::syscall(libc::SYS_setgroups, 0, none) == 0
            && libc::syscall(libc::SYS_setresgid, uid, uid, uid) == 0
            && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
            // The change of the user keeps the inheritable set.
            && libc::syscall(libc::SYS_capset, &raw mut header, nothing.as_ptr()) == 0
    }
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two blocks of three sets.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Writes `pid` in decimal and a NUL.
///
/// # Safety
/// `at` has room for eleven bytes.
unsafe fn write_pid(at: *mut u8, pid: i32) {
    let mut digits = [0u8; 10];
    let mut rest = pid.unsigned_abs();
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let length = digits.len() - first;
    // SAFETY: at most ten digits and a NUL, for which the caller has room.
    unsafe {
        std::ptr::copy_nonoverlapping(digits.as_ptr().add(first), at, length);
        at.add(length).write(0);
    }
}

fn pointers(strings: &[CString], extra: Option<*mut u8>) -> Vec<*const c_char> {
    let extra = extra.map(|pointer| pointer.cast_const().cast::<c_char>());
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain(extra)
        .chain([std::ptr::null()])
        .collect()
}

fn read_exact(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> usize {
    loop {
        match nix::unistd::read(fd, buffer) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.unwrap_or(0),
        }
    }
}

/// Reaps a child that has executed no program.
fn reap(pid: i32) {
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
}

/// Returns a descriptor that identifies process `pid` even after the pid is reused.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the call returns a fresh descriptor without another owner.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as RawFd)),
        }
    }
}

/// `SO_PEERPIDFD` of Linux 6.5.
const SO_PEERPIDFD: c_int = 77;

/// Returns a descriptor that identifies the process at the other end of a Unix connection.
///
/// # Errors
/// On an older kernel, or when that process has been reaped.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd: c_int = -1;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `fd`, both of which outlive the call. On success `fd` is a fresh
    // descriptor without another owner.
    unsafe {
        let result = libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        );
        match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Unblocks all signals for the program that `command` starts, because it would inherit our blocked signals.
pub(crate) fn heed_signals(command: &mut Command) {
    let unblock = || Ok(SigSet::empty().thread_set_mask()?);
    // SAFETY: called between fork and exec, where it makes one system call and allocates nothing.
    unsafe { command.pre_exec(unblock) };
}

/// Sends `signal` to the process of a pidfd.
///
/// # Errors
/// `ESRCH` when the process has ended and was reaped.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    // SAFETY: the null pointer asks for the default siginfo; no other pointers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Registers a descriptor with the event loop, for reading.
pub(crate) fn readable<T: AsRawFd + Into<OwnedFd>>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: a type that converts to `OwnedFd` owns its descriptor, so it stays open and the same until `inner` is
    // dropped.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }.map_err(Into::into)
}

/// Registers a descriptor with the event loop, for writing.
pub(crate) fn writable<T: AsRawFd + Into<OwnedFd>>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: as in `readable`.
    unsafe { AsyncFd::register_with_interest(inner, Interest::WRITABLE) }.map_err(Into::into)
}

/// Returns a descriptor that reads the blocked `signals` and can be waited for.
///
/// # Errors
/// When the kernel gives no descriptor, or outside of a runtime.
pub(crate) fn readable_signals(signals: &SigSet) -> io::Result<AsyncFd<SignalFd>> {
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let inner = SignalFd::with_flags(signals, flags)?;
    // SAFETY: the `SignalFd` owns its descriptor, and no code replaces or closes it while it is registered.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }.map_err(Into::into)
}

/// Registers a shared descriptor with the event loop, for reading.
pub(crate) fn readable_shared(inner: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the `AsyncFd` holds a share of the descriptor, which stays open and the same until the `AsyncFd` is
    // dropped.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }.map_err(Into::into)
}

/// Returns the age of a process with this start time, in ticks since boot.
pub(crate) fn age(start_time: u64) -> Duration {
    // SAFETY: no pointers; an unknown name would give -1, which is rejected below.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let Ok(per_second @ 1..) = u64::try_from(per_second) else {
        return Duration::ZERO;
    };
    let started = Duration::from_millis(start_time.saturating_mul(1000) / per_second);
    since_boot(ClockId::CLOCK_BOOTTIME).saturating_sub(started)
}

/// Returns the time of a clock that counts from boot.
pub(crate) fn since_boot(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

static INHERITED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes over a descriptor that this process was started with, and marks it close-on-exec.
///
/// # Errors
/// When the descriptor is not open, is standard input, output or error, or was taken before.
pub(crate) fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < FIRST_PASSED
        || !INHERITED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(fd)
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: no pointers; a number that is no open descriptor gives an error.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above shows that the descriptor is open. It has no other owner, because it was passed by number
    // to the beginning of `main`, and the set above hands each number out once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns a copy of descriptor `fd` of the process that `pidfd` identifies.
///
/// # Errors
/// `EPERM` without the right to trace that process.
pub(crate) fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the call returns a fresh close-on-exec descriptor without another owner.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as RawFd)),
        }
    }
}

/// `struct pidfd_info` of Linux 6.13. Later versions are longer, and the kernel fills the given size.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// `PIDFD_INFO_EXIT`.
const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `PIDFD_GET_INFO`: `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::c_ulong =
    (3 << 30) | ((size_of::<PidfdInfo>() as libc::c_ulong) << 16) | (0xFF << 8) | 11;

/// Returns the wait status of a process that was reaped elsewhere; `None` if it was not reaped yet, or on kernels
/// before 6.15, which do not tell.
pub(crate) fn pidfd_wait_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the request carries the size of the struct, which outlives the call.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// Returns true when the kernel has Landlock and it is switched on.
pub(crate) fn knows_landlock() -> bool {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the kernel reads no memory and returns only its version of Landlock.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<libc::c_void>(),
            0,
            VERSION,
        )
    };
    version > 0
}

/// Returns the soft limit of open files.
pub(crate) fn open_files() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// The highest limit of open files for a broker: enough for its connections and a few files.
const CHILD_OPEN_FILES: u64 = 16_384;

/// Raises the soft limit of open files to the hard limit, and returns smaller limits for the children.
pub(crate) fn raise_open_files() -> (u64, u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 4096));
    // Ignores an error, because the old limit then stays in force.
    let _ = nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    (soft.min(CHILD_OPEN_FILES), hard.min(CHILD_OPEN_FILES))
}
