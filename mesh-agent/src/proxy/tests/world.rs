//! A pod on loopback, its clients and its servers.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use mesh_core::Snapshot;
use mesh_core::ambient::Ambient;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use crate::proxy::pod::Pod;
use crate::proxy::pod::tests::TestPod;
use crate::proxy::{inbound, outbound};
use crate::tls::Credential;

/// Two connected sockets.
pub(super) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Runs a test with local tasks; one that hangs fails.
pub(super) async fn run<F: Future>(test: F) -> F::Output {
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, run_paused(test)).await.expect("the test hangs")
}

/// Runs a test whose clock stands still while anything can be done.
pub(super) async fn run_paused<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

pub(super) struct World {
    pub(super) test: TestPod,
    /// The pod of this node where the servers are.
    far: Option<Box<World>>,
}

impl World {
    /// Nothing is configured, and everything goes to 10.0.0.1:80.
    pub(super) fn new() -> Self {
        Self::to("10.0.0.1:80")
    }

    pub(super) fn of(test: TestPod) -> Self {
        Self { test, far: None }
    }

    /// The servers are in another pod of this node.
    pub(super) fn beside(self, far: Self) -> Self {
        *self.test.neighbour.borrow_mut() = Some(far.pod());
        Self { far: Some(Box::new(far)), ..self }
    }

    /// The pod of the servers.
    pub(super) fn far(&self) -> &Self {
        self.far.as_ref().expect("a pod beside it")
    }

    /// Every outbound connection wanted to go to `original`.
    pub(super) fn to(original: &str) -> Self {
        Self::of(TestPod::new(Some(original.parse().unwrap()), None))
    }

    /// A pod with a certificate, for what comes to it.
    pub(super) fn with_credential(credential: Arc<Credential>) -> Self {
        Self::of(TestPod::new(None, Some(credential)))
    }

    /// As [`World::with_credential`], and files of TLS settings are looked for there.
    pub(super) fn with_files(credential: Arc<Credential>, dir: &Path) -> Self {
        Self::of(TestPod::with_files(credential, dir))
    }

    /// A pod with a certificate, for what it wants of [`super::config::SERVICE`].
    pub(super) fn client_with(credential: Arc<Credential>, original: &str) -> Self {
        Self::of(TestPod::new(Some(original.parse().unwrap()), Some(credential)))
    }

    /// A pod whose policies are enforced.
    pub(super) fn judged(credential: Option<Arc<Credential>>) -> Self {
        Self::of(TestPod::judged(credential))
    }

    /// Tells of the mesh, as a worker does.
    pub(super) fn tell_mesh(&self, ambient: Arc<Ambient>) {
        self.test.live.publish_ambient(ambient);
        let _ = self.pod().door.look(&self.test.live);
    }

    pub(super) fn configured(snapshot: Arc<Snapshot>) -> Self {
        let world = Self::new();
        world.configure(snapshot);
        world
    }

    pub(super) fn configure(&self, snapshot: Arc<Snapshot>) {
        self.test.live.publish(1, snapshot);
    }

    /// As [`World::configure`], and open plaintext connections are told, as a worker does.
    pub(super) fn reconfigure(&self, snapshot: Arc<Snapshot>) {
        self.configure(snapshot);
        self.pod().inbound_changes.look(self.test.live.workload(1).as_deref());
    }

    pub(super) fn pod(&self) -> Rc<Pod> {
        self.test.pod.clone()
    }

    /// A server that the pod reaches under `address`.
    pub(super) async fn server(&self, address: &str) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.route(address.parse().unwrap(), listener.local_addr().unwrap());
        listener
    }

    pub(super) fn route(&self, address: SocketAddr, real: SocketAddr) {
        self.test.routes.borrow_mut().insert(address, real);
        if let Some(far) = &self.far {
            far.route(address, real);
        }
    }

    /// A client caught on its way out.
    pub(super) async fn client(&self) -> TcpStream {
        let (client, accepted) = pair().await;
        tokio::task::spawn_local(outbound::serve(self.pod(), accepted));
        client
    }

    /// A client from the wire, on its way to an application that listens there; without one it is refused.
    pub(super) async fn inbound_client(&self, app: Option<&TcpListener>) -> TcpStream {
        let (client, accepted) = pair().await;
        if let Some(app) = app {
            self.route(accepted.local_addr().unwrap(), app.local_addr().unwrap());
        }
        tokio::task::spawn_local(inbound::serve(self.pod(), accepted));
        client
    }

    pub(super) fn dials(&self) -> usize {
        self.test.dials.get()
    }

    /// The metrics page's lines of one metric.
    pub(super) fn metric(&self, name: &str) -> Vec<String> {
        let page = self.test.metrics.render(std::time::Instant::now());
        page.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    /// Waits until some line of the metric has all these parts.
    pub(super) async fn reported(&self, name: &str, parts: &[&str]) {
        for _ in 0..10_000 {
            if self.metric(name).iter().any(|line| parts.iter().all(|part| line.contains(part))) {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{name} with {parts:?} is not in {:#?}", self.metric(name));
    }
}

/// Reads up to and with the end of a head.
pub(super) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&head)),
        }
    }
    String::from_utf8(head).unwrap()
}

/// Reads exactly so many bytes as text.
pub(super) async fn read_text(stream: &mut TcpStream, length: usize) -> String {
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    String::from_utf8(body).unwrap()
}

/// Sends a request and reads a response with a body of known length: status and head in lower case, and the body.
pub(super) async fn exchange(stream: &mut TcpStream, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(stream).await.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let body = read_text(stream, length).await;
    (head, body)
}

/// Whether the other end resets it.
pub(super) async fn is_reset(stream: &mut TcpStream) -> bool {
    stream.read(&mut [0]).await.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// Whether the other end closes it, in whichever way.
pub(super) async fn is_over(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    matches!(stream.read(&mut [0]).await, Ok(0) | Err(_))
}

/// A client that waited for what decides on it is served, or reset.
pub(super) async fn is_decided(mut client: TcpStream, app: &TcpListener, served: bool) {
    if served {
        let (mut upstream, _) = app.accept().await.unwrap();
        upstream.write_all(b"late").await.unwrap();
        assert_eq!(read_text(&mut client, 4).await, "late");
    } else {
        assert!(is_reset(&mut client).await);
    }
}

/// Accepts one connection, reads a head and answers 200 with a short body.
pub(super) async fn answer_once(server: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = server.accept().await.unwrap();
    let head = answer_on(&mut stream).await;
    (stream, head)
}

pub(super) async fn answer_on(stream: &mut TcpStream) -> String {
    let head = read_head(stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nServer: tested\r\nContent-Length: 5\r\n\r\nhello").await.unwrap();
    head
}
