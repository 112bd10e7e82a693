//! The machine's whole disk: programs, the libraries they load, modules. In: a kernel and programs of this machine. Out:
//! a cpio archive in the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use crate::cargo;

/// What goes in.
pub struct Programs {
    /// Process 1.
    pub init: PathBuf,
    /// The agent, for its `probe`.
    pub agent: PathBuf,
    /// The kernel tests.
    pub tests: PathBuf,
    /// The kernel programs.
    pub object: PathBuf,
    /// The same of a debugging build.
    pub debug_object: PathBuf,
}

/// Modules that the mesh and its tests need where the kernel has them as modules; the last three are NAT, by iptables.
const MODULES: [&str; 9] =
    ["veth", "sch_ingress", "cls_bpf", "tcp_diag", "udp_diag", "inet_diag", "nft_chain_nat", "nft_compat", "xt_nat"];

/// Programs that the tests start, where they look for them.
const PROGRAMS: [&str; 2] = ["ip", "iptables"];
/// Where iptables' extensions are, in the directories of libraries; and the one that the tests use.
const EXTENSIONS: [&str; 2] = ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/xtables"];
const EXTENSION: &str = "libxt_SNAT.so";

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// Writes the archive.
pub fn write(to: &Path, kernel: &Kernel, programs: &Programs, plan: &[String]) -> Result<()> {
    let mut files: BTreeMap<String, (u32, Vec<u8>)> = BTreeMap::new();
    let mut steps = Vec::new();
    for module in modules(kernel)? {
        let at = format!("/modules/{}.ko", module.name);
        steps.push(format!("module {at}"));
        files.insert(at, (FILE, module.bytes));
    }
    steps.extend_from_slice(plan);
    files.insert("/plan".to_owned(), (FILE, (steps.join("\n") + "\n").into_bytes()));
    let own = [("/init", &programs.init), ("/mesh-agent", &programs.agent), ("/tests", &programs.tests)];
    let mut runs: Vec<(String, PathBuf)> = own.map(|(at, from)| (at.to_owned(), from.clone())).into();
    for name in PROGRAMS {
        let places = ["/usr/sbin", "/sbin", "/usr/bin"].map(|directory| Path::new(directory).join(name));
        let from = places.into_iter().find(|path| path.is_file());
        runs.push((format!("/usr/sbin/{name}"), from.with_context(|| format!("`{name}` is missing"))?));
    }
    let extension = EXTENSIONS.map(|directory| Path::new(directory).join(EXTENSION));
    if let Some(path) = extension.into_iter().find(|path| path.is_file()) {
        runs.push((path.display().to_string(), path));
    }
    for (at, from) in runs {
        files.insert(at, (PROGRAM, stripped(&from)?));
        for library in libraries(&from)? {
            let bytes = read(Path::new(&library))?;
            files.insert(library, (PROGRAM, bytes));
        }
    }
    // The tests look for the object where it was when they were built; the agent, beside itself.
    let object = read(&programs.object)?;
    files.insert(programs.object.display().to_string(), (FILE, object.clone()));
    files.insert("/mesh-ebpf.o".to_owned(), (FILE, object));
    files.insert(programs.debug_object.display().to_string(), (FILE, read(&programs.debug_object)?));
    let tests_crate = cargo::root().join("tests");
    std::fs::write(to, archive(&files, &[&tests_crate.display().to_string(), "/tmp", "/dev", "/proc", "/sys", "/run"]))
        .with_context(|| format!("writing {}", to.display()))
}

struct Module {
    name: String,
    bytes: Vec<u8>,
}

/// The modules wanted and those they depend on, in an order in which they can be loaded.
fn modules(kernel: &Kernel) -> Result<Vec<Module>> {
    let mut known = BTreeMap::new();
    walk(&kernel.modules, &mut known)?;
    let mut found: Vec<Module> = Vec::new();
    for name in MODULES {
        add(name, &known, &mut found)?;
    }
    Ok(found)
}

