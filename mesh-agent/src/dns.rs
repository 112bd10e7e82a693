//! The DNS listener of a pod: a byte-faithful forwarder. In: questions that the kernel programs sent to the agent's
//! sockets in the pod's namespace. Out: the same bytes to the server that was asked, from a socket of the agent's there;
//! the server's bytes back, from the address at which they were expected. Reads no more of a message than its id, so
//! malformed ones go through as well. Never answers by itself, never asks anybody else.
//!
//! Each question has a socket of its own, so its source port is random, and questions with equal ids cannot mix. The
//! first answer from the server with the question's id is taken, and no other.

mod counters;
mod refusal;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use counters::Counters;
use counters::{InFlight, Reason};

use crate::kernel::Sockets;
use crate::net::datagram;
use crate::shutdown;
use crate::workload::Workload;

/// How long a question waits for its answer. Resolvers ask again after a few seconds, with a new question.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// Questions taken from one socket before others have their turn.
const BATCH: usize = 32;
/// An answer, or that there will be none: what ICMP says of a server makes a socket fail, not readable.
const NEWS: Interest = Interest::READABLE.add(Interest::ERROR);
/// Pause after a socket failed in a way that may last.
const PAUSE: Duration = Duration::from_millis(50);

thread_local! {
    /// Where datagrams are read to; used between two awaits only, so one a thread is enough for all its workloads.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; datagram::MAX_DATAGRAM]);
}

/// What the questions of one workload share.
pub struct Forwarder {
    /// `namespace/name`.
    name: String,
    net: Net,
    counters: Arc<Counters>,
    in_flight: Cell<usize>,
    /// Of these at most; further questions are dropped, as a busy server would.
    most: usize,
    shutdown: shutdown::Watch,
    /// The workload was withdrawn, or the worker ends.
    ended: CancellationToken,
}

/// Where its sockets are opened.
enum Net {
    /// In its network namespace.
    Real(Arc<Workload>, Sockets),
    /// By a test.
    #[cfg(test)]
    Test(tests::Net),
}

/// One of the agent's sockets in the pod.
struct Listener {
    socket: UdpSocket,
    bound: SocketAddr,
}

/// One question on its way.
struct Question {
    /// Who asked.
    client: SocketAddr,
    /// At which address of the agent.
    at: SocketAddr,
    /// Its first two bytes (RFC 1035, 4.1.1), if it has them.
    id: Option<[u8; 2]>,
}

impl Forwarder {
    /// A forwarder for one workload, `most` of whose questions may wait for an answer.
    pub fn new(
        workload: Arc<Workload>,
        sockets: Sockets,
        counters: Arc<Counters>,
        shutdown: shutdown::Watch,
        ended: CancellationToken,
        most: usize,
    ) -> Rc<Forwarder> {
        let name = workload.key();
        let in_flight = Cell::new(0);
        Rc::new(Forwarder { name, net: Net::Real(workload, sockets), counters, in_flight, most, shutdown, ended })
    }

