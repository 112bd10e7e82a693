//! Many short connections, each closed by us first, so that every one leaves a TIME_WAIT on our side: against the `tcp`
//! role's `echo`.
//!
//! Prints `{"right", "failed", "failures", "seconds"}`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Failures that are printed.
const SHOWN: usize = 5;
/// Longest that one connection takes.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// `host:port`.
    #[arg(long)]
    to: String,
    /// How many.
    #[arg(long, default_value_t = 100_000)]
    connections: usize,
    /// How many at the same time.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
    /// How many begin each second; 0 = as many as can.
    #[arg(long, default_value_t = 0)]
    per_second: u32,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    // Once: a lookup for each connection would measure the hosts file.
    let address = tokio::net::lookup_host(options.to.as_str()).await?.next();
    let address = address.with_context(|| format!("{} has no address", options.to))?;
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let tasks: Vec<_> = (0..options.at_once)
        .map(|_| {
            let (next, total) = (next.clone(), options.connections);
            let pause = 1.0 / f64::from(options.per_second.max(1));
            let paced = options.per_second > 0;
            tokio::spawn(async move {
                let (mut right, mut failures) = (0, Vec::new());
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        return (right, failures);
                    }
                    if paced {
                        tokio::time::sleep_until((start + Duration::from_secs_f64(pause * number as f64)).into()).await;
                    }
                    match tokio::time::timeout(LIMIT, one(address, number)).await {
                        Ok(Ok(())) => right += 1,
                        Ok(Err(e)) => failures.push(format!("{number}: {e:#}")),
                        Err(_) => failures.push(format!("{number}: nothing within {} s", LIMIT.as_secs())),
                    }
                }
            })
        })
        .collect();
    let (mut right, mut failures) = (0, Vec::new());
    for task in tasks {
        let (count, more): (usize, Vec<String>) = task.await?;
        right += count;
        failures.extend(more);
    }
    let count = failures.len();
    failures.truncate(SHOWN);
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", json!({"right": right, "failed": count, "failures": failures, "seconds": seconds}));
    if count > 0 {
        bail!("{count} of {} connections failed", options.connections);
    }
    Ok(())
}

async fn one(address: std::net::SocketAddr, number: usize) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let words = format!("{number:08}\n");
    stream.write_all(format!("echo\n{words}").as_bytes()).await?;
    let mut back = vec![0; words.len()];
    stream.read_exact(&mut back).await.context("echo")?;
    if back != words.as_bytes() {
        bail!("sent `{}`, got `{}`", words.trim(), String::from_utf8_lossy(&back).trim());
    }
    Ok(())
}
