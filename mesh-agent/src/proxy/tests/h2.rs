//! Clients and servers of HTTP/2 for tests: whole ones by `h2`, and frames written by hand.

use ::h2::RecvStream;
use ::h2::client::SendRequest;
use ::h2::server::SendResponse;
use ::http::{Request, Response};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A request as a server gets it, and where its answer goes.
pub(super) type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// A client on this connection.
pub(super) async fn client(stream: TcpStream) -> SendRequest<Bytes> {
    let (send, connection) = ::h2::client::handshake(stream).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    send
}

/// A server for all that connect here; its requests come one by one.
pub(super) fn server(listener: TcpListener) -> mpsc::UnboundedReceiver<Asked> {
    let (requests, receiver) = mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let requests = requests.clone();
            tokio::task::spawn_local(async move {
                let mut connection = ::h2::server::handshake(stream).await.unwrap();
                while let Some(Ok(request)) = connection.accept().await {
                    let _ = requests.send(request);
                }
            });
        }
    });
    receiver
}

/// A request without a body.
pub(super) fn get(path: &str) -> Request<()> {
    Request::get(format!("http://web{path}")).body(()).unwrap()
}

/// A request whose cluster's word is not asked: gRPC is HTTP/2 everywhere.
pub(super) fn grpc(path: &str) -> Request<()> {
    Request::post(format!("http://web{path}")).header("content-type", "application/grpc").body(()).unwrap()
}

/// An empty answer.
pub(super) fn ok() -> Response<()> {
    Response::new(())
}

/// All of a body, released as it is read.
pub(super) async fn read(body: &mut RecvStream) -> Result<Vec<u8>, ::h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    Ok(all)
}

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// One frame (RFC 9113, 4.1).
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// A frame as it is written.
pub(super) fn written(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A client that says whatever it is told.
pub(super) struct Raw(pub(super) TcpStream);

impl Raw {
    pub(super) async fn new(stream: TcpStream) -> Self {
        let mut raw = Self(stream);
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        raw.send(SETTINGS, 0, 0, b"").await;
        raw
    }

    pub(super) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.put(&written(kind, flags, stream, payload)).await;
    }

    /// Frames in one piece, so that they are read together.
    pub(super) async fn put(&mut self, frames: &[u8]) {
        // The other end may have had enough.
        let _ = self.0.write_all(frames).await;
    }

    /// A head and nothing more.
    pub(super) async fn ask(&mut self, stream: u32, lines: &[(&str, &str)]) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(lines)).await;
    }

    /// The next frame; `None` at the end of the connection.
    pub(super) async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, _, rest @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind, stream: u32::from_be_bytes(rest), payload })
    }

    /// The next frame of this kind; others go.
    pub(super) async fn next(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }
}

/// Lines as HPACK writes them, none indexed (RFC 7541, 6.2.2).
pub(super) fn block(lines: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in lines {
        out.push(0);
        for text in [name, value] {
            out.push(u8::try_from(text.len()).unwrap());
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

/// The pseudo headers of a good request.
pub(super) const GOOD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/")];
