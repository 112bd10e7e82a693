//! to come
use std::path::PathBuf;
/// to come
pub fn run() -> anyhow::Result<PathBuf> {
    anyhow::bail!("to come")
}