fn add(name: &str, known: &BTreeMap<String, PathBuf>, found: &mut Vec<Module>) -> Result<()> {
    // What is not a module is built in, or not there; the tests will tell.
    let Some(path) = known.get(name).filter(|_| found.iter().all(|m| m.name != name)) else { return Ok(()) };
    let bytes = if path.extension().is_some_and(|e| e == "xz") {
        let output = Command::new("xz").arg("-dc").arg(path).output().context("starting xz (package xz-utils)")?;
        if !output.status.success() {
            bail!("xz -dc {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        output.stdout
    } else {
        read(path)?
    };
    for needed in depends(&bytes) {
        add(&needed, known, found)?;
    }
    found.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// The names after `depends=` in a module's information section.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let list = module[start + KEY.len()..].split(|b| *b == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

fn walk(directory: &Path, known: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            walk(&path, known)?;
        } else if let Some((module, _)) = name.split_once(".ko") {
            known.insert(module.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// A program without its debugging information, which would be most of the image.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let copy = tempfile(program)?;
    let done = Command::new("strip").arg("-o").arg(&copy).arg(program).status();
    let bytes = if done.is_ok_and(|status| status.success()) { read(&copy) } else { read(program) };
    // Only there if strip wrote it.
    let _ = std::fs::remove_file(&copy);
    bytes
}

fn tempfile(program: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("a program without a name")?;
    Ok(cargo::target()?.join("vm").join(format!(".{}", name.to_string_lossy())))
}

/// The shared libraries of a program and its loader, as `ldd` finds them.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("starting ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("not found") {
        bail!("{}: a library is missing:\n{text}", program.display());
    }
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    Ok(text.lines().filter_map(path).collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Files and directories with all their parents, every directory before what is in it.
fn archive(files: &BTreeMap<String, (u32, Vec<u8>)>, directories: &[&str]) -> Vec<u8> {
    let mut all: BTreeMap<&str, (u32, &[u8])> = BTreeMap::new();
    for path in files.keys().map(String::as_str).chain(directories.iter().copied()) {
        let parents = path.match_indices('/').skip(1).map(|(i, _)| &path[..i]);
        all.extend(parents.map(|parent| (parent, (DIRECTORY, &[][..]))));
    }
    all.extend(directories.iter().map(|path| (*path, (DIRECTORY, &[][..]))));
    all.extend(files.iter().map(|(path, (mode, bytes))| (path.as_str(), (*mode, bytes.as_slice()))));
    let mut out = Vec::new();
    for (number, (path, (mode, bytes))) in all.into_iter().enumerate() {
        entry(&mut out, number, path.trim_start_matches('/'), mode, bytes);
    }
    entry(&mut out, 0, "TRAILER!!!", 0, &[]);
    out
}

fn entry(out: &mut Vec<u8>, number: usize, name: &str, mode: u32, bytes: &[u8]) {
    out.extend_from_slice(b"070701");
    // ino, mode, uid, gid, nlink, mtime, filesize, four device numbers, namesize, check.
    let fields =
        [number + 1, mode as usize, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0].map(|n| format!("{n:08X}"));
    out.extend_from_slice(fields.concat().as_bytes());
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(bytes);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_module_depends_on() {
        assert_eq!(depends(b"license=GPL\0depends=inet_diag,nf-x\0name=y\0"), ["inet_diag", "nf_x"]);
        assert!(depends(b"license=GPL\0depends=\0").is_empty());
        assert!(depends(b"").is_empty());
    }

    #[test]
    fn an_archive_has_directories_before_files_and_is_aligned() {
        let files = BTreeMap::from([("/a/b/c".to_owned(), (FILE, b"hello".to_vec()))]);
        let bytes = archive(&files, &["/tmp"]);
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at = |needle: &str| text.find(needle).unwrap();
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/c\0") && at("hello") < at("tmp\0"));
        assert!(at("TRAILER!!!") > at("tmp\0"));
    }
}
