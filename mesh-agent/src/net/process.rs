//! Processes by more than their numbers, which the kernel gives to others once they have ended. In: a pid. Out: who has
//! it now. Sends no signals.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::str::FromStr;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// One process, of all that have or had its pid since the machine was booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks since the boot (proc_pid_stat(5), field 22).
    pub started: u64,
}

impl Process {
    /// Runs `f`, which looks the process up by its pid, and makes sure that it was the same process all the time.
    pub fn with<R>(pid: u32, f: impl FnOnce() -> io::Result<R>) -> io::Result<(Process, R)> {
        // As long as this process lives its pid is nobody else's.
        let held = hold(pid)?;
        let process = Process { pid, started: started(pid)? };
        let found = f()?;
        let mut ended = [PollFd::new(held.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ended, PollTimeout::ZERO)? != 0 {
            return Err(io::Error::other("it ended while it was looked at"));
        }
        Ok((process, found))
    }

    /// Whether this is not the process that had this pid before: `was`.
    pub fn took_the_pid_of(&self, was: &Process) -> bool {
        self.pid == was.pid && self.started != was.started
    }
}

/// `PID-STARTED`, for names on a bpffs, which takes no dots.
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.started)
    }
}

impl FromStr for Process {
    type Err = ();

    fn from_str(text: &str) -> Result<Process, ()> {
        let (pid, started) = text.split_once('-').ok_or(())?;
        Ok(Process { pid: pid.parse().map_err(|_| ())?, started: started.parse().map_err(|_| ())? })
    }
}

/// A descriptor of the process (pidfd_open(2)).
fn hold(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: no pointers; the result is checked before it is taken for a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just given this descriptor to us and nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn started(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse(&stat)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not as expected")))
}

/// The second field is the program's name in parentheses, which may hold anything.
fn parse(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_name_may_look_like_anything() {
        let rest = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(parse(&format!("7 (sh) {rest}")), Some(4711));
        assert_eq!(parse(&format!("7 (a) b ) 9 (9) {rest}")), Some(4711));
        assert_eq!(parse("7 (sh) S 1 1"), None);
    }

    #[test]
    fn a_process_is_itself_and_no_other() {
        let own = std::process::id();
        let (first, ()) = Process::with(own, || Ok(())).unwrap();
        let (again, ()) = Process::with(own, || Ok(())).unwrap();
        assert_eq!(first, again);
        assert!(!first.took_the_pid_of(&again));
        let before = Process { started: first.started - 1, ..first };
        assert!(first.took_the_pid_of(&before));
        assert!(!first.took_the_pid_of(&Process { pid: own + 1, ..before }), "another pid is no secret");
    }

    #[test]
    fn one_that_ends_meanwhile_is_nobody() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id();
        let error = Process::with(pid, || {
            child.kill()?;
            child.wait()
        });
        assert!(error.unwrap_err().to_string().contains("ended"));
        assert!(Process::with(pid, || Ok(())).is_err());
    }

    proptest! {
        #[test]
        fn a_name_leads_back(pid: u32, started: u64) {
            let process = Process { pid, started };
            prop_assert_eq!(process.to_string().parse(), Ok(process));
        }

        #[test]
        fn anything_is_read_without_panic(text: String) {
            let _ = parse(&text);
            let _ = text.parse::<Process>();
        }
    }
}
