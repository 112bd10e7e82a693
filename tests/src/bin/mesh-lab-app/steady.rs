//! Steady traffic under which other things happen: HTTP requests, each on a new connection, and one TCP connection that
//! is held and must go on echoing.
//!
//! Runs until SIGTERM, then prints `{"requests", "failed_requests", "echoes", "failed_echoes", "errors"}`. A line
//! `started` tells that the first of each was right, `broken` that the held connection is no more.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use hyper::header::HeaderMap;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::http;

/// Longest that an echo takes.
const ECHO_LIMIT: Duration = Duration::from_secs(5);
/// Errors that are kept.
const SHOWN: usize = 5;

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// `host:port` that answers HTTP with JSON.
    #[arg(long)]
    http: Option<String>,
    /// `host:port` of the `tcp` role.
    #[arg(long)]
    tcp: Option<String>,
    /// Pause between requests and between echoes, in milliseconds.
    #[arg(long, default_value_t = 5)]
    pause: u64,
}

#[derive(Default)]
struct Count {
    right: usize,
    failed: usize,
    errors: Vec<String>,
}

impl Count {
    fn add(&mut self, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.right += 1,
            Err(e) => {
                self.failed += 1;
                if self.errors.len() < SHOWN {
                    self.errors.push(format!("{e:#}"));
                }
            }
        }
    }
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let mut held = match &options.tcp {
        Some(tcp) => {
            let mut stream = TcpStream::connect(tcp.as_str()).await.with_context(|| format!("connecting {tcp}"))?;
            stream.set_nodelay(true)?;
            stream.write_all(b"echo\n").await?;
            Some(stream)
        }
        None => None,
    };
    let (mut requests, mut echoes, mut number) = (Count::default(), Count::default(), 0u64);
    let pause = Duration::from_millis(options.pause);
    loop {
        number += 1;
        if let Some(http) = &options.http {
            requests.add(http::get(http, "/steady", &HeaderMap::new()).await.map(drop));
        }
        if let Some(stream) = &mut held {
            let result = echo(stream, number).await;
            let broken = result.is_err();
            echoes.add(result);
            if broken {
                println!("broken");
                held = None;
            }
        }
        if number == 1 {
            if requests.failed + echoes.failed > 0 {
                bail!("the first did not work: {:?} {:?}", requests.errors, echoes.errors);
            }
            println!("started");
        }
        if timeout(pause, stop.recv()).await.is_ok() {
            break;
        }
    }
    let errors: Vec<_> = requests.errors.into_iter().chain(echoes.errors).collect();
    println!(
        "{}",
        json!({
            "requests": requests.right, "failed_requests": requests.failed,
            "echoes": echoes.right, "failed_echoes": echoes.failed, "errors": errors,
        })
    );
    Ok(())
}

async fn echo(stream: &mut TcpStream, number: u64) -> anyhow::Result<()> {
    let mut back = [0; 8];
    let both = async {
        stream.write_all(&number.to_be_bytes()).await?;
        stream.read_exact(&mut back).await
    };
    timeout(ECHO_LIMIT, both).await.context("no echo in time")?.context("echo on the held connection")?;
    if back != number.to_be_bytes() {
        bail!("the held connection echoed something else");
    }
    Ok(())
}
