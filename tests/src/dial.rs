//! Connections that a process of a pod has opened, for a test to drive byte by byte.
//!
//! In: `host:port`, as a program of the pod would name it. Out: the connected socket. The process is one of the pod's, so that hooks and
//! agent see its connect; a test's own thread would not be in the pod's cgroup.

use std::io::{IoSliceMut, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::place::Process;

/// Longest that a connect takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Opens connections in a pod until it is dropped.
#[derive(Debug)]
pub struct Dialer {
    _process: Process,
    socket: PathBuf,
}

impl Dialer {
    pub(crate) fn new(process: Process, socket: PathBuf) -> Self {
        Self { _process: process, socket }
    }

    /// Connects; the socket, and its own address as the pod's programs see it.
    ///
    /// # Errors
    /// Nobody answers there, or the name is unknown.
    pub fn connect(&self, to: &str) -> Result<(TcpStream, SocketAddr)> {
        let mut asked = UnixStream::connect(&self.socket).context("the dialer is gone")?;
        asked.set_read_timeout(Some(LIMIT))?;
        asked.write_all(format!("{to}\n").as_bytes())?;
        let mut text = [0; 512];
        let mut parts = [IoSliceMut::new(&mut text)];
        let mut room = nix::cmsg_space!(RawFd);
        let got = recvmsg::<()>(asked.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)
            .with_context(|| format!("waiting for a connection to {to}"))?;
        let length = got.bytes;
        let mut sockets = got.cmsgs()?.filter_map(|message| match message {
            ControlMessageOwned::ScmRights(sockets) => sockets.first().copied(),
            _ => None,
        });
        let socket = sockets.next();
        let said = String::from_utf8_lossy(&text[..length]);
        let Some(socket) = socket else { bail!("no connection: {said}") };
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(socket) });
        Ok((stream, said.parse().with_context(|| format!("the dialer says `{said}`"))?))
    }
}
