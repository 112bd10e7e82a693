//! Network namespaces. In: a path or a pid. Out: a handle to work inside the namespace, its cookie (by which the kernel
//! programs know it), its addresses and interfaces. A thread enters a namespace only for the time of one closure: never
//! across an await, and it never goes on in the wrong namespace (the process aborts if a thread cannot go back).

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};

use super::process::Process;

/// A network namespace. Holding it keeps the namespace alive, also after its last process is gone.
#[derive(Debug)]
pub struct NetNs {
    file: Arc<File>,
    cookie: u64,
    process: Option<Process>,
}

impl NetNs {
    /// Opens the namespace at `path`, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> io::Result<NetNs> {
        let file = Arc::new(File::open(path)?);
        let mut ns = NetNs { file, cookie: 0, process: None };
        ns.cookie = ns.run(own_cookie)??;
        Ok(ns)
    }

    /// Opens the namespace of a running process: of the one that has this pid now, for certain.
    pub fn of_pid(pid: u32) -> io::Result<NetNs> {
        let (process, ns) = Process::with(pid, || NetNs::open(format!("/proc/{pid}/ns/net")))?;
        Ok(NetNs { process: Some(process), ..ns })
    }

    /// The calling thread's namespace.
    pub fn current() -> io::Result<NetNs> {
        NetNs::open(OWN)
    }

    /// Another handle of the same namespace.
    pub fn share(&self) -> NetNs {
        NetNs { file: Arc::clone(&self.file), cookie: self.cookie, process: self.process }
    }

    /// The process by whose pid it was opened.
    pub fn process(&self) -> Option<Process> {
        self.process
    }

    /// The number by which the kernel knows this namespace: never used again until the next boot, never 0.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The inode of the namespace's file, by which the kernel shows what a link is attached to. Used again once the
    /// namespace is gone.
    pub fn inode(&self) -> io::Result<u32> {
        let inode = std::os::unix::fs::MetadataExt::ino(&self.file.metadata()?);
        u32::try_from(inode).map_err(io::Error::other)
    }

    /// Runs `f` with the calling thread inside the namespace. `f` must not spawn tasks that outlive it and, being a
    /// plain closure, cannot await. Fails without running `f` if the namespace cannot be entered.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> io::Result<R> {
        let home = match HERE.take() {
            Some(home) => home,
            None => Arc::new(File::open(OWN)?),
        };
        let entered = setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET);
        HERE.set(Some(if entered.is_ok() { Arc::clone(&self.file) } else { Arc::clone(&home) }));
        entered?;
        let _leave = Leave(home);
        Ok(f())
    }

    /// The addresses of every interface but loopback, without link-local ones; in the kernel's order, so the first of
    /// a family is the one that the workload shows to others.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        self.run(|| {
            let mut found = Vec::new();
            for interface in getifaddrs()? {
                let Some(address) = interface.address else { continue };
                let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                    (Some(v4), _) => IpAddr::from(v4.ip()),
                    (_, Some(v6)) => IpAddr::from(v6.ip()),
                    _ => continue,
                };
                let link_local = match ip {
                    IpAddr::V4(ip) => ip.is_link_local(),
                    IpAddr::V6(ip) => ip.is_unicast_link_local(),
                };
                if !ip.is_loopback() && !link_local && !found.contains(&ip) {
                    found.push(ip);
                }
            }
            Ok(found)
        })?
    }

    /// The names of every interface but loopback.
    pub fn interfaces(&self) -> io::Result<Vec<String>> {
        self.run(|| {
            let mut names: Vec<String> = nix::net::if_::if_nameindex()?
                .iter()
                .map(|interface| interface.name().to_string_lossy().into_owned())
                .collect();
            names.retain(|name| name != "lo");
            Ok(names)
        })?
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The calling thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";

thread_local! {
    /// The namespace that this thread is in, once it has been in another. Kept because opening [`OWN`] costs three times
    /// as much as entering and leaving; so a thread that uses [`NetNs::run`] must not change its namespace by itself.
    static HERE: Cell<Option<Arc<File>>> = const { Cell::new(None) };
}

/// Takes the thread back to where it was, also when the closure panics.
struct Leave(Arc<File>);

impl Drop for Leave {
    fn drop(&mut self) {
        if setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).is_err() {
            // A worker that stayed in a pod's namespace would dial and listen there for everybody.
            eprintln!(
                "mesh-agent: cannot leave a network namespace; stopping, because nothing done after this is right"
            );
            std::process::abort();
        }
        HERE.set(Some(Arc::clone(&self.0)));
    }
}

/// The cookie of the calling thread's namespace.
fn own_cookie() -> io::Result<u64> {
    // SAFETY: no pointers; the result is checked before it is taken for a descriptor.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    socket_cookie(&socket)
}

/// The cookie of the namespace in which a socket lives.
pub fn socket_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: value and length point to live variables, and the length is the value's size.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// `asm-generic/socket.h`; since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> NetNs {
        let made = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            NetNs::current().unwrap()
        });
        made.join().unwrap()
    }

    #[test]
    fn a_thread_comes_back_from_wherever_it_was() {
        let (home, a, b) = (NetNs::current().unwrap(), scratch(), scratch());
        assert!(a.cookie() != b.cookie() && a.cookie() != home.cookie());
        for _ in 0..2 {
            a.run(|| {
                assert_eq!(own_cookie().unwrap(), a.cookie());
                b.run(|| assert_eq!(own_cookie().unwrap(), b.cookie())).unwrap();
                assert_eq!(own_cookie().unwrap(), a.cookie());
            })
            .unwrap();
            assert_eq!(own_cookie().unwrap(), home.cookie());
        }
    }

    #[test]
    fn a_thread_comes_back_after_a_panic() {
        let (home, a) = (NetNs::current().unwrap(), scratch());
        std::panic::catch_unwind(|| a.run(|| panic!("on purpose"))).unwrap_err();
        assert_eq!(own_cookie().unwrap(), home.cookie());
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        assert!(NetNs::open("/nowhere").is_err());
        assert!(NetNs::open("/etc/hostname").is_err());
        assert!(NetNs::of_pid(u32::MAX).is_err());
        assert_eq!(own_cookie().unwrap(), NetNs::current().unwrap().cookie(), "and the thread goes on where it was");
    }
}
