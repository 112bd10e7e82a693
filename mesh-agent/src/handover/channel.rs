//! The root-only socket between two agents of one node: whole packets, with descriptors beside them. In: messages and
//! descriptors. Out: the other's. Every wait is bounded; whoever is neither root nor this user is sent away.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::sockopt::{PeerCredentials, ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, getsockopt, listen, recvmsg, sendmsg, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use super::HandoverError;
use super::message::{MAX_PACKET, MAX_SOCKETS, Message};

/// How long one message may take to be sent.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Where a successor may knock.
pub(super) struct Door(OwnedFd);

impl Door {
    /// Listens at `path` in the place of whoever did before. Mode 0600, in a directory of mode 0700 if it has to be made.
    pub(super) fn open(path: &Path) -> io::Result<Door> {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        let listener = packets()?;
        bind(listener.as_raw_fd(), &UnixAddr::new(&new)?)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        listen(&listener, Backlog::new(4).map_err(io::Error::from)?)?;
        fs::rename(&new, path)?;
        Ok(Door(listener))
    }

    /// Waits for somebody who may come in.
    pub(super) fn accept(&self) -> io::Result<Channel> {
        loop {
            let fd = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
            // SAFETY: the kernel has just given this descriptor to us and nobody else owns it.
            let channel = Channel(unsafe { OwnedFd::from_raw_fd(fd) });
            let uid = getsockopt(&channel.0, PeerCredentials)?.uid();
            if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
                return Ok(channel);
            }
            tracing::warn!(uid, "somebody who is not root knocked at the node's socket");
        }
    }
}

/// A conversation.
pub struct Channel(OwnedFd);

impl Channel {
    /// Knocks at `path`. `None`: nobody is there.
    pub(super) fn connect(path: &Path) -> io::Result<Option<Channel>> {
        let channel = packets()?;
        match connect(channel.as_raw_fd(), &UnixAddr::new(path)?) {
            Ok(()) => Ok(Some(Channel(channel))),
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ECONNREFUSED) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Says something.
    pub(super) fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        let packet = message.to_packet()?;
        let raw: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let limit = TimeVal::new(SEND_LIMIT.as_secs() as i64, 0);
        setsockopt(&self.0, SendTimeout, &limit).map_err(io::Error::from)?;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&packet)], control, MsgFlags::MSG_NOSIGNAL, None)
            .map_err(io::Error::from)?;
        Ok(())
    }

    /// Hears what the other says within `limit`, with exactly the descriptors that belong to it.
    pub(super) fn receive(&self, limit: Duration) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
        let limit = TimeVal::new(limit.as_secs() as i64, 0);
        setsockopt(&self.0, ReceiveTimeout, &limit).map_err(io::Error::from)?;
        let mut packet = vec![0; MAX_PACKET];
        let mut control = cmsg_space!([RawFd; MAX_SOCKETS]);
        let (length, descriptors, flags) = {
            let mut parts = [IoSliceMut::new(&mut packet)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let got =
                recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags).map_err(io::Error::from)?;
            let mut descriptors = Vec::new();
            for message in got.cmsgs().map_err(io::Error::from)? {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    // SAFETY: the kernel has just given these descriptors to us and nobody else owns them.
                    descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            (got.bytes, descriptors, got.flags)
        };
        if length == 0 {
            return Err(HandoverError::Gone);
        }
        if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(HandoverError::Unexpected("more than a message may have".into()));
        }
        let message = Message::parse(packet.get(..length).unwrap_or_default())?;
        if let Message::Refused { why } = message {
            return Err(HandoverError::Refused(why));
        }
        if descriptors.len() != message.descriptors() {
            return Err(HandoverError::Unexpected(format!("{} descriptors", descriptors.len())));
        }
        Ok((message, descriptors))
    }

    /// Waits until the other end is closed, for ever if need be.
    pub(super) fn wait_gone(&self) {
        let _ = setsockopt(&self.0, ReceiveTimeout, &TimeVal::new(0, 0));
        while self.receive(Duration::ZERO).is_ok() {}
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn packets() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}
