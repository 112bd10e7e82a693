//! The first and only process of the virtual machine in which `cargo xtask vm` tries a kernel.
//!
//! In: `/plan`, one step a line: `module FILE`, or `run NAME PROGRAM ARGUMENT…`. Out: on the console a line
//! `vm: NAME: STATUS` for every program, then the machine is off. Refuses to run as anything but process 1.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};

/// The file systems that the programs expect, in the order of their mount points.
const MOUNTS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Descriptors that a program may have.
const DESCRIPTORS: u64 = 65_536;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("mesh-vm-init: only for process 1 of a virtual machine; `cargo xtask vm` starts one");
        return ExitCode::FAILURE;
    }
    if let Err(e) = play() {
        say(&format!("init: {e}"));
    }
    say("off");
    // Whatever happens now, the kernel ends: process 1 may not return, and `panic=-1` stands on its command line.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    ExitCode::FAILURE
}

fn play() -> io::Result<()> {
    // The kernel's own limit is less than the tests want.
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS)?;
    for (kind, at) in MOUNTS {
        std::fs::create_dir_all(at)?;
        let done = mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>);
        done.map_err(|e| io::Error::other(format!("mounting {kind} at {at}: {e}")))?;
    }
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    say(&format!("kernel: {}", version.trim()));
    for line in std::fs::read_to_string("/plan")?.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words.as_slice() {
            ["module", file] => {
                if let Err(e) = load_module(file) {
                    say(&format!("module {file}: {e}"));
                }
            }
            ["run", name, program, arguments @ ..] => run(name, program, arguments),
            _ => say(&format!("plan: not understood: {line}")),
        }
    }
    Ok(())
}

fn run(name: &str, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("RUST_BACKTRACE", "0");
    match command.status() {
        Ok(status) if status.success() => say(&format!("{name}: ok")),
        Ok(status) => say(&format!("{name}: {status}")),
        Err(e) => say(&format!("{name}: cannot start {program}: {e}")),
    }
}

fn load_module(file: &str) -> io::Result<()> {
    let module = File::open(file)?;
    let none = CString::default();
    // SAFETY: an open file, an empty string that ends in 0, no flags.
    let done = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), none.as_ptr(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The console belongs to the programs as well: a line of ours begins on a line of its own.
fn say(what: &str) {
    println!("\nvm: {what}");
    // Nobody could be told if the console were gone.
    let _ = io::stdout().flush();
}
