//! The part "callgrind": instructions for a request by the simulator's count, which is the same on every machine.
//!
//! In: the program of the agent's unit tests, whose `many_requests_on_one_connection` leads requests through one inbound connection
//! with a route, a policy and metrics. Out: a table, JSON, with nginx and HAProxy forwarding the same answers. Each makes so many
//! requests and three times as many; the difference is free of what a start takes. The agent's own program cannot run in the
//! simulator, which does not know the system call for kernel programs; so the kernel's part is in none of the figures, nor is what
//! finds a connection's original address. Fails for no figure.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::peers;

/// Requests of the short run.
const REQUESTS: u64 = 500;
/// The unit test, and something that only its own thread executes.
const TEST: &str = "proxy::tests::cost::many_requests_on_one_connection";
const ENGINE: &str = "mesh_agent::proxy::http::http1";
const BODY: usize = 1024;
/// For a program to start in the simulator.
const START: Duration = Duration::from_secs(60);

/// Counts them all.
pub fn measure(engine: &Path) -> Result<Value> {
    let dir = tempfile::tempdir()?;
    println!(
        "\nInstructions for a request of HTTP/1.1 with 1 KiB replies, one connection, outside the kernel (callgrind)"
    );
    let (mut report, mut first) = (serde_json::Map::new(), None);
    let mut tell = |name: &str, count: &dyn Fn(u64) -> Result<u64>| -> Result<()> {
        let (once, thrice) = (count(REQUESTS)?, count(3 * REQUESTS)?);
        let each = thrice.saturating_sub(once) / (2 * REQUESTS);
        let ratio = each as f64 / *first.get_or_insert(each as f64);
        println!("  {name:<28} {each:>10} ({ratio:.2}×)");
        report.insert(name.to_owned(), json!(each));
        Ok(())
    };
    tell("mesh, engine", &|requests| engine_of(engine, dir.path(), requests))?;
    tell("nginx", &|requests| {
        peer(dir.path(), peers::NGINX_HTTP, requests, |dir, origin| {
            let file = dir.join("nginx.conf");
            std::fs::write(&file, peers::nginx(dir, origin))?;
            Ok(vec!["nginx".into(), "-g".into(), "master_process off;".into(), "-c".into(), file])
        })
    })?;
    tell("HAProxy", &|requests| {
        peer(dir.path(), peers::HAPROXY_HTTP, requests, |dir, origin| {
            let file = dir.join("haproxy.cfg");
            std::fs::write(&file, peers::haproxy(origin, origin, origin, origin))?;
            Ok(vec!["haproxy".into(), "-db".into(), "-f".into(), file])
        })
    })?;
    Ok(Value::Object(report))
}

fn valgrind(out: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--separate-threads=yes", "-q"]);
    command.arg(format!("--callgrind-out-file={}", out.display())).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// What the thread of the engine executes in that test, with so many requests.
fn engine_of(program: &Path, dir: &Path, requests: u64) -> Result<u64> {
    let out = dir.join(format!("engine.{requests}"));
    let mut command = valgrind(&out);
    command.arg(program).args(["--exact", TEST, "--test-threads=1"]).env("MESH_REQUESTS", requests.to_string());
    let status = command.status().context("starting valgrind")?;
    ensure!(status.success(), "{TEST} in valgrind: {status}");
    let threads = counts(&out)?;
    let most = threads.iter().filter(|(_, text)| text.contains(ENGINE)).map(|(count, _)| *count).max();
    most.with_context(|| format!("no thread of {} calls {ENGINE}", program.display()))
}

/// What a proxy executes for so many requests: its argument list comes from its directory and its origin.
fn peer(
    dir: &Path,
    port: u16,
    requests: u64,
    arguments: impl Fn(&Path, SocketAddr) -> Result<Vec<PathBuf>>,
) -> Result<u64> {
    let origin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (out, argv) = (dir.join(format!("peer.{port}.{requests}")), arguments(dir, origin.local_addr()?)?);
    // Ends with this program. What was answered is seen by the client.
    std::thread::spawn(move || while origin.accept().is_ok_and(|(stream, _)| answer(stream).is_ok()) {});
    let mut proxy = Running(valgrind(&out).args(argv).spawn().context("starting valgrind")?);
    ask(port, requests)?;
    kill(Pid::from_raw(proxy.0.id().cast_signed()), Signal::SIGTERM)?;
    proxy.0.wait()?;
    Ok(counts(&out)?.iter().map(|(count, _)| count).sum())
}

/// Ended at the latest when nobody needs it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers every request of a connection.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    while !read_to(&mut stream, b"\r\n\r\n")?.is_empty() {
        stream.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Makes the requests, one after the other, on one connection.
fn ask(port: u16, requests: u64) -> Result<()> {
    let since = Instant::now();
    let mut stream = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => break stream,
            Err(_) if since.elapsed() < START => std::thread::sleep(Duration::from_millis(100)),
            Err(error) => return Err(error).with_context(|| format!("nobody listens at port {port}")),
        }
    };
    stream.set_nodelay(true)?;
    let end = "x".repeat(BODY);
    for _ in 0..requests {
        stream.write_all(b"GET /x HTTP/1.1\r\nHost: client\r\nUser-Agent: tested\r\nAccept: */*\r\n\r\n")?;
        let got = read_to(&mut stream, end.as_bytes())?;
        if !got.starts_with(b"HTTP/1.1 200 ") {
            bail!("port {port} answers {:?}", String::from_utf8_lossy(&got));
        }
    }
    Ok(())
}

/// Reads up to and with these bytes, or to the end.
fn read_to(stream: &mut TcpStream, end: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while !all.ends_with(end) {
        match stream.read(&mut piece)? {
            0 => break,
            n => all.extend_from_slice(&piece[..n]),
        }
    }
    Ok(all)
}

/// Instructions of each thread, and what callgrind wrote of it.
fn counts(out: &Path) -> Result<Vec<(u64, String)>> {
    let (dir, name) = (out.parent().context("no directory")?, out.file_name().context("no name")?);
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let of = path.file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        if of.strip_prefix(&*name.to_string_lossy()).is_none_or(|rest| !rest.is_empty() && !rest.starts_with('-')) {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let count = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        threads.extend(count.map(|count| (count, text)));
    }
    ensure!(!threads.is_empty(), "callgrind has written nothing for {}", out.display());
    Ok(threads)
}
