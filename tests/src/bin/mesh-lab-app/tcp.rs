//! Plain TCP: a server that obeys the first line it is sent, and a client to talk to it.
//!
//! Lines: `echo` (everything back until the end), `count` (at the end, how many bytes came and their FNV-1a hash),
//! `reset` (a reset at once), `whoami` (the two ends of the connection), `wait` (nothing, until the end). Each
//! connection is logged as `begin PEER`, and how it ended as `end PEER eof|reset|ERROR`.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::http::{listen, plain};

/// Longest first line.
const LINE_LIMIT: u64 = 256;

/// Serves until killed.
pub async fn serve(port: u16, greet: bool) -> anyhow::Result<()> {
    let listener = listen(port)?;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                println!("accept: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let peer = plain(peer);
        println!("begin {peer}");
        tokio::spawn(async move {
            let end = match obey(stream, peer, greet).await {
                Ok(()) => "eof".to_owned(),
                Err(e) if e.kind() == ErrorKind::ConnectionReset => "reset".to_owned(),
                Err(e) => e.to_string(),
            };
            println!("end {peer} {end}");
        });
    }
}

async fn obey(stream: TcpStream, peer: SocketAddr, greet: bool) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let ends = format!("peer {peer} local {}\n", plain(stream.local_addr()?));
    let mut stream = BufReader::new(stream);
    if greet {
        stream.write_all(ends.as_bytes()).await?;
    }
    let mut line = String::new();
    (&mut stream).take(LINE_LIMIT).read_line(&mut line).await?;
    let mut buffer = vec![0; 64 * 1024];
    match line.trim() {
        "echo" => loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                return stream.shutdown().await;
            }
            stream.write_all(&buffer[..n]).await?;
        },
        "count" => {
            let (mut total, mut hash) = (0usize, Fnv::default());
            loop {
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    break;
                }
                total += n;
                hash.add(&buffer[..n]);
            }
            stream.write_all(format!("{total} {:016x}\n", hash.0).as_bytes()).await?;
            stream.shutdown().await
        }
        "reset" => socket2::SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO)),
        "whoami" => {
            stream.write_all(ends.as_bytes()).await?;
            stream.shutdown().await
        }
        _ => {
            while stream.read(&mut buffer).await? > 0 {}
            Ok(())
        }
    }
}

/// FNV-1a, 64 bit: tells bytes lost, doubled or out of order.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct Talk {
    /// `host:port`.
    #[arg(long)]
    to: String,
    /// First line; nothing is sent without it.
    #[arg(long)]
    say: Option<String>,
    /// Bytes sent after the line.
    #[arg(long, default_value_t = 0)]
    bytes: usize,
    /// Close our sending half after that and read to the end.
    #[arg(long)]
    half_close: bool,
    /// Reset the connection once the first answer, if `--greeted`, or the line is through.
    #[arg(long)]
    reset: bool,
    /// Wait for a line from the server before saying anything.
    #[arg(long)]
    greeted: bool,
    /// Longest the whole takes, in seconds.
    #[arg(long, default_value_t = 10)]
    limit: u64,
}

/// Runs one conversation and prints it as JSON: the two ends, how long the greeting took in milliseconds, what came,
/// how many bytes and hash went, and the end: `eof`, `reset`, `silence` or `closed`.
pub async fn talk(options: Talk) -> anyhow::Result<()> {
    let stream = TcpStream::connect(&options.to).await.with_context(|| format!("connecting {}", options.to))?;
    let (local, remote) = (stream.local_addr()?, stream.peer_addr()?);
    let start = std::time::Instant::now();
    let mut stream = BufReader::new(stream);
    let mut received = String::new();
    if options.greeted {
        stream.read_line(&mut received).await?;
    }
    let greeted = start.elapsed().as_millis();
    let mut hash = Fnv::default();
    if let Some(say) = &options.say {
        stream.write_all(format!("{say}\n").as_bytes()).await?;
        let chunk: Vec<u8> = (0..options.bytes).map(|i| (i % 251) as u8).collect();
        hash.add(&chunk);
        stream.write_all(&chunk).await?;
    }
    let end = if options.reset {
        socket2::SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO))?;
        drop(stream);
        "closed"
    } else {
        if options.half_close {
            stream.shutdown().await?;
        }
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(options.limit), stream.read_to_end(&mut bytes)).await;
        received += &String::from_utf8_lossy(&bytes);
        match read {
            Err(_) => "silence",
            Ok(Ok(_)) => "eof",
            Ok(Err(e)) if e.kind() == ErrorKind::ConnectionReset => "reset",
            Ok(Err(e)) => return Err(e).context("reading"),
        }
    };
    println!(
        "{}",
        json!({
            "local": plain(local).to_string(), "remote": plain(remote).to_string(), "greeting_ms": greeted,
            "received": received, "sent": options.bytes, "hash": format!("{:016x}", hash.0), "end": end,
        })
    );
    Ok(())
}
