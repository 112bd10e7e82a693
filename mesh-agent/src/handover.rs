//! One agent takes over from another on the same node, while traffic flows. In: the running agent's descriptors, by a
//! socket that only root can open. Out: the same descriptors in the new process, and the old one's word that it takes
//! nothing new any more.
//!
//! ```text
//! new ── Hello ─────────────────────────────────► old   checks node, pins, ABI; from now on it changes nothing
//!     ◄── Offer (lock, listeners), Pod … ────────       both accept what comes
//!     gets certificates and configuration, loads its programs, replaces links and entries, accepts
//!     ── Taken ─────────────────────────────────►       accepts no more, drains, ends; removes nothing
//!     ◄── Leaving ───────────────────────────────
//! ```
//!
//! When the conversation ends before `Taken`, the old agent goes on as if nothing had happened. Never: a key or a
//! configuration in a message.

mod channel;
pub mod message;

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_common::abi::ABI_VERSION;
use tokio::sync::{mpsc, oneshot};

use crate::kernel::Listeners;
use crate::net::netns::socket_cookie;
use crate::settings::Settings;
use channel::Channel;
use message::{Door, Message, MessageError};

/// How long either waits for a message that needs no thought.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the new agent may take for its certificates and configuration before it gives up.
pub const PREPARE_LIMIT: Duration = Duration::from_secs(30);
/// How long the old agent waits for [`Message::Taken`] before it goes on by itself.
const OFFER_LIMIT: Duration = Duration::from_secs(60);

/// Why one agent cannot take over from another.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The other one said no.
    #[error("the other agent refuses: {0}")]
    Refused(String),
    /// The other one is gone.
    #[error("the other agent is gone")]
    Gone,
    /// The other one said something else than what was to be said.
    #[error("the other agent sent {0}")]
    Unexpected(String),
    /// Not a message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The socket.
    #[error("the node's socket: {0}")]
    Io(#[from] io::Error),
}

/// A workload with its listeners.
pub struct Pod {
    /// `namespace/name`.
    pub workload: String,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// It has configuration and a certificate.
    pub ready: bool,
    /// Its listening sockets.
    pub listeners: Listeners,
}

/// Everything that is handed over.
pub struct Estate {
    /// The lock on the pins.
    pub lock: OwnedFd,
    /// Admin, metrics and readiness.
    pub pages: [TcpListener; 3],
    /// The enrolled workloads.
    pub pods: Vec<Pod>,
}

/// What the running agent is asked by its successor.
pub enum Request {
    /// What there is to hand over. From now on nothing of it is to change.
    Offer(oneshot::Sender<io::Result<Estate>>),
    /// It did not come to it: everything may change again.
    Withdrawn,
    /// The successor has taken over; to be answered once nothing new is taken.
    Taken(oneshot::Sender<()>),
}

/// Listens for a successor on a thread of its own until the process ends.
pub fn serve(settings: &Settings, pins: PathBuf) -> io::Result<mpsc::Receiver<Request>> {
    let door = channel::Door::open(&settings.node_socket())?;
    let (requests, receiver) = mpsc::channel(1);
    let own = hello(settings, &pins);
    std::thread::Builder::new().name("handover".into()).spawn(move || {
        loop {
            let channel = match door.accept() {
                Ok(channel) => channel,
                Err(error) => {
                    tracing::error!(%error, "no agent can take over from this one any more");
                    return;
                }
            };
            match answer(&channel, &own, &requests) {
                // The successor sees us go by this channel: it stays open until the process has ended.
                Ok(()) => return std::mem::forget(channel),
                Err(error) => tracing::warn!(%error, "another agent wanted to take over; this one goes on"),
            }
        }
    })?;
    Ok(receiver)
}

fn hello(settings: &Settings, pins: &Path) -> Message {
    Message::Hello { abi: ABI_VERSION, node: settings.node.clone(), pins: pins.display().to_string() }
}

/// The old agent's side of one conversation. Returns the channel once the other has taken over.
fn answer(channel: &Channel, own: &Message, requests: &mpsc::Sender<Request>) -> Result<(), HandoverError> {
    let (said, _) = channel.receive(ANSWER_LIMIT)?;
    if said != *own {
        let why = format!("it is another node's, or of another version: it has {own:?}, and was told {said:?}");
        channel.send(&Message::Refused { why: why.clone() }, &[])?;
        return Err(HandoverError::Unexpected(why));
    }
    let gone = |_| HandoverError::Gone;
    let (reply, estate) = oneshot::channel();
    requests.blocking_send(Request::Offer(reply)).map_err(|_| HandoverError::Gone)?;
    let taken = estate.blocking_recv().map_err(gone)?.map_err(HandoverError::Io).and_then(|estate| {
        offer(channel, &estate)?;
        match channel.receive(OFFER_LIMIT)? {
            (Message::Taken, _) => Ok(()),
            (other, _) => Err(HandoverError::Unexpected(format!("{other:?}"))),
        }
    });
    if let Err(error) = taken {
        requests.blocking_send(Request::Withdrawn).map_err(|_| HandoverError::Gone)?;
        return Err(error);
    }
    let (reply, left) = oneshot::channel();
    requests.blocking_send(Request::Taken(reply)).map_err(|_| HandoverError::Gone)?;
    left.blocking_recv().map_err(gone)?;
    channel.send(&Message::Leaving, &[])
}

