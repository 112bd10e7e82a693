//! The little HTTP that the programs need: a server of HTTP/1.1 and of HTTP/2 without TLS, a client call, an echo.
//!
//! In: handlers, addresses. Out: JSON bodies. One new connection per call.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

/// Longest that a call takes.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A connection's two ends.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// What `accept()` said.
    pub peer: SocketAddr,
    /// What `getsockname()` says.
    pub local: SocketAddr,
}

/// Listens on a port of both families, with a queue long enough for bursts.
pub fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into()).with_context(|| format!("listening on port {port}"))
}

/// An address as people write it: `::ffff:1.2.3.4` is 1.2.3.4.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Serves JSON from `handler` until killed.
pub async fn serve<F, Fut>(port: u16, handler: F) -> anyhow::Result<()>
where
    F: Fn(Request<Incoming>, Ends) -> Fut + Clone + 'static,
    Fut: Future<Output = (StatusCode, Value)> + 'static,
{
    let listener = listen(port)?;
    let local = tokio::task::LocalSet::new();
    let accept = async move {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    println!("accept: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(local) = stream.local_addr() else { continue };
            let ends = Ends { peer: plain(peer), local: plain(local) };
            let handler = handler.clone();
            tokio::task::spawn_local(async move {
                let service = service_fn(move |request| {
                    let bodiless = request.method() == Method::HEAD;
                    let answer = handler(request, ends);
                    async move { respond(answer.await, bodiless) }
                });
                // A client of HTTP/2 says so at once. One that breaks off is its own business.
                let mut first = [0; 3];
                if matches!(stream.peek(&mut first).await, Ok(3) if first == *b"PRI") {
                    let http2 = hyper::server::conn::http2::Builder::new(Local);
                    let _ = http2.serve_connection(TokioIo::new(stream), service).await;
                } else {
                    let http1 = hyper::server::conn::http1::Builder::new();
                    let _ = http1.serve_connection(TokioIo::new(stream), service).await;
                }
            });
        }
    };
    local.run_until(accept).await
}

/// Runs the streams of HTTP/2 on the thread that they came to.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, stream: F) {
        tokio::task::spawn_local(async move { drop(stream.await) });
    }
}

fn respond((status, body): (StatusCode, Value), bodiless: bool) -> Result<Response<Full<Bytes>>, http::Error> {
    let body = if bodiless { Bytes::new() } else { Bytes::from(format!("{body}\n")) };
    let body = Full::new(body);
    Response::builder().status(status).header(CONTENT_TYPE, "application/json").body(body)
}

/// What a request looked like from here.
pub async fn echo(request: Request<Incoming>, ends: Ends) -> (StatusCode, Value) {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map(|b| b.to_bytes().len()).unwrap_or_default();
    let mut headers = serde_json::Map::new();
    for name in parts.headers.keys() {
        // Lines of one name are one value: cookies by their own rule (RFC 9113, 8.2.3), others as a list.
        let values: Vec<_> =
            parts.headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        let value = values.join(if name == hyper::header::COOKIE { "; " } else { ", " });
        headers.insert(name.to_string(), value.into());
    }
    let answer = json!({
        "pod": std::env::var("POD_NAME").unwrap_or_default(),
        "peer": ends.peer.to_string(),
        "local": ends.local.to_string(),
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map_or("", |path| path.as_str()),
        "headers": headers,
        "bytes": bytes,
    });
    (StatusCode::OK, answer)
}

/// GETs `http://authority/path` and parses the JSON that comes back; any status but 200 is an error.
pub async fn get(authority: &str, path: &str, headers: &HeaderMap) -> anyhow::Result<Value> {
    tokio::time::timeout(CALL_LIMIT, get_unbounded(authority, path, headers))
        .await
        .with_context(|| format!("http://{authority}{path}: no answer within {} s", CALL_LIMIT.as_secs()))?
        .with_context(|| format!("http://{authority}{path}"))
}

async fn get_unbounded(authority: &str, path: &str, headers: &HeaderMap) -> anyhow::Result<Value> {
    let stream = TcpStream::connect(authority).await.context("connecting")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::get(path).header("host", authority).body(Empty::<Bytes>::new())?;
    request.headers_mut().extend(headers.clone());
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    if status != StatusCode::OK {
        bail!("{status}: {}", String::from_utf8_lossy(&body).trim());
    }
    serde_json::from_slice(&body).context("the answer is not JSON")
}
