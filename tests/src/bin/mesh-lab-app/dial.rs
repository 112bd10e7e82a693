//! Opens connections for somebody who is not in the pod, and hands them over: the test that drives them byte by byte.
//!
//! In: on a Unix socket, one `host:port` a connection. Out: the connected TCP socket itself (SCM_RIGHTS) beside its address as the pod sees it,
//! or why there is none. So what a test does with it is what a program of the pod did: hooks and agent have seen that one connect. Each
//! connection has a port of its own, which no other of the pod has after it: lines of an access log are told apart by it.

use std::io::{BufRead, BufReader, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, Socket, Type};

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Path of the Unix socket to listen on.
    #[arg(long)]
    socket: PathBuf,
    /// Own port of the first connection; each further one has the next.
    #[arg(long)]
    first_port: u16,
}

/// Serves until killed, each question in its own thread: a connect may take long.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let listener =
        UnixListener::bind(&options.socket).with_context(|| format!("listening on {}", options.socket.display()))?;
    println!("listening");
    for (number, asker) in listener.incoming().enumerate() {
        let asker = asker.context("accepting")?;
        let port = u16::try_from(number).ok().and_then(|number| options.first_port.checked_add(number));
        let port = port.context("no ports are left")?;
        std::thread::spawn(move || answer(&asker, port));
    }
    Ok(())
}

fn answer(asker: &UnixStream, port: u16) -> anyhow::Result<()> {
    let mut to = String::new();
    BufReader::new(asker).read_line(&mut to)?;
    let to = to.trim();
    match connect(to, port) {
        Ok((socket, local)) => {
            let (local, sockets) = (local.to_string(), [socket.as_raw_fd()]);
            let rights = [ControlMessage::ScmRights(&sockets)];
            sendmsg::<()>(asker.as_raw_fd(), &[IoSlice::new(local.as_bytes())], &rights, MsgFlags::empty(), None)?;
        }
        Err(error) => {
            let why = format!("{to}: {error:#}");
            sendmsg::<()>(asker.as_raw_fd(), &[IoSlice::new(why.as_bytes())], &[], MsgFlags::empty(), None)?;
        }
    }
    Ok(())
}

fn connect(to: &str, port: u16) -> anyhow::Result<(Socket, SocketAddr)> {
    let to = to.to_socket_addrs()?.find(SocketAddr::is_ipv4).context("no IPv4 address")?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into()).with_context(|| format!("own port {port}"))?;
    socket.connect(&to.into())?;
    socket.set_tcp_nodelay(true)?;
    let local = socket.local_addr()?.as_socket().context("no address")?;
    Ok((socket, local))
}