fn offer(channel: &Channel, estate: &Estate) -> Result<(), HandoverError> {
    let [admin, metrics, ready] = &estate.pages;
    let descriptors = [estate.lock.as_fd(), admin.as_fd(), metrics.as_fd(), ready.as_fd()];
    channel.send(&Message::Offer { pods: estate.pods.len() }, &descriptors)?;
    for pod in &estate.pods {
        let Listeners { outbound, inbound, tunnel, dns } = &pod.listeners;
        let all = [(Door::Outbound, outbound), (Door::Inbound, inbound), (Door::Tunnel, tunnel)];
        let all = all.into_iter().flat_map(|(door, group)| group.iter().map(move |listener| (door, listener.as_fd())));
        let all = all.chain(dns.iter().map(|socket| (Door::Dns, socket.as_fd())));
        let (sockets, descriptors): (Vec<Door>, Vec<BorrowedFd<'_>>) = all.unzip();
        let (workload, netns, ready) = (pod.workload.clone(), pod.netns, pod.ready);
        channel.send(&Message::Pod { workload, netns, ready, sockets }, &descriptors)?;
    }
    Ok(())
}

/// The new agent's side of the conversation.
pub struct Predecessor(Channel);

impl Predecessor {
    /// Asks the running agent for everything. `None`: there is none.
    pub fn ask(settings: &Settings, pins: &Path) -> Result<Option<(Predecessor, Estate)>, HandoverError> {
        let Some(channel) = Channel::connect(&settings.node_socket())? else { return Ok(None) };
        channel.send(&hello(settings, pins), &[])?;
        let estate = Estate::receive(&channel)?;
        Ok(Some((Predecessor(channel), estate)))
    }

    /// Tells the old agent to go. When this fails, it is gone already.
    pub fn take(&self) -> Result<(), HandoverError> {
        self.0.send(&Message::Taken, &[])?;
        match self.0.receive(ANSWER_LIMIT)? {
            (Message::Leaving, _) => Ok(()),
            (other, _) => Err(HandoverError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Blocks until the old agent's process has ended.
    pub fn wait_gone(&self) {
        self.0.wait_gone();
    }
}

impl Estate {
    fn receive(channel: &Channel) -> Result<Estate, HandoverError> {
        let (offer, descriptors) = channel.receive(ANSWER_LIMIT)?;
        let Message::Offer { pods: count } = offer else {
            return Err(HandoverError::Unexpected(format!("{offer:?}")));
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(|| HandoverError::Unexpected("too few descriptors".into()));
        let lock = next()?;
        let mut page = || listener(next()?);
        let pages = [page()?, page()?, page()?];
        let mut pods = Vec::new();
        for _ in 0..count {
            let (pod, descriptors) = channel.receive(ANSWER_LIMIT)?;
            let Message::Pod { workload, netns, ready, sockets } = pod else {
                return Err(HandoverError::Unexpected(format!("{pod:?}")));
            };
            let mut listeners = Listeners::default();
            for (door, descriptor) in sockets.into_iter().zip(descriptors) {
                if socket_cookie(&descriptor)? != netns {
                    return Err(HandoverError::Unexpected(format!("a socket of another namespace for {workload}")));
                }
                match door {
                    Door::Outbound => listeners.outbound.push(listener(descriptor)?),
                    Door::Inbound => listeners.inbound.push(listener(descriptor)?),
                    Door::Tunnel => listeners.tunnel.push(listener(descriptor)?),
                    Door::Dns => listeners.dns.push(datagrams(descriptor)?),
                }
            }
            pods.push(Pod { workload, netns, ready, listeners });
        }
        Ok(Estate { lock, pages, pods })
    }
}

/// A listening TCP socket, and nothing else.
fn listener(descriptor: OwnedFd) -> Result<TcpListener, HandoverError> {
    let socket = socket2::SockRef::from(&descriptor);
    let fits = socket.is_listener()? && socket.r#type()? == socket2::Type::STREAM;
    if !fits {
        return Err(HandoverError::Unexpected("a descriptor that is no listening socket".into()));
    }
    Ok(TcpListener::from(descriptor))
}

/// A UDP socket, and nothing else.
fn datagrams(descriptor: OwnedFd) -> Result<UdpSocket, HandoverError> {
    let socket = socket2::SockRef::from(&descriptor);
    let fits = socket.r#type()? == socket2::Type::DGRAM && socket.protocol()? == Some(socket2::Protocol::UDP);
    if !fits {
        return Err(HandoverError::Unexpected("a descriptor that is no UDP socket".into()));
    }
    Ok(UdpSocket::from(descriptor))
}

/// The listener among those handed over for a page's address, unless the settings now want it elsewhere.
pub fn page(handed_over: TcpListener, wanted: SocketAddr) -> Option<TcpListener> {
    (handed_over.local_addr().ok()? == wanted).then_some(handed_over)
}
