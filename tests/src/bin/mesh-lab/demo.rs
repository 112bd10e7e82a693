//! The demo: two nodes, a Bookinfo-like application, unmodified curl, and proofs of what the mesh does.
//!
//! In: the files under `demo/`. Out: what a person wants to see, and an error when a proof fails. The same lab stands
//! twice, with the mesh and without it: for the difference in latency, and to show that each proof could fail.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use mesh_tests::{Lab, LabBuilder, Topology, sys};

use crate::{interrupt, show};

mod latency;
mod proofs;
mod talkers;
mod traffic;
mod wire;

use proofs::Proofs;

/// Name of the lab, and of its twin without the mesh.
const NAME: &str = "demo";
const TWIN: &str = "demo-off";
/// Where the captures are made: the client is here, the front page on the other node.
const NODE: &str = "node-a";

#[derive(Args)]
pub struct Options {
    /// Leave the lab standing, and say how to play with it.
    #[arg(long)]
    stay: bool,
    /// Requests for the 90/10 split, at least 500.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(500..=100_000))]
    requests: u32,
}

/// The demo's topology and objects.
pub fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo")
}

/// Runs the demo.
///
/// # Errors
/// Something does not come up, or a proof fails.
pub fn run(options: &Options) -> Result<()> {
    sys::require_root()?;
    interrupt::take_down(&[NAME, TWIN])?;
    let start = Instant::now();
    let build = |name: &str| -> Result<LabBuilder> {
        let topology = Topology::load(&files().join("topology.yaml"))?;
        Ok(LabBuilder::new(name, topology).config_dir(&files().join("config")))
    };
    title("Two nodes, one small Bookinfo");
    let lab = build(NAME)?.up()?;
    let twin = build(TWIN)?.mesh(false).up()?;
    print!("{}", show::topology(lab.state()));
    println!("up in {:.1} s; the same once more with the mesh off, to compare", start.elapsed().as_secs_f32());

    let mut proofs = Proofs::default();
    let marker = wire::marker()?;
    let captured = wire::Captured::of(&lab, NODE, || traffic::all(&lab, options.requests, &marker))?;
    let plain = wire::Captured::of(&twin, NODE, || traffic::front_page(&twin, &marker))?;

    title("Traffic: unmodified curl in the pod `client`");
    captured.outcome.show(&mut proofs);
    title("Who talked to whom (from the agents' metrics)");
    talkers::show(&lab, &mut proofs)?;
    title(&format!("On the wire between the nodes (tcpdump on {NODE})"));
    wire::show(&captured, &plain, &marker, &mut proofs)?;
    title("Added latency: client to `ratings` across nodes, kept connections, mesh on against off");
    latency::show(&lab, &twin, &mut proofs)?;

    title("Proofs");
    proofs.print();
    twin.down()?;
    finish(lab, options.stay)?;
    if !proofs.all_hold() {
        bail!("a proof failed");
    }
    println!("the whole took {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

fn finish(lab: Lab, stay: bool) -> Result<()> {
    if !stay {
        lab.down()?;
        println!("\nEverything is down again. `cargo xtask demo --stay` keeps it.");
        return Ok(());
    }
    lab.detach()?;
    println!(
        "\nThe lab `{NAME}` stays. Play with it:\n  \
         cargo xtask lab exec client -- curl -s http://productpage:9080/\n  \
         cargo xtask lab exec client -- curl -s -H 'end-user: jason' http://reviews:9080/reviews/0\n  \
         edit demo/config/reviews.yaml, then: cargo xtask lab apply --config demo/config\n  \
         cargo xtask lab logs access {NODE}\n  \
         cargo xtask lab down"
    );
    Ok(())
}

fn title(text: &str) {
    println!("\n── {text} {}", "─".repeat(100usize.saturating_sub(text.chars().count())));
}
