//! Bodies of any length over HTTP: a server that gives and takes them, and a client, both of which check every byte and keep none.
//!
//! In: lengths. Out: how many bytes came, and whether they were the right ones. `GET /bulk/N` gives N bytes, `PUT` takes what comes.

use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_LENGTH;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::http::listen;

/// The bytes repeat after so many: no power of two, so that pieces in the wrong place show.
const PERIOD: usize = 65_521;
/// Bytes of one piece.
const PIECE: usize = 64 << 10;
/// A transfer in which nothing moves for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Flow-control windows of a stream and a connection, in bytes: so much may be on its way.
const WINDOWS: [u32; 2] = [4 << 20, 16 << 20];
/// Largest frame of HTTP/2, in bytes.
const FRAME: u32 = 256 << 10;

/// Long enough for a piece from any place of a period.
static PATTERN: LazyLock<Bytes> = LazyLock::new(|| {
    let byte = |at: usize| ((at % PERIOD).wrapping_mul(2_654_435_761) >> 13) as u8;
    (0..PERIOD + PIECE).map(byte).collect::<Vec<u8>>().into()
});

/// So many bytes.
struct Pattern {
    at: u64,
    length: u64,
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = (self.length - self.at).min(PIECE as u64) as usize;
        if piece == 0 {
            return Poll::Ready(None);
        }
        let from = (self.at % PERIOD as u64) as usize;
        self.at += piece as u64;
        Poll::Ready(Some(Ok(Frame::data(PATTERN.slice(from..from + piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.length
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length - self.at)
    }
}

/// Reads up to `most` bytes; how many there were, and whether each was right.
async fn check(mut body: Incoming, most: u64) -> anyhow::Result<(u64, bool)> {
    let (mut at, mut right) = (0, true);
    while at < most {
        let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.context("nothing comes any more")? else {
            break;
        };
        let Ok(data) = frame?.into_data() else { continue };
        for piece in data.chunks(PIECE) {
            let from = (at % PERIOD as u64) as usize;
            right &= PATTERN[from..from + piece.len()] == *piece;
            at += piece.len() as u64;
        }
    }
    Ok((at, right))
}

#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Port for HTTP/1.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Port for HTTP/2.
    #[arg(long, default_value_t = 8081)]
    http2_port: u16,
}

/// Serves until killed.
pub async fn serve(options: Serve) -> anyhow::Result<()> {
    let (one, two) = (listen(options.port)?, listen(options.http2_port)?);
    loop {
        let (stream, http2) = tokio::select! {
            accepted = one.accept() => (accepted?.0, false),
            accepted = two.accept() => (accepted?.0, true),
        };
        tokio::spawn(async move {
            let (io, service) = (TokioIo::new(stream), service_fn(answer));
            // A client that breaks off is its own business.
            let _ = if http2 {
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.initial_stream_window_size(WINDOWS[0]).initial_connection_window_size(WINDOWS[1]);
                builder.max_frame_size(FRAME).serve_connection(io, service).await
            } else {
                hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
            };
        });
    }
}

async fn answer(request: Request<Incoming>) -> anyhow::Result<Response<Either<Pattern, Full<Bytes>>>> {
    if let Some(length) = request.uri().path().strip_prefix("/bulk/") {
        return Ok(Response::new(Either::Left(Pattern { at: 0, length: length.parse()? })));
    }
    let declared = declared(request.headers());
    let (bytes, right) = check(request.into_body(), u64::MAX).await?;
    let said = json!({ "bytes": bytes, "right": right, "declared": declared });
    Ok(Response::new(Either::Right(Full::new(said.to_string().into()))))
}

fn declared(headers: &hyper::HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[derive(Debug, Clone, Args)]
pub struct Transfer {
    /// `host:port` of the `bulk-serve` role.
    #[arg(long)]
    to: String,
    /// Speak HTTP/2.
    #[arg(long)]
    http2: bool,
    /// Bytes to send.
    #[arg(long, conflicts_with = "down")]
    up: Option<u64>,
    /// Bytes to ask for.
    #[arg(long)]
    down: Option<u64>,
    /// Leave after so many of those asked for.
    #[arg(long, default_value_t = u64::MAX)]
    leave_after: u64,
}

/// One transfer; prints `{"bytes", "right", "declared"}` of whoever has read it.
pub async fn transfer(options: Transfer) -> anyhow::Result<()> {
    let stream = TcpStream::connect(&options.to).await.with_context(|| format!("connecting {}", options.to))?;
    stream.set_nodelay(true)?;
    let io = TokioIo::new(stream);
    let (path, body) = match (options.up, options.down) {
        (Some(length), _) => ("/".to_owned(), Pattern { at: 0, length }),
        (None, Some(length)) => (format!("/bulk/{length}"), Pattern { at: 0, length: 0 }),
        (None, None) => bail!("say --up or --down"),
    };
    let authority = &options.to;
    let method = if options.up.is_some() { "PUT" } else { "GET" };
    let response = if options.http2 {
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOWS[0]).initial_connection_window_size(WINDOWS[1]);
        let (mut sender, connection) = builder.max_frame_size(FRAME).handshake(io).await.context("HTTP/2")?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(format!("http://{authority}{path}")).body(body)?;
        sender.send_request(request).await
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.context("HTTP/1")?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", authority).body(body)?;
        sender.send_request(request).await
    };
    let response = response.context("asking")?;
    if response.status() != 200 {
        bail!("{}", response.status());
    }
    let said: Value = if options.up.is_some() {
        serde_json::from_slice(&response.into_body().collect().await?.to_bytes()).context("the answer is not JSON")?
    } else {
        let declared = declared(response.headers());
        let (bytes, right) = check(response.into_body(), options.leave_after).await?;
        json!({ "bytes": bytes, "right": right, "declared": declared })
    };
    println!("{said}");
    Ok(())
}
