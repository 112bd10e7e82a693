//! A packaged kernel: found, fetched, unpacked. In: a version such as 6.1. Out: the newest such package of the machine's
//! Debian suite, under `target/vm/`. Installs nothing: the package's scripts never run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo;

/// An unpacked kernel package.
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// Name and version of the package.
    pub package: String,
    /// The bootable image.
    pub image: PathBuf,
    /// Its modules, `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

/// Fetches the newest package, or takes the one that is there already.
pub fn fetch(version: &str, place: &Path) -> Result<Kernel> {
    let name = match newest(version)? {
        Some(name) => name,
        None => {
            update()?;
            newest(version)?.with_context(|| {
                format!("this machine's suite has no package linux-image-{version}…-cloud-amd64 (Debian 12 has 6.1 and 6.12)")
            })?
        }
    };
    let directory = place.join(&name);
    let Some(package) = unpacked(&directory)? else {
        std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        // The lists of packages may be older than the package's last rebuild.
        download(&name, &directory).or_else(|_| update().and_then(|()| download(&name, &directory)))?;
        return fetched(&name, &directory);
    };
    kernel(&name, &directory, &package)
}

fn fetched(name: &str, directory: &Path) -> Result<Kernel> {
    let package = unpacked(directory)?.with_context(|| format!("no package in {}", directory.display()))?;
    cargo::run(Command::new("dpkg-deb").arg("-x").arg(directory.join(&package)).arg(directory.join("root")))?;
    kernel(name, directory, &package)
}

fn kernel(name: &str, directory: &Path, file: &str) -> Result<Kernel> {
    let release = name.trim_start_matches("linux-image-").to_owned();
    let root = directory.join("root");
    let image = root.join(format!("boot/vmlinuz-{release}"));
    if !image.is_file() {
        cargo::run(Command::new("dpkg-deb").arg("-x").arg(directory.join(file)).arg(&root))?;
    }
    let modules = ["lib/modules", "usr/lib/modules"].map(|m| root.join(m).join(&release));
    let modules = modules.into_iter().find(|m| m.is_dir()).context("the package has no modules")?;
    let version = file.split('_').nth(1).unwrap_or_default();
    Ok(Kernel { package: format!("{name} {version}"), release, image, modules })
}

/// The package's file in a directory.
fn unpacked(directory: &Path) -> Result<Option<String>> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(None) };
    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.ends_with(".deb")).max())
}

fn download(name: &str, directory: &Path) -> Result<()> {
    let mut apt = Command::new("apt-get");
    // Its own user could not write here.
    apt.args(["download", "-q", "-o", "APT::Sandbox::User=root", name]).current_dir(directory).stdout(Stdio::null());
    cargo::run(&mut apt)
}

fn update() -> Result<()> {
    cargo::run(Command::new("apt-get").args(["update", "-q"]).stdout(Stdio::null()))
}

/// The newest package of a version, by name. The cloud flavour is the small one, and has all that the mesh needs.
fn newest(version: &str) -> Result<Option<String>> {
    let prefix = format!("linux-image-{version}");
    let output = Command::new("apt-cache").args(["pkgnames", &prefix]).output().context("starting apt-cache")?;
    if !output.status.success() {
        bail!("apt-cache pkgnames: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(pick(&String::from_utf8_lossy(&output.stdout), &prefix))
}

fn pick(names: &str, prefix: &str) -> Option<String> {
    // Meta-packages have no patch level, and 6.1 is not 6.12.
    let fits = |name: &&str| {
        let rest = name.strip_prefix(prefix).unwrap_or_default();
        rest.starts_with('.') && rest.ends_with("-cloud-amd64")
    };
    names.lines().filter(fits).max_by_key(|name| numbers(name)).map(str::to_owned)
}

fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_the_newest_of_the_version() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64-unsigned\n\
                     linux-image-6.1.0-47-cloud-amd64\nlinux-image-6.1.0-50-amd64\nlinux-image-6.12-cloud-amd64\n\
                     linux-image-6.12.100+deb12-cloud-amd64\nlinux-image-6.12.99+deb12-cloud-amd64\n";
        assert_eq!(pick(names, "linux-image-6.1").as_deref(), Some("linux-image-6.1.0-47-cloud-amd64"));
        assert_eq!(pick(names, "linux-image-6.12").as_deref(), Some("linux-image-6.12.100+deb12-cloud-amd64"));
        assert_eq!(pick(names, "linux-image-5.10"), None);
    }
}
