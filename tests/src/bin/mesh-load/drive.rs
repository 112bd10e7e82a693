//! The L4 measurements: round trips, bulk, new connections, questions, asking for addresses.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::Target;
use crate::samples::Samples;

/// An operation that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `one` on every connection until its time is over; only what starts after the warm-up counts.
pub async fn each<F, Fut>(target: &Target, one: F) -> anyhow::Result<serde_json::Value>
where
    F: Fn(Target, Instant, Instant) -> Fut,
    Fut: Future<Output = anyhow::Result<Samples>> + Send + 'static,
{
    let from = Instant::now() + target.warm_up();
    let until = from + target.duration();
    let tasks: Vec<_> =
        (0..target.connections.max(1)).map(|_| tokio::spawn(one(target.clone(), from, until))).collect();
    let mut all = Samples::default();
    for task in tasks {
        all.merge(task.await??);
    }
    Ok(all.report(target.duration()))
}

/// Message and echo, one after the other.
pub async fn round_trip(target: &Target, size: usize) -> anyhow::Result<serde_json::Value> {
    each(target, |target, from, until| async move {
        let mut stream = dial(&target).await?;
        let message = vec![0x5a; size];
        let mut reply = vec![0; size];
        let mut samples = Samples::default();
        loop {
            let start = Instant::now();
            if start >= until {
                return Ok(samples);
            }
            stream.write_all(&message).await?;
            stream.read_exact(&mut reply).await?;
            samples.take(start, from);
        }
    })
    .await
}

/// Questions to a DNS server, one after the other: half from a socket that names the server with each, half from one
/// that is connected to it.
pub async fn questions(target: &Target) -> anyhow::Result<serde_json::Value> {
    each(target, |target, from, until| async move {
        let any: std::net::SocketAddr =
            if target.connect.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        // An id of 0, recursion desired, one question: `a.` A IN (RFC 1035, 4.1).
        let mut message = *b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
        let mut reply = [0; 512];
        let mut samples = Samples::default();
        loop {
            for connected in [false, true] {
                let start = Instant::now();
                if start >= until {
                    return Ok(samples);
                }
                let socket = UdpSocket::bind(any).await?;
                if connected {
                    socket.connect(target.connect).await?;
                    socket.send(&message).await?;
                } else {
                    socket.send_to(&message, target.connect).await?;
                }
                let (length, server) =
                    tokio::time::timeout(PATIENCE, socket.recv_from(&mut reply)).await.context("no answer")??;
                if server != target.connect || length != message.len() || reply[..2] != message[..2] {
                    samples.fail();
                }
                samples.take(start, from);
                message[1] = message[1].wrapping_add(1);
            }
        }
    })
    .await
}

/// Asks again and again for the addresses of a connection and sets an option of it.
pub async fn names(target: &Target) -> anyhow::Result<serde_json::Value> {
    each(target, |target, from, until| async move {
        let stream = dial(&target).await?;
        let mut samples = Samples::default();
        loop {
            let start = Instant::now();
            if start >= until {
                return Ok(samples);
            }
            if stream.peer_addr()? != target.connect {
                samples.fail();
            }
            stream.local_addr()?;
            stream.set_nodelay(true)?;
            samples.take(start, from);
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// One connection's throughput, counted by the receiver.
pub async fn bulk(target: &Target, size: usize) -> anyhow::Result<serde_json::Value> {
    let mut stream = dial(target).await?;
    let chunk = vec![0x5a; size];
    let start = Instant::now();
    let mut sent = 0u64;
    while start.elapsed() < target.duration() {
        stream.write_all(&chunk).await?;
        sent += size as u64;
    }
    stream.shutdown().await?;
    let mut count = [0; 8];
    stream.read_exact(&mut count).await.context("the sink did not answer its count")?;
    let took = start.elapsed();
    let received = u64::from_be_bytes(count);
    if received != sent {
        bail!("sent {sent} bytes, the sink received {received}");
    }
    Ok(serde_json::json!({
        "bytes": received,
        "gbit_per_second": received as f64 * 8.0 / took.as_secs_f64() / 1e9,
    }))
}

/// A new connection for every byte exchanged; the server closes first.
pub async fn connect(target: &Target) -> anyhow::Result<serde_json::Value> {
    each(target, |target, from, until| async move {
        let mut samples = Samples::default();
        loop {
            let start = Instant::now();
            if start >= until {
                return Ok(samples);
            }
            let outcome = tokio::time::timeout(PATIENCE, exchange(&target)).await;
            match outcome {
                Ok(Ok(())) => samples.take(start, from),
                _ if start < from => samples.warm_up(),
                Ok(Err(_)) | Err(_) => samples.fail(),
            }
        }
    })
    .await
}

async fn exchange(target: &Target) -> anyhow::Result<()> {
    let mut stream = dial(target).await?;
    stream.write_all(b"x").await?;
    let mut reply = Vec::with_capacity(2);
    stream.read_to_end(&mut reply).await?;
    if reply != b"x" {
        bail!("expected one byte back, got {}", reply.len());
    }
    Ok(())
}

/// Connects without Nagle's delay.
pub async fn dial(target: &Target) -> anyhow::Result<TcpStream> {
    let stream =
        TcpStream::connect(target.connect).await.with_context(|| format!("cannot connect to {}", target.connect))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
