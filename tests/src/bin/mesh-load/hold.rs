//! Connections that are open and idle, each after one exchange.
//!
//! In: how many, and for how long. Out: a line once all are open; then nothing more happens, and everything is closed.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Target;
use crate::drive::dial;
use crate::http;

/// Connections that are being opened at the same time.
const AT_ONCE: usize = 64;
/// An exchange that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is said on a connection before it is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Speech {
    /// A request, and its response.
    Http,
    /// A byte, and its echo.
    Echo,
}

/// Opens them, says so, and holds them.
pub async fn run(target: &Target, speech: Speech) -> anyhow::Result<serde_json::Value> {
    let mut opening = JoinSet::new();
    let mut held = Vec::with_capacity(target.connections);
    for _ in 0..target.connections {
        if opening.len() >= AT_ONCE {
            held.push(opened(opening.join_next().await)?);
        }
        let target = target.clone();
        opening.spawn(async move { timeout(PATIENCE, open(&target, speech)).await.context("too slow")? });
    }
    while let Some(one) = opening.join_next().await {
        held.push(opened(Some(one))?);
    }
    println!("holding {}", held.len());
    sleep(target.duration()).await;
    Ok(serde_json::json!({ "held": held.len() }))
}

type Opened = Result<anyhow::Result<TcpStream>, tokio::task::JoinError>;

fn opened(one: Option<Opened>) -> anyhow::Result<TcpStream> {
    one.context("nothing is being opened")??
}

async fn open(target: &Target, speech: Speech) -> anyhow::Result<TcpStream> {
    let mut stream = dial(target).await?;
    match speech {
        Speech::Http => {
            let status = http::once(&mut stream, &target.connect.to_string()).await?;
            if status != 200 {
                bail!("status {status}");
            }
        }
        Speech::Echo => {
            stream.write_all(b"x").await?;
            stream.read_u8().await?;
        }
    }
    Ok(stream)
}
