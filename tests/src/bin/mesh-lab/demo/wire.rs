//! What crosses the wire: a capture on a node, read with tshark.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use mesh_tests::Lab;
use mesh_tests::capture::{contains, tshark};

use super::proofs::Proofs;

/// Wire port of tunnels (HBONE).
const HBONE: &str = "tcp.port==15008,tls";

/// Traffic and what a node's interface on the wire saw of it.
pub struct Captured<T> {
    /// What the traffic gave.
    pub outcome: T,
    file: PathBuf,
    /// Addresses of the lab's pods.
    pods: BTreeSet<String>,
}

impl<T> Captured<T> {
    /// Captures while `traffic` runs.
    pub fn of(lab: &Lab, node: &str, traffic: impl FnOnce() -> Result<T>) -> Result<Self> {
        let capture = lab.node(node)?.capture("tcp")?;
        let outcome = traffic()?;
        let file = capture.stop()?;
        let pods = lab.topology().pods.iter().flat_map(|p| p.addresses.iter().map(ToString::to_string)).collect();
        Ok(Self { outcome, file, pods })
    }
}

/// A word that nobody else sends.
pub fn marker() -> Result<String> {
    let mut bytes = [0u8; 8];
    let mut random = std::fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes)?;
    Ok(format!("demo-marker-{:016x}", u64::from_ne_bytes(bytes)))
}

/// Prints and proves.
pub fn show<T, U>(mesh: &Captured<T>, off: &Captured<U>, marker: &str, proofs: &mut Proofs) -> Result<()> {
    let hellos = tshark(
        &mesh.file,
        &[
            "-d",
            HBONE,
            "-Y",
            "tls.handshake.type == 2 && tcp.srcport == 15008",
            "-T",
            "fields",
            "-e",
            "tls.handshake.extensions.supported_version",
            "-e",
            "tls.handshake.extensions_key_share_group",
        ],
    )?;
    let hellos: Vec<_> = hellos.lines().filter(|l| !l.trim().is_empty()).collect();
    let tls13 = hellos.iter().filter(|l| l.starts_with("0x0304")).count();
    let hybrid = hellos.iter().filter(|l| l.ends_with("4588")).count();
    println!(
        "  TLS handshakes to port 15008: {}, of them TLS 1.3: {tls13}, with X25519MLKEM768: {hybrid}",
        hellos.len()
    );

    let pairs = tshark(
        &mesh.file,
        &[
            "-Y",
            "tcp.len > 0",
            "-T",
            "fields",
            "-E",
            "separator= ",
            "-e",
            "ip.src",
            "-e",
            "ipv6.src",
            "-e",
            "tcp.srcport",
            "-e",
            "ip.dst",
            "-e",
            "ipv6.dst",
            "-e",
            "tcp.dstport",
        ],
    )?;
    let mut tunnel = 0;
    let mut other = BTreeSet::new();
    for line in pairs.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [source, source_port, destination, port] = fields.as_slice() else { continue };
        if !mesh.pods.contains(*source) || !mesh.pods.contains(*destination) {
            // Agent and control plane: node to control, TLS of its own.
            continue;
        }
        if *port == "15008" || *source_port == "15008" {
            tunnel += 1;
        } else {
            other.insert(format!("{source} → {destination}:{port}"));
        }
    }
    println!("  segments with data between pods: {tunnel} in tunnels, {} outside", other.len());
    let with = contains(&std::fs::read(&mesh.file)?, marker.as_bytes());
    let without = contains(&std::fs::read(&off.file)?, marker.as_bytes());
    println!("  `{marker}` in the capture: mesh on {}, mesh off {}", yes(with), yes(without));

    proofs.add(
        !hellos.is_empty() && tls13 == hellos.len(),
        format!("all {} tunnels between the nodes are TLS 1.3", hellos.len()),
    );
    let outside = other.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let statement = if other.is_empty() {
        "no pod's data crosses outside a tunnel".to_owned()
    } else {
        format!("data outside tunnels: {outside}")
    };
    proofs.add(tunnel > 0 && other.is_empty(), statement);
    proofs.add(!with, "the client's marker is nowhere in the capture with the mesh on");
    proofs.add(without, "the same search finds it with the mesh off, so the search is good");
    Ok(())
}

fn yes(found: bool) -> &'static str {
    if found { "found" } else { "not found" }
}
