//! HTTP/1.1 GET on kept connections, as fast as answers come.

use std::time::Instant;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Target;
use crate::drive::{dial, each};
use crate::samples::Samples;

/// The longest head that is read.
const MOST_HEAD: usize = 16 * 1024;

/// Runs the measurement and reports it.
pub async fn run(target: &Target, host: Option<&str>, path: &str) -> anyhow::Result<serde_json::Value> {
    let host = host.map_or_else(|| target.connect.to_string(), str::to_owned);
    let request = request(&host, path);
    each(target, |target, from, until| {
        let request = request.clone();
        async move {
            let mut stream = dial(&target).await?;
            let mut buffer = Vec::with_capacity(MOST_HEAD);
            let mut samples = Samples::default();
            loop {
                let start = Instant::now();
                if start >= until {
                    return Ok(samples);
                }
                stream.write_all(request.as_bytes()).await?;
                let status = read_response(&mut stream, &mut buffer).await?;
                match (start >= from, status) {
                    (_, 200) => samples.take(start, from),
                    (false, _) => samples.warm_up(),
                    (true, _) => samples.fail(),
                }
            }
        }
    })
    .await
}

/// Makes one request and returns the response's status.
pub async fn once(stream: &mut TcpStream, host: &str) -> anyhow::Result<u16> {
    stream.write_all(request(host, "/").as_bytes()).await?;
    read_response(stream, &mut Vec::with_capacity(MOST_HEAD)).await
}

fn request(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: mesh-load\r\nAccept: */*\r\n\r\n")
}

/// Reads one response with a Content-Length and returns its status.
async fn read_response(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<u16> {
    buffer.clear();
    let head = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if buffer.len() > MOST_HEAD {
            bail!("a response head of more than {MOST_HEAD} bytes");
        }
        read_more(stream, buffer).await?;
    };
    let text = std::str::from_utf8(&buffer[..head]).context("a response head that is not text")?;
    let status = text.get(9..12).and_then(|code| code.parse().ok()).context("a response without a status")?;
    let length: usize = text
        .lines()
        .find_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")))
        .and_then(|(_, value)| value.trim().parse().ok())
        .context("a response without a Content-Length")?;
    while buffer.len() < head + length {
        read_more(stream, buffer).await?;
    }
    Ok(status)
}

async fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<()> {
    if stream.read_buf(buffer).await? == 0 {
        bail!("the server closed the connection in the middle of a response");
    }
    Ok(())
}
