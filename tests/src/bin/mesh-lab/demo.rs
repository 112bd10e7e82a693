//! The demo. To be written.
use anyhow::Result;
use std::path::{Path, PathBuf};
#[derive(clap::Args)]
pub struct Options {}
pub fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo")
}
pub fn run(_: &Options) -> Result<()> {
    Ok(())
}
