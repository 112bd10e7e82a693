//! `cargo xtask build-ebpf`: the kernel programs, from mesh-ebpf to `target/bpf/mesh-ebpf.o`. In: the machine's
//! toolchains. Out: the object's path. And clippy for them, by the same compiler. Finds what it needs; on Debian and
//! Ubuntu, as root, installs what is missing; elsewhere it prints the commands. Installs nothing that is there, and leaves
//! the object alone if it did not change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "bpf-linker";
/// What Debian packages, and a linker version that can be built against it.
const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// A compiler whose library source is at hand, so that `core` can be built for the kernel.
enum Compiler {
    /// rustup's nightly with rust-src.
    Nightly,
    /// Debian's rustc-web with rust-web-src: a stable compiler that is told to allow unstable options.
    Debian,
}

/// Builds the object and returns its path. With `debug_log` it is one that tells of every decision, under another name.
pub fn run(debug_log: bool) -> Result<PathBuf> {
    let root = root();
    let (compiler, linker) = tools(&root)?;
    let built = build(&root, &compiler, &linker, debug_log)?;
    let object = root.join(if debug_log { "target/bpf/mesh-ebpf-log.o" } else { "target/bpf/mesh-ebpf.o" });
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Lints of the programs, and of mesh-common as they see it. Warnings are errors.
pub fn clippy() -> Result<()> {
    let root = root();
    let (compiler, linker) = tools(&root)?;
    let missing = |remedy: &str| format!("the kernel programs' compiler has no clippy: {remedy}");
    let mut clippy = match compiler {
        Compiler::Nightly => {
            let mut clippy = compiler.run("clippy");
            let there = plain(Command::new("rustup"))
                .args(["run", "nightly", "cargo", "clippy", "--version"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            let there = there.is_ok_and(|status| status.success());
            ensure!(there, "{}", missing("rustup component add clippy --toolchain nightly"));
            clippy.arg("--quiet");
            clippy
        }
        Compiler::Debian => {
            if !Path::new(DEBIAN_CLIPPY).exists() {
                ensure!(can_apt_get(), "{}", missing("apt-get install rust-web-clippy"));
                apt_get(&["rust-web-clippy"])?;
            }
            // Rustup's `cargo clippy` would take its own compiler's.
            let mut clippy = compiler.environment(plain(Command::new(DEBIAN_CLIPPY)));
            clippy.args(["clippy", "--quiet"]);
            clippy
        }
    };
    arguments(&mut clippy, &root, &linker);
    clippy.args(["--", "-D", "warnings"]);
    succeed(clippy)
}

fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

fn tools(root: &Path) -> Result<(Compiler, PathBuf)> {
    if let (Some(compiler), Some(linker)) = (find_compiler(), find_linker(root)) {
        return Ok((compiler, linker));
    }
    ensure!(can_apt_get(), "{}", instructions());
    if find_compiler().is_none() {
        apt_get(&["rustc-web", "rust-web-src"])?;
    }
    if find_linker(root).is_none() {
        install_linker(root)?;
    }
    match (find_compiler(), find_linker(root)) {
        (Some(compiler), Some(linker)) => Ok((compiler, linker)),
        _ => bail!("what was just installed is not where it was expected.\n{}", instructions()),
    }
}

fn find_compiler() -> Option<Compiler> {
    let mut nightly = Command::new("rustup");
    nightly.args(["run", "nightly", "rustc"]);
    if has_library_source(nightly) {
        return Some(Compiler::Nightly);
    }
    has_library_source(Command::new(DEBIAN_RUSTC)).then_some(Compiler::Debian)
}

fn has_library_source(mut rustc: Command) -> bool {
    let output = rustc.args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN").stderr(Stdio::null()).output();
    let Ok(output) = output else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success() && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

/// Our own one first: it is known to fit.
fn find_linker(root: &Path) -> Option<PathBuf> {
    [tools_dir(root).join("bin").join(LINKER), PathBuf::from(LINKER)].into_iter().find(|linker| {
        let run = Command::new(linker).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    })
}

fn tools_dir(root: &Path) -> PathBuf {
    root.join("target/tools")
}

fn install_linker(root: &Path) -> Result<()> {
    let mut missing = Vec::new();
    if !Path::new(LLVM).join("bin/llvm-config").exists() {
        missing.push("llvm-22-dev");
    }
    if !on_path("g++") {
        missing.push("g++");
    }
    if !missing.is_empty() {
        apt_get(&missing)?;
    }
    step(&format!("building {LINKER} {LINKER_VERSION} against LLVM 22 into target/tools (once; about a minute)"));
    let mut cargo = plain(Command::new("cargo"));
    cargo
        .args(["install", LINKER, "--version", LINKER_VERSION, "--locked"])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(tools_dir(root))
        .env("LLVM_PREFIX", LLVM)
        .env("LLVM_SYS_221_PREFIX", LLVM)
        .current_dir(root);
    succeed(cargo)
}

fn build(root: &Path, compiler: &Compiler, linker: &Path, debug_log: bool) -> Result<PathBuf> {
    let mut cargo = compiler.run("build");
    cargo.arg("--quiet");
    if debug_log {
        cargo.args(["--features", "log"]);
    }
    let target_dir = arguments(&mut cargo, root, linker);
    if !target_dir.join(TARGET).exists() {
        step("building the kernel programs and the core library for them (the first time takes about a minute)");
    }
    succeed(cargo)?;
    Ok(target_dir.join(TARGET).join("release/mesh-ebpf"))
}

impl Compiler {
    /// A cargo command with this compiler.
    fn run(&self, subcommand: &str) -> Command {
        let mut cargo = match self {
            Compiler::Nightly => {
                let mut cargo = plain(Command::new("rustup"));
                cargo.args(["run", "nightly", "cargo"]);
                cargo
            }
            Compiler::Debian => self.environment(plain(Command::new("cargo"))),
        };
        cargo.arg(subcommand);
        cargo
    }

    /// What makes a command of cargo's use it.
    fn environment(&self, mut command: Command) -> Command {
        if let Compiler::Debian = self {
            command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }
}

/// What every command on the programs has in common, so that all share what was built. Returns the target directory.
fn arguments(cargo: &mut Command, root: &Path, linker: &Path) -> PathBuf {
    let target_dir = root.join("target/bpf-build");
    // Debug information is where the kernel's type information (BTF) comes from; socket storages need that.
    let flags = [format!("-Clinker={}", linker.display()), "-Clink-arg=--btf".into(), "-Cdebuginfo=2".into()];
    cargo
        .args(["--release", "--locked", "--target", TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .current_dir(root.join("mesh-ebpf"));
    target_dir
}

/// Without what the cargo that runs us, or the user's habits, put into the environment for another target.
fn plain(mut command: Command) -> Command {
    for name in
        ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"]
    {
        command.env_remove(name);
    }
    command
}

/// Keeps the object's time when its bytes are the same, so that nobody reloads it for nothing.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        fs::create_dir_all(to.parent().unwrap_or(to))?;
        // Renamed, so that nobody ever loads half of it.
        let part = to.with_extension("part");
        fs::write(&part, &new)?;
        fs::rename(part, to)
    };
    write().with_context(|| format!("cannot write {}", to.display()))
}

fn can_apt_get() -> bool {
    nix::unistd::geteuid().is_root() && on_path("apt-get")
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

fn apt_get(packages: &[&str]) -> Result<()> {
    step(&format!("installing {} (apt-get)", packages.join(", ")));
    for arguments in [&["update", "-qq"][..], &["install", "-qq", "-y", "--no-install-recommends"][..]] {
        let mut apt = Command::new("apt-get");
        apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        if arguments[0] == "install" {
            apt.args(packages);
        }
        succeed(apt).with_context(instructions)?;
    }
    Ok(())
}

fn succeed(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(status.success(), "{} {:?}: {status}", command.get_program().display(), command.get_args());
    Ok(())
}

fn step(what: &str) {
    eprintln!("xtask: {what}");
}

fn instructions() -> String {
    format!(
        "the kernel programs need a compiler with its library source, and {LINKER}. Either (anywhere, with rustup)\n  \
         rustup toolchain install nightly --component rust-src,clippy\n  \
         cargo install {LINKER}\n\
         or (Debian, Ubuntu), which `cargo xtask build-ebpf` does itself when it runs as root,\n  \
         apt-get install rustc-web rust-web-src llvm-22-dev g++\n  \
         LLVM_PREFIX={LLVM} LLVM_SYS_221_PREFIX={LLVM} cargo install {LINKER} --version {LINKER_VERSION} --locked \
         --no-default-features --features llvm-22 --root target/tools"
    )
}