    /// Takes questions from one of the agent's sockets until the workload is withdrawn or the agent drains. Those that
    /// are on their way then still get their answers.
    pub async fn serve(self: Rc<Self>, socket: StdSocket) {
        let opened = socket.local_addr().and_then(|bound| Ok(Listener { bound, socket: UdpSocket::from_std(socket)? }));
        let listener = match opened {
            Ok(listener) => Rc::new(listener),
            Err(error) => return tracing::error!(workload = self.name, %error, "cannot serve DNS"),
        };
        let mut shutdown = self.shutdown.clone();
        loop {
            let ready = tokio::select! {
                ready = listener.socket.readable() => ready,
                () = self.ended.cancelled() => return,
                () = shutdown.draining() => return,
            };
            if ready.is_err() || self.take(&listener).is_err() {
                tokio::time::sleep(PAUSE).await;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Takes what has come. A socket's error is mostly one that ICMP brought for an earlier answer.
    fn take(self: &Rc<Self>, listener: &Rc<Listener>) -> io::Result<()> {
        for _ in 0..BATCH {
            let taken: io::Result<()> = BUFFER.with_borrow_mut(|buffer| {
                let read = || datagram::receive(&listener.socket, listener.bound, buffer);
                let (length, client, at) = listener.socket.try_io(Interest::READABLE, read)?;
                self.forward(listener, client, at, buffer.get(..length).unwrap_or_default());
                Ok(())
            });
            match taken {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends one question on; a task of its own waits for the answer.
    fn forward(self: &Rc<Self>, listener: &Rc<Listener>, client: SocketAddr, at: SocketAddr, bytes: &[u8]) {
        self.counters.query();
        let server = match self.net.server(at) {
            Ok(Some(server)) => server,
            Ok(None) => return self.counters.drop_for(Reason::Unknown),
            Err(error) => {
                tracing::warn!(workload = self.name, %error, "cannot find which DNS server was asked");
                return self.counters.drop_for(Reason::Failed);
            }
        };
        if self.in_flight.get() >= self.most {
            return self.counters.drop_for(Reason::Overload);
        }
        let question = Question { client, at, id: id(bytes) };
        match self.net.ask(server, client, bytes) {
            Ok(upstream) => {
                let (place, guard) = (Place::take(self), self.shutdown.guard());
                let (own, listener) = (Rc::clone(self), Rc::clone(listener));
                tokio::task::spawn_local(async move {
                    let _held = (place, guard);
                    tokio::select! {
                        () = own.answer(&listener, &question, upstream) => {}
                        () = own.ended.cancelled() => own.counters.drop_for(Reason::Withdrawn),
                    }
                });
            }
            Err(error) => self.refuse(&question, &error),
        }
    }

    /// Waits for the answer and gives it to who asked.
    async fn answer(&self, listener: &Listener, question: &Question, upstream: UdpSocket) {
        let first = async {
            loop {
                let hear = || BUFFER.with_borrow_mut(|buffer| self.hear(listener, question, &upstream, buffer));
                if upstream.async_io(NEWS, hear).await? {
                    return Ok(());
                }
            }
        };
        match timeout(ANSWER_WAIT, first).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.refuse(question, &error),
            Err(_) => self.counters.drop_for(Reason::Timeout),
        }
    }

    /// Reads what came; whether it was the answer.
    fn hear(&self, listener: &Listener, question: &Question, from: &UdpSocket, buffer: &mut [u8]) -> io::Result<bool> {
        let length = datagram::read(from, buffer)?;
        let bytes = buffer.get(..length).unwrap_or_default();
        if id(bytes) != question.id {
            self.counters.drop_for(Reason::WrongId);
            return Ok(false);
        }
        self.give(listener, question, bytes);
        Ok(true)
    }

    fn give(&self, listener: &Listener, question: &Question, bytes: &[u8]) {
        match datagram::send(&listener.socket, question.at, question.client, bytes) {
            Ok(()) => self.counters.answer(),
            Err(error) => {
                tracing::debug!(workload = self.name, %error, "cannot give a DNS answer to its client");
                self.counters.drop_for(Reason::Failed);
            }
        }
    }

    /// The server cannot be reached: tells the client as ICMP would, so that it need not wait.
    fn refuse(&self, question: &Question, error: &io::Error) {
        self.counters.drop_for(Reason::Refused);
        let told = self.net.icmp(question.client).and_then(|icmp| refusal::send(&icmp, question.client, question.at));
        if let Err(failed) = told {
            tracing::debug!(workload = self.name, %error, %failed, "cannot tell a client that its DNS server is not there");
        }
    }
}

impl Net {
    /// The server for which the agent stands at an address.
    fn server(&self, at: SocketAddr) -> io::Result<Option<SocketAddr>> {
        match self {
            Net::Real(workload, sockets) => sockets.dns_server(&workload.netns, at),
            #[cfg(test)]
            Net::Test(net) => Ok(net.server(at)),
        }
    }

    /// Sends a question from a new socket, which takes nothing but the server's answer. A client that chose one of the
    /// workload's addresses for itself is heeded.
    fn ask(&self, server: SocketAddr, client: SocketAddr, bytes: &[u8]) -> io::Result<UdpSocket> {
        let socket = match self {
            Net::Real(workload, sockets) => sockets.datagrams(&workload.netns, server)?,
            #[cfg(test)]
            Net::Test(_) => tests::socket(server)?,
        };
        if !client.ip().is_loopback() && client.is_ipv4() == server.is_ipv4() {
            socket.bind(&SocketAddr::new(client.ip(), 0).into())?;
        }
        socket.connect(&server.into())?;
        socket.send(bytes)?;
        UdpSocket::from_std(socket.into())
    }

    fn icmp(&self, client: SocketAddr) -> io::Result<socket2::Socket> {
        match self {
            Net::Real(workload, sockets) => sockets.icmp(&workload.netns, client),
            #[cfg(test)]
            Net::Test(_) => tests::icmp(client),
        }
    }
}

/// The id of a message, if it is long enough to have one.
fn id(bytes: &[u8]) -> Option<[u8; 2]> {
    bytes.first_chunk().copied()
}

/// One question's place in its workload's budget.
struct Place(Rc<Forwarder>, #[expect(dead_code, reason = "counts while it lives")] InFlight);

impl Place {
    fn take(forwarder: &Rc<Forwarder>) -> Place {
        forwarder.in_flight.set(forwarder.in_flight.get() + 1);
        Place(Rc::clone(forwarder), InFlight::new(&forwarder.counters))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests;
