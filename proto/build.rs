//! Generates the Rust code of our own .proto files, with a compiler written in Rust: no `protoc` is needed.

const FILES: [&str; 3] =
    ["istio/v1/auth/ca.proto", "istio/workload/workload.proto", "istio/security/authorization.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"])?;
    // Maps in order, so that equal messages have equal bytes.
    tonic_prost_build::configure().btree_map(".istio.workload").compile_fds(files)?;
    Ok(())
}
