//! A place to try things in: a cgroup below the agent's own, a network namespace with loopback up, and sockets that live
//! in both. In: the agent's cgroup. Out: descriptors. All of it goes away with the value; nothing else is touched.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::netns::NetNs;

/// How long a removal is tried: the kernel needs a moment to see that a cgroup's last process is gone.
const REMOVE_TRIES: u32 = 200;
const REMOVE_PAUSE: Duration = Duration::from_millis(1);
/// What a child gets for its calls.
const STACK_BYTES: usize = 256 * 1024;

/// The place.
pub struct Scratch {
    path: PathBuf,
    cgroup: File,
    procs: File,
    /// The namespace.
    pub netns: NetNs,
}

/// What the names of scratch cgroups begin with; the process and a number follow.
const NAME: &str = "mesh-probe-";
/// Numbers the scratch cgroups of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

impl Scratch {
    /// Makes the place; `own` is the cgroup of this process.
    pub fn new(own: &Path) -> io::Result<Scratch> {
        sweep(own);
        let name = format!("{NAME}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = own.join(name);
        let netns = namespace()?;
        fs::create_dir(&path).map_err(|e| said(&format!("cgroup {}", path.display()), e))?;
        let opened = File::open(&path)
            .and_then(|cgroup| Ok((cgroup, File::options().write(true).open(path.join("cgroup.procs"))?)));
        match opened {
            Ok((cgroup, procs)) => Ok(Scratch { path, cgroup, procs, netns }),
            Err(e) => {
                let _ = fs::remove_dir(&path);
                Err(e)
            }
        }
    }

    /// The cgroup's directory.
    pub fn cgroup(&self) -> BorrowedFd<'_> {
        self.cgroup.as_fd()
    }

    /// Opens sockets inside both the cgroup and the namespace. A socket belongs to the cgroup of the process that opens
    /// it, and a process to one cgroup: so a child opens them, into the table of descriptors that it shares with us.
    pub fn sockets<const N: usize>(&self, kinds: [(libc::c_int, libc::c_int); N]) -> io::Result<[Socket; N]> {
        let mut opened: Vec<Socket> = Vec::with_capacity(N);
        in_child(|| {
            (&self.procs).write_all(b"0")?;
            nix::sched::setns(self.netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            for (kind, protocol) in kinds {
                opened.push(Socket::new(Domain::IPV4, Type::from(kind), Some(Protocol::from(protocol)))?);
            }
            Ok(())
        })?;
        opened.try_into().map_err(|_| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for _ in 0..REMOVE_TRIES {
            match fs::remove_dir(&self.path) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(REMOVE_PAUSE),
                _ => return,
            }
        }
    }
}

/// Takes away what probes have left that were killed.
fn sweep(own: &Path) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(NAME));
        let pid = rest.and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Whoever else was faster has done as well.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// A new namespace with loopback up.
pub fn namespace() -> io::Result<NetNs> {
    let made = std::thread::spawn(|| -> io::Result<NetNs> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|e| said("a network namespace", e.into()))?;
        loopback_up().map_err(|e| said("its loopback", e))?;
        NetNs::current()
    });
    made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn said(what: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}

fn loopback_up() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: zero is a valid value of this struct of integers and unions of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = (*from).cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is live and of the type that this command reads.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs `f` in a child process that shares our memory and our descriptors, and waits for its end. A fork would give the
/// child copies of all descriptors, and locks and links that others let go meanwhile would live on in them.
pub fn in_child<F: FnOnce() -> io::Result<()>>(f: F) -> io::Result<()> {
    struct Call<F> {
        f: Option<F>,
        done: io::Result<()>,
    }
    extern "C" fn run<F: FnOnce() -> io::Result<()>>(call: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the parent's value, which it does not touch before we have ended.
        let call = unsafe { &mut *call.cast::<Call<F>>() };
        if let Some(f) = call.f.take() {
            call.done = f();
        }
        0
    }
    let mut call = Call { f: Some(f), done: Err(io::Error::other("the child did not run")) };
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is aligned, live and the child's alone; the call is live; with CLONE_VFORK this thread stands
    // still until the child has ended, so nothing of it is used by two at a time.
    let pid = unsafe { libc::clone(run::<F>, top.cast(), flags, (&raw mut call).cast()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // It has ended already; a signal may come between all the same.
    while nix::sys::wait::waitpid(Pid::from_raw(pid), None) == Err(nix::errno::Errno::EINTR) {}
    call.done
}
