//! A place where processes run: a network namespace, a cgroup, and a view of `/etc/hosts` and `/etc/resolv.conf`.
//!
//! In: a command line. Out: its [`Output`], or a [`Process`] that is ended when dropped. A process enters its place
//! before its first instruction, so nothing of it ever runs outside. It never changes the caller's own namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::confine::{Confinement, Prepared};
use crate::sys;

/// Longest that [`Place::run`] lets a command take.
pub const RUN_LIMIT: Duration = Duration::from_secs(120);
/// How long a process gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// Longest that a connection or read of [`Place::http_get`] takes.
const HTTP_LIMIT: Duration = Duration::from_secs(5);

/// TCP_LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Where processes run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// What errors call it.
    pub name: String,
    /// File of the network namespace.
    pub netns: PathBuf,
    /// Directory of the cgroup, absent for helpers that stay in the caller's.
    pub cgroup: Option<PathBuf>,
    /// Put over `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// Put over `/etc/resolv.conf`.
    pub resolv: Option<PathBuf>,
    /// Added to the environment.
    pub env: BTreeMap<String, String>,
    /// What its processes may do, if not everything.
    pub confinement: Option<Confinement>,
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    /// Command line, for errors.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Output {
    /// Stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// This output if the command succeeded.
    ///
    /// # Errors
    /// It did not; the error has both streams' ends.
    pub fn ok(self) -> Result<Self> {
        if !self.status.success() {
            bail!("`{}`: {}\nstdout: {}\nstderr: {}", self.command, self.status, end(&self.text()), end(&self.stderr));
        }
        Ok(self)
    }
}

fn end(text: &str) -> String {
    const SHOWN: usize = 2000;
    let text = text.trim();
    let start = text.char_indices().rev().nth(SHOWN).map_or(0, |(i, _)| i);
    text[start..].to_owned()
}

impl Place {
    /// A command that will run here, its streams still to be set.
    ///
    /// # Errors
    /// The namespace or the cgroup is gone.
    pub fn command(&self, argv: &[impl AsRef<str>]) -> Result<Command> {
        let program = argv.first().context("an empty command")?.as_ref();
        let netns =
            File::open(&self.netns).with_context(|| format!("{}: namespace {}", self.name, self.netns.display()))?;
        let cgroup = match &self.cgroup {
            Some(dir) => {
                let procs = dir.join("cgroup.procs");
                let open = File::options().write(true).open(&procs);
                Some(open.with_context(|| format!("{}: cgroup {}", self.name, procs.display()))?)
            }
            None => None,
        };
        let bind = |over: &Option<PathBuf>, target: &str| -> Result<Option<(CString, CString)>> {
            let Some(over) = over else { return Ok(None) };
            Ok(Some((CString::new(over.as_os_str().as_bytes())?, CString::new(target)?)))
        };
        let binds = [bind(&self.hosts, "/etc/hosts")?, bind(&self.resolv, "/etc/resolv.conf")?];
        let confined = self.confinement.as_ref().map(Confinement::prepare).transpose()?;
        let mut command = Command::new(program);
        command.args(argv[1..].iter().map(AsRef::as_ref)).envs(&self.env);
        if let Ok(dir) = sys::binaries() {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:/usr/sbin:/sbin:{path}", dir.display()));
        }
        // SAFETY: between fork and exec only system calls on what was prepared above: no allocation, no lock.
        unsafe {
            command.pre_exec(move || {
                // The mask is inherited, and `mesh-lab` blocks what it waits for.
                nix::sys::signal::SigSet::all().thread_unblock()?;
                if let Some(cgroup) = &cgroup {
                    let mut procs: &File = cgroup;
                    procs.write_all(b"0")?;
                }
                nix::sched::setns(&netns, CloneFlags::CLONE_NEWNET)?;
                nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
                let none = None::<&std::ffi::CStr>;
                // Slave, not private: namespaces made later must show up here, ours nowhere else.
                nix::mount::mount(none, c"/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
                for (over, target) in binds.iter().flatten() {
                    nix::mount::mount(Some(over.as_c_str()), target.as_c_str(), none, MsFlags::MS_BIND, none)?;
                }
                confined.as_ref().map_or(Ok(()), Prepared::enter)
            });
        }
        Ok(command)
    }

    /// Runs a command to its end, at most [`RUN_LIMIT`], whatever its status.
    ///
    /// # Errors
    /// It cannot start or does not end.
    pub fn try_run(&self, argv: &[impl AsRef<str>]) -> Result<Output> {
        let line = line(argv);
        let mut command = self.command(argv)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let child = command.spawn().with_context(|| format!("{}: starting `{line}`", self.name))?;
        let group = child.id();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        let Ok(output) = receiver.recv_timeout(RUN_LIMIT) else {
            signal_group(group, Signal::SIGKILL);
            bail!("{}: `{line}` did not end within {} s", self.name, RUN_LIMIT.as_secs());
        };
        let output = output.with_context(|| format!("{}: waiting for `{line}`", self.name))?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Output { command: format!("{}: {line}", self.name), status: output.status, stdout: output.stdout, stderr })
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// As [`Place::try_run`], or a status other than 0.
    pub fn run(&self, argv: &[impl AsRef<str>]) -> Result<Output> {
        self.try_run(argv)?.ok()
    }

    /// Starts a command in the background; both its streams go to the end of the file `log`.
    ///
    /// # Errors
    /// It cannot start.
    pub fn spawn(&self, argv: &[impl AsRef<str>], log: &Path) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("opening log {}", log.display()))?;
        let mut command = self.command(argv)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let line = line(argv);
        let child = command.spawn().with_context(|| format!("{}: starting `{line}`", self.name))?;
        Ok(Process { name: format!("{}: {line}", self.name), child: Some(child), log: log.to_owned() })
    }

    /// Runs a closure on a thread inside this place's network namespace (not its cgroup: hooks do not see it).
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn within<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R> {
        let netns =
            File::open(&self.netns).with_context(|| format!("{}: namespace {}", self.name, self.netns.display()))?;
        let enter = move || -> Result<R> {
            nix::sched::setns(&netns, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
            Ok(f())
        };
        std::thread::scope(|scope| scope.spawn(enter).join()).map_err(|e| std::panic::resume_unwind(e))?
    }

    /// Whether something listens on a TCP port here.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn listens(&self, port: u16) -> Result<bool> {
        Ok(self.listeners()?.contains(&port))
    }

    /// Every TCP port that something listens on, read from the kernel's table so that no program is disturbed.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn listeners(&self) -> Result<BTreeSet<u16>> {
        let tables = self.within(|| {
            ["tcp", "tcp6"].map(|t| std::fs::read_to_string(format!("/proc/thread-self/net/{t}")).unwrap_or_default())
        })?;
        let listener = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (address, state) = (fields.get(1)?, fields.get(3)?);
            let port = address.rsplit(':').next().filter(|_| *state == LISTEN)?;
            u16::from_str_radix(port, 16).ok()
        };
        Ok(tables.iter().flat_map(|t| t.lines()).filter_map(listener).collect())
    }

    /// Status and body of a plain HTTP/1.0 GET made from here.
    ///
    /// # Errors
    /// No connection, no answer in time, no HTTP.
    pub fn http_get(&self, address: IpAddr, port: u16, path: &str) -> Result<(u16, String)> {
        self.within(|| get(SocketAddr::new(address, port), path))?
    }
}

fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream =
        TcpStream::connect_timeout(&address, HTTP_LIMIT).with_context(|| format!("connecting {address}"))?;
    stream.set_read_timeout(Some(HTTP_LIMIT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(|| format!("reading from {address}"))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) =
        text.split_once("\r\n\r\n").with_context(|| format!("{address}{path}: not HTTP: {}", end(&text)))?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok((status.ok_or_else(|| anyhow!("{address}{path}: no status in `{}`", end(head)))?, body.to_owned()))
}

fn line(argv: &[impl AsRef<str>]) -> String {
    argv.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ")
}

fn signal_group(group: u32, signal: Signal) {
    if let Ok(group) = i32::try_from(group) {
        // It may have ended by itself meanwhile.
        let _ = killpg(Pid::from_raw(group), signal);
    }
}

/// A process in the background, ended when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    /// Process id, while it has not been waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// All it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sends a signal to the process and its group.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            signal_group(child.id(), signal);
        }
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// It does not within `limit`; the error has the end of its log.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let Some(child) = self.child.as_mut() else { bail!("{}: already waited for", self.name) };
        let status = sys::wait_for(limit, &format!("the end of `{}`", self.name), || Ok(child.try_wait()?))
            .with_context(|| sys::tail(&self.log, 20))?;
        self.child = None;
        Ok(status)
    }

    /// Waits until its log satisfies `look`.
    ///
    /// # Errors
    /// It ends, or `limit` passes, before that.
    pub fn wait_log<T>(&mut self, limit: Duration, what: &str, mut look: impl FnMut(&str) -> Option<T>) -> Result<T> {
        sys::wait_for(limit, what, || match look(&self.log()) {
            Some(found) => Ok(Some(found)),
            None if !self.running() => look(&self.log()).map(Some).with_context(|| format!("`{}` ended", self.name)),
            None => Ok(None),
        })
        .with_context(|| format!("log of `{}`:\n{}", self.name, sys::tail(&self.log, 20)))
    }

    /// Ends it: SIGTERM, and SIGKILL if that does not do.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        if self.child.is_some() && self.wait(GRACE).is_err() {
            self.kill();
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(mut child) = self.child.take() {
            // Only fails when it has been waited for already.
            let _ = child.wait();
        }
    }

    /// Lets it outlive this value; it is reaped when it ends, if we still live then.
    pub fn leave(mut self) {
        if let Some(mut child) = self.child.take() {
            std::thread::spawn(move || child.wait());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}
