//! Many connections at once, each of which must echo its own words: against the `tcp` role's `echo`.
//!
//! All are open at the same time before the first one closes. Prints `{"opened", "right", "failures"}`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

/// Failures that are printed.
const SHOWN: usize = 5;

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// `host:port`.
    #[arg(long)]
    to: String,
    /// How many.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Longest that a step of one connection takes, in seconds.
    #[arg(long, default_value_t = 30)]
    limit: u64,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let open = Arc::new(Barrier::new(options.connections));
    let tasks: Vec<_> = (0..options.connections)
        .map(|i| {
            let (options, open) = (options.clone(), open.clone());
            tokio::spawn(async move {
                let limit = Duration::from_secs(options.limit);
                let opened = tokio::time::timeout(limit, TcpStream::connect(options.to.as_str())).await;
                // Everybody waits here, also who failed, or the others would wait for ever.
                let first = match opened {
                    Ok(Ok(mut stream)) => exchange(&mut stream, "echo\n", i, limit).await.map(|()| stream),
                    Ok(Err(e)) => Err(e).context("connecting"),
                    Err(_) => Err(anyhow::anyhow!("connecting: nothing within {} s", options.limit)),
                };
                open.wait().await;
                exchange(&mut first?, "", i + options.connections, limit).await
            })
        })
        .collect();
    let (mut right, mut failures) = (0, Vec::new());
    for task in tasks {
        match task.await? {
            Ok(()) => right += 1,
            Err(e) => failures.push(format!("{e:#}")),
        }
    }
    let count = failures.len();
    failures.truncate(SHOWN);
    println!("{}", json!({"right": right, "failed": count, "failures": failures}));
    if count > 0 {
        bail!("{count} of {} connections failed", options.connections);
    }
    Ok(())
}

async fn exchange(stream: &mut TcpStream, before: &str, number: usize, limit: Duration) -> anyhow::Result<()> {
    let words = format!("these are the words of connection {number:08}\n");
    let mut back = vec![0; words.len()];
    let both = async {
        stream.write_all(format!("{before}{words}").as_bytes()).await?;
        stream.read_exact(&mut back).await
    };
    tokio::time::timeout(limit, both).await.context("no echo in time")?.context("echo")?;
    if back != words.as_bytes() {
        bail!("sent `{}`, got `{}`", words.trim(), String::from_utf8_lossy(&back).trim());
    }
    Ok(())
}
