//! Bodies that are longer than the agents' memory go through them whole, both ways, and their memory stays as it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Topology, shared};

use crate::{memory, said};

/// Bytes of each body, if not [`LENGTH`]: for a run with 10 GiB.
const LENGTH_VARIABLE: &str = "MESH_TEST_BODY_BYTES";
/// Bytes of each body. Six of them go through.
const LENGTH: u64 = 1 << 30;
/// More than 32 bits can say.
const DECLARED: u64 = 10 << 30;
/// Bytes of the first transfer each way, after which memory is looked at: what an agent keeps anyway is there by then.
const FIRST: u64 = 64 << 20;
/// By how much an agent may grow while a body goes through it, in bytes.
const GROWTH: u64 = 16 << 20;
/// Longest that a transfer takes; it need not.
const LIMIT: Duration = Duration::from_secs(1800);

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {selector: {app: far}, ports: [{name: http, port: 8080}, {name: http2, port: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {selector: {app: outside}, ports: [{name: http, port: 8080}]}
"#;

/// One transfer, and the most that each agent had meanwhile.
fn transfer(lab: &Lab, to: &[&str], way: &str, length: u64) -> Result<[u64; 2]> {
    let length = length.to_string();
    let argv = [&["mesh-lab-app", "bulk", way, &length, "--to"], to].concat();
    let mut client = lab.pod("client")?.spawn(&argv)?;
    let mut most = [0; 2];
    let begun = std::time::Instant::now();
    while client.running() {
        ensure!(begun.elapsed() < LIMIT, "`{}` does not end: {}", argv.join(" "), client.log());
        for (most, node) in most.iter_mut().zip(["a", "b"]) {
            *most = memory(lab, node, "VmRSS")?.max(*most);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = said(&client.log())?;
    let expected =
        serde_json::json!({ "bytes": length.parse::<u64>()?, "right": true, "declared": length.parse::<u64>()? });
    ensure!(said == expected, "`{}`: {said}, and not {expected}", argv.join(" "));
    Ok(most)
}

#[test]
fn long_bodies_go_through_whole_and_leave_memory_as_it_was() -> Result<()> {
    let length = match std::env::var(LENGTH_VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{LENGTH_VARIABLE}: bytes, not `{text}`"))?,
        Err(_) => LENGTH,
    };
    let serve = ["mesh-lab-app", "bulk-serve"];
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("far", "b").command(&serve, &[8080, 8081]))
        .pod(PodSpec::new("outside", "b").unenrolled().command(&serve, &[8080]));
    let lab = LabBuilder::for_test("bodies", topology).config("s.yaml", SERVICES).up()?;
    let body = || -> Result<()> {
        for (name, to) in [
            ("HTTP/1, one hop", &["outside:8080"][..]),
            ("HTTP/1, pair", &["far:8080"][..]),
            ("HTTP/2, pair", &["far:8081", "--http2"][..]),
        ] {
            for way in ["--up", "--down"] {
                transfer(&lab, to, way, FIRST).with_context(|| name.to_owned())?;
                let before = [memory(&lab, "a", "VmRSS")?, memory(&lab, "b", "VmRSS")?];
                let begun = std::time::Instant::now();
                let most = transfer(&lab, to, way, length).with_context(|| name.to_owned())?;
                let grown = [most[0].saturating_sub(before[0]), most[1].saturating_sub(before[1])];
                println!(
                    "{name}, {way} {length}: {:.1} Gbit/s; resident {before:?}, at most {grown:?} more",
                    length as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9
                );
                ensure!(grown.iter().all(|grown| *grown < GROWTH), "{name}, {way}: {before:?} grew by {grown:?} bytes");
            }
            // What it says of its length is more than 32 bits have.
            let argv =
                [&["mesh-lab-app", "bulk", "--down", &DECLARED.to_string(), "--leave-after", "1000000", "--to"], to];
            let left = said(&lab.pod("client")?.run(&argv.concat())?.text())?;
            ensure!(left["declared"] == DECLARED && left["right"] == true, "{name}: {left}");
        }
        let metrics = lab.node("a")?.agent().metrics()?;
        let counted = metrics.sum("istio_requests_total", &[("reporter", "source"), ("response_flags", "-")]);
        ensure!(counted >= 12.0, "not all requests went through the agent, or not well: {counted}");
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
