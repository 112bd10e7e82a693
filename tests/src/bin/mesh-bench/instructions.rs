//! The part "instructions": what the proxies of a way execute for a request, outside the kernel and in it.
//!
//! In: the ways of HTTP. Out: a table, JSON. Each way carries requests for one time and for three; the difference of the counts,
//! by the difference of the requests, is free of what a start and an end take. Counted by the processor, through `perf`; other
//! than times, the figures hardly depend on what else the machine does. Fails for no figure.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::Lab;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::measure::{Round, median};
use crate::ways::{HTTP, Way};

/// The load: as in the table of the ways, with fewer connections than would make a machine of two cores wait.
const LOAD: [&str; 3] = ["http", "--connections", "32"];
/// Outside the kernel, and in it.
const EVENTS: [&str; 2] = ["instructions:u", "instructions:k"];
/// How long `perf` gets to begin counting.
const START: Duration = Duration::from_millis(300);

/// Measures every way that has proxies.
pub fn measure(lab: &Lab, ways: &[Way], load: &str, rounds: usize, seconds: f64) -> Result<Value> {
    let counted = |way: &&Way| way.table.is_some() && way.to.contains_key(&HTTP) && !way.proxies.is_empty();
    let ways: Vec<&Way> = ways.iter().filter(counted).collect();
    let dir = tempfile::tempdir()?;
    let mut figures: Vec<[Vec<f64>; 2]> = vec![Default::default(); ways.len()];
    for _ in 0..rounds.max(1) {
        for (way, figures) in ways.iter().zip(&mut figures) {
            let once = count(lab, way, load, seconds, dir.path())?;
            let thrice = count(lab, way, load, 3.0 * seconds, dir.path())?;
            let requests = (thrice.1 - once.1).max(1.0);
            for (figures, (once, thrice)) in figures.iter_mut().zip(once.0.iter().zip(thrice.0)) {
                figures.push((thrice - once) / requests);
            }
        }
    }
    println!("\nInstructions of the proxies, a request of HTTP/1.1 with 1 KiB replies, 32 connections");
    println!("  {:<28} {:>10} {:>10}", "path", "user", "kernel");
    let mut report = serde_json::Map::new();
    for (way, figures) in ways.iter().zip(figures) {
        let [user, kernel] = figures;
        let middle = |figures: &[f64]| median(figures.iter().copied()).unwrap_or_default();
        println!("  {:<28} {:>10.0} {:>10.0}", way.name, middle(&user), middle(&kernel));
        let value =
            json!({ "user": middle(&user), "kernel": middle(&kernel), "user_rounds": user, "kernel_rounds": kernel });
        report.insert(way.name.to_owned(), value);
    }
    Ok(Value::Object(report))
}

/// Instructions, of [`EVENTS`], and requests of one run.
fn count(lab: &Lab, way: &Way, load: &str, seconds: f64, dir: &Path) -> Result<([f64; 2], f64)> {
    let to = way.to.get(&HTTP).context("no such way")?.to_string();
    let seconds = seconds.to_string();
    let mut argv = vec![load];
    argv.extend(LOAD);
    argv.extend(["--connect", &to, "--seconds", &seconds]);
    let counting = Counting::start(&way.proxies, dir)?;
    let output = lab.pod(way.pod)?.run(&argv)?;
    let instructions = counting.stop()?;
    let round = Round::parse(&output.text(), crate::measure::Cpu::default())?;
    let requests = round.get("with_warm_up").context("the load generator does not say how many requests it made")?;
    Ok((instructions, requests))
}

/// `perf stat` beside the proxies.
struct Counting {
    perf: Child,
    file: std::path::PathBuf,
}

impl Counting {
    fn start(proxies: &[u32], dir: &Path) -> Result<Self> {
        let file = dir.join("perf.csv");
        let pids = proxies.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new("perf");
        command.args(["stat", "-x", ";", "-e", &EVENTS.join(","), "-p", &pids, "-o"]).arg(&file);
        let perf = command.stdin(Stdio::null()).spawn().context("starting perf (package linux-perf)")?;
        std::thread::sleep(START);
        Ok(Self { perf, file })
    }

    fn stop(mut self) -> Result<[f64; 2]> {
        kill(Pid::from_raw(self.perf.id().cast_signed()), Signal::SIGINT)?;
        self.perf.wait()?;
        let text = std::fs::read_to_string(&self.file)?;
        let of = |event: &str| {
            let line = text.lines().find(|line| line.contains(event));
            line.and_then(|line| line.split(';').next()?.parse().ok())
        };
        match EVENTS.map(of) {
            [Some(user), Some(kernel)] => Ok([user, kernel]),
            _ => bail!("this machine does not count instructions: {text}"),
        }
    }
}
