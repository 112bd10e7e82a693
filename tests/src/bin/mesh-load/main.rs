//! Load generator and echo server of the benchmarks.
//!
//! In: what to measure, for how long, how many connections. Out: one line of JSON on standard output.
//! Every run is bounded in time. Never a comparison: that is the bench's work.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, Subcommand};

mod drive;
mod hold;
mod http;
mod samples;
mod serve;

#[derive(Parser)]
#[command(about = "Drives and serves the traffic that `cargo xtask bench` measures")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args, Clone)]
struct Target {
    /// Address to connect to.
    #[arg(long)]
    connect: SocketAddr,
    /// How long to measure, in seconds; a tenth of it more is spent warming up.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Connections held, or opened, at the same time.
    #[arg(long, default_value_t = 1)]
    connections: usize,
}

impl Target {
    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.1, 600.0))
    }

    fn warm_up(&self) -> Duration {
        self.duration() / 10
    }
}

#[derive(Subcommand)]
enum Command {
    /// The servers at the far end, until killed.
    Serve {
        /// Address of the echo server.
        #[arg(long)]
        echo: SocketAddr,
        /// Address of the server that reads everything and answers the count of bytes at the end.
        #[arg(long)]
        sink: SocketAddr,
        /// Address of the server that echoes one byte and closes.
        #[arg(long)]
        once: SocketAddr,
        /// Address of the UDP server that gives back what it gets, as a DNS answer.
        #[arg(long)]
        dns: SocketAddr,
    },
    /// Sends a message, waits for its echo, again and again.
    RoundTrip {
        #[command(flatten)]
        target: Target,
        /// Bytes of a message.
        #[arg(long, default_value_t = 128)]
        size: usize,
    },
    /// Sends as much as the other side takes.
    Bulk {
        #[command(flatten)]
        target: Target,
        /// Bytes of a write.
        #[arg(long, default_value_t = 65536)]
        size: usize,
    },
    /// Connects, exchanges one byte, closes after the server, again and again.
    Connect {
        #[command(flatten)]
        target: Target,
    },
    /// Asks a DNS server, again and again.
    Questions {
        #[command(flatten)]
        target: Target,
    },
    /// Asks for the addresses of one connection and sets an option of it, again and again.
    Names {
        #[command(flatten)]
        target: Target,
    },
    /// Opens connections, says something on each, and holds them.
    Hold {
        #[command(flatten)]
        target: Target,
        /// What is said.
        #[arg(long, value_enum)]
        speech: hold::Speech,
    },
    /// HTTP/1.1 GET on connections that are kept.
    Http {
        #[command(flatten)]
        target: Target,
        /// Host header, by which a mesh routes; the address that is connected to unless said.
        #[arg(long)]
        host: Option<String>,
        /// Path.
        #[arg(long, default_value = "/")]
        path: String,
    },
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let line = runtime.block_on(async {
        match args.command {
            Command::Serve { echo, sink, once, dns } => serve::run(echo, sink, once, dns).await,
            Command::RoundTrip { target, size } => drive::round_trip(&target, size).await,
            Command::Bulk { target, size } => drive::bulk(&target, size).await,
            Command::Connect { target } => drive::connect(&target).await,
            Command::Questions { target } => drive::questions(&target).await,
            Command::Names { target } => drive::names(&target).await,
            Command::Hold { target, speech } => hold::run(&target, speech).await,
            Command::Http { target, host, path } => http::run(&target, host.as_deref(), &path).await,
        }
    })?;
    println!("{line}");
    Ok(())
}
