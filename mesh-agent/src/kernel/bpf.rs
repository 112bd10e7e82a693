//! The bpf(2) commands that aya does not offer for what is made at run time: load, attach, replace, pin, empty, ask who
//! is attached. In: instructions and descriptors. Out: descriptors that undo what they stand for when they are closed.
//! For the probe of the kernel, and for what another agent has left; what carries traffic is loaded and attached by aya.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

/// Commands, `enum bpf_cmd` of linux/bpf.h.
mod command {
    pub const MAP_CREATE: i32 = 0;
    pub const MAP_LOOKUP_ELEM: i32 = 1;
    pub const MAP_UPDATE_ELEM: i32 = 2;
    pub const MAP_DELETE_ELEM: i32 = 3;
    pub const MAP_GET_NEXT_KEY: i32 = 4;
    pub const PROG_LOAD: i32 = 5;
    pub const OBJ_PIN: i32 = 6;
    pub const OBJ_GET: i32 = 7;
    pub const PROG_ATTACH: i32 = 8;
    pub const PROG_GET_FD_BY_ID: i32 = 13;
    pub const OBJ_GET_INFO_BY_FD: i32 = 15;
    pub const PROG_QUERY: i32 = 16;
    pub const BTF_LOAD: i32 = 18;
    pub const MAP_LOOKUP_AND_DELETE_ELEM: i32 = 21;
    pub const LINK_CREATE: i32 = 28;
    pub const LINK_UPDATE: i32 = 29;
}

/// Kinds of programs, `enum bpf_prog_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the kernel's names")]
pub enum Kind {
    SocketFilter = 1,
    SchedCls = 3,
    Sock = 9,
    SockOps = 13,
    SkMsg = 16,
    SockAddr = 18,
    Sockopt = 25,
    SkLookup = 30,
}

/// `enum bpf_attach_type`, as far as it goes beyond the hooks of the cgroup.
pub const SK_MSG_VERDICT: u32 = 7;
/// As [`SK_MSG_VERDICT`].
pub const SK_LOOKUP: u32 = 36;
/// As [`SK_LOOKUP`].
pub const TCX_INGRESS: u32 = 46;
/// As [`SK_LOOKUP`].
pub const TCX_EGRESS: u32 = 47;

/// The index of loopback in any namespace.
pub const LOOPBACK: u32 = 1;

/// Kinds of maps, `enum bpf_map_type`.
pub const MAP_ARRAY: u32 = 2;
/// As [`MAP_ARRAY`].
pub const MAP_SOCKMAP: u32 = 15;
/// As [`MAP_ARRAY`].
pub const MAP_SOCKHASH: u32 = 18;
/// As [`MAP_ARRAY`].
pub const MAP_SK_STORAGE: u32 = 24;
/// As [`MAP_ARRAY`].
pub const MAP_RINGBUF: u32 = 27;

/// A map that is not preallocated.
const NO_PREALLOC: u32 = 1;
/// Also what is attached above.
const QUERY_EFFECTIVE: u32 = 1;
/// Programs of one hook that are listed.
const MAX_LISTED: usize = 64;
/// Room for the verifier's words.
const LOG_BYTES: usize = 64 * 1024;

/// `union bpf_attr`: fields at their offsets, the rest 0.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Attr {
        Attr([0; 128])
    }

    fn u32(mut self, offset: usize, value: u32) -> Attr {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, offset: usize, fd: BorrowedFd<'_>) -> Attr {
        self.u32(offset, fd.as_raw_fd().cast_unsigned())
    }

    /// The address of `value`, which the caller keeps alive over the call.
    fn at<T: ?Sized>(mut self, offset: usize, value: *const T) -> Attr {
        let address = value.cast::<u8>() as u64;
        self.0[offset..offset + 8].copy_from_slice(&address.to_ne_bytes());
        self
    }

    fn call(&mut self, command: i32) -> io::Result<i32> {
        // SAFETY: the attribute is as large as said, zero where nothing was put, and every address in it is that of a
        // value that the caller of `at` keeps alive and, where the kernel writes, owns mutably.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
    }

    fn open(&mut self, command: i32) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the kernel has just given this descriptor to us, and these commands give nothing else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Loads a program. The error of a program that the verifier refuses carries its last words.
pub fn load(kind: Kind, attach: u32, name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    const LICENSE: &[u8] = b"GPL\0";
    let mut log: Vec<u8> = Vec::new();
    let attempt = |log: &mut [u8]| {
        let mut attr = Attr::new()
            .u32(0, kind as u32)
            .u32(4, instructions.len() as u32)
            .at(8, instructions.as_ptr())
            .at(16, LICENSE.as_ptr())
            .u32(68, attach);
        // 15 letters and a zero; the kernel takes letters, digits, `_` and `.` only.
        let name: Vec<u8> = name.bytes().take(15).collect();
        attr.0[48..48 + name.len()].copy_from_slice(&name);
        if !log.is_empty() {
            attr = attr.u32(24, 1).u32(28, log.len() as u32).at(32, log.as_ptr());
        }
        attr.open(command::PROG_LOAD)
    };
    match attempt(&mut log) {
        // The verifier gives up when a signal arrives.
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => attempt(&mut log),
        Err(e) if e.raw_os_error() != Some(libc::EPERM) => {
            log.resize(LOG_BYTES, 0);
            let error = attempt(&mut log).err().unwrap_or(e);
            Err(io::Error::new(error.kind(), Refusal { words: last_words(&log), error }))
        }
        done => done,
    }
}

/// A refusal of the verifier.
#[derive(Debug, thiserror::Error)]
#[error("{error}{words}")]
struct Refusal {
    error: io::Error,
    words: String,
}

/// The last line of the log that is not statistics.
fn last_words(log: &[u8]) -> String {
    let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let last = text.lines().map(str::trim).rfind(|l| !l.is_empty() && !l.starts_with("processed "));
    last.map_or_else(String::new, |l| format!(": {l}"))
}

/// Creates a map of 32-bit values, or a ring buffer of `entries` bytes.
pub fn map(kind: u32, entries: u32) -> io::Result<OwnedFd> {
    let (key, value) = if kind == MAP_RINGBUF { (0, 0) } else { (4, 4) };
    Attr::new().u32(0, kind).u32(4, key).u32(8, value).u32(12, entries).open(command::MAP_CREATE)
}

/// Creates a socket storage of one 32-bit value; `btf` describes the type number 1, an integer.
pub fn storage(btf: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attr = Attr::new().u32(0, MAP_SK_STORAGE).u32(4, 4).u32(8, 4).u32(16, NO_PREALLOC);
    attr.fd(48, btf).u32(52, 1).u32(56, 1).open(command::MAP_CREATE)
}

/// Loads type information that knows one type, `int`.
pub fn btf() -> io::Result<OwnedFd> {
    // Header: magic, version 1, header length 24; types at 0, 16 bytes; strings at 16, 5 bytes (btf.rst, 2).
    let words: [u32; 10] = [0x0001_eb9f, 24, 0, 16, 16, 5, 1, 1 << 24, 4, 1 << 24 | 32];
    let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    bytes.extend_from_slice(b"\0int\0");
    Attr::new().at(0, bytes.as_ptr()).u32(16, bytes.len() as u32).open(command::BTF_LOAD)
}

/// What a map holds for a key.
pub fn get(map: BorrowedFd<'_>, key: u32) -> io::Result<u32> {
    let mut value = 0_u32;
    let attr = &mut Attr::new().fd(0, map).at(8, &raw const key).at(16, &raw mut value);
    attr.call(command::MAP_LOOKUP_ELEM).map(|_| value)
}

/// Puts a descriptor (of a socket, into a map of sockets) in a map.
pub fn put(map: BorrowedFd<'_>, key: u32, value: BorrowedFd<'_>) -> io::Result<()> {
    let value = value.as_raw_fd().cast_unsigned();
    let attr = &mut Attr::new().fd(0, map).at(8, &raw const key).at(16, &raw const value);
    attr.call(command::MAP_UPDATE_ELEM).map(|_| ())
}

/// Takes an entry out of a map with 32-bit keys.
pub fn remove(map: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    Attr::new().fd(0, map).at(8, &raw const key).call(command::MAP_DELETE_ELEM).map(|_| ())
}

/// Takes everything out of a hash map, whatever its keys are.
pub fn clear(map: BorrowedFd<'_>) -> io::Result<()> {
    // `struct bpf_map_info` up to and with the number of entries.
    let mut info = [0_u32; 5];
    let mut attr = Attr::new().fd(0, map).u32(4, size_of_val(&info) as u32).at(8, info.as_mut_ptr());
    attr.call(command::OBJ_GET_INFO_BY_FD)?;
    let [_, _, key_size, _, entries] = info;
    let mut key = vec![0_u8; key_size as usize];
    for _ in 0..entries {
        // Without a key the first one is told.
        match Attr::new().fd(0, map).at(16, key.as_mut_ptr()).call(command::MAP_GET_NEXT_KEY) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            done => done?,
        };
        match Attr::new().fd(0, map).at(8, key.as_ptr()).call(command::MAP_DELETE_ELEM) {
            // Somebody else was faster.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            done => drop(done?),
        }
    }
    Ok(())
}

/// Takes an entry out of a hash map, in one step; its value. `None`: it is not there. Both types must be the map's: that
/// they have its sizes is asked.
pub fn take<K: Pod, V: Pod + Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    // `struct bpf_map_info` up to and with the size of a value.
    let mut info = [0_u32; 4];
    let mut attr = Attr::new().fd(0, map).u32(4, size_of_val(&info) as u32).at(8, info.as_mut_ptr());
    attr.call(command::OBJ_GET_INFO_BY_FD)?;
    if info[2..] != [size_of::<K>() as u32, size_of::<V>() as u32] {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a map of other types"));
    }
    let mut value = V::default();
    let attr = &mut Attr::new().fd(0, map).at(8, &raw const *key).at(16, &raw mut value);
    match attr.call(command::MAP_LOOKUP_AND_DELETE_ELEM) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        done => done.map(|_| Some(value)),
    }
}

/// To what a program is attached.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A cgroup's directory or a network namespace.
    Fd(BorrowedFd<'a>),
    /// An interface of the calling thread's namespace, by its index.
    Interface(u32),
}

impl Target<'_> {
    fn number(self) -> u32 {
        match self {
            Target::Fd(fd) => fd.as_raw_fd().cast_unsigned(),
            Target::Interface(index) => index,
        }
    }
}

/// Attaches a program until the link is closed.
pub fn link(program: BorrowedFd<'_>, target: Target<'_>, attach: u32) -> io::Result<OwnedFd> {
    Attr::new().fd(0, program).u32(4, target.number()).u32(8, attach).open(command::LINK_CREATE)
}

/// Lets a program decide about what the sockets in a map send. It stays until the map goes, or another takes its place.
pub fn attach_to_map(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    Attr::new().fd(0, map).fd(4, program).u32(8, SK_MSG_VERDICT).call(command::PROG_ATTACH).map(|_| ())
}

/// Puts another program in the place of a link's.
pub fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    Attr::new().fd(0, link).fd(4, program).call(command::LINK_UPDATE).map(|_| ())
}

/// Gives a map, program or link a name on a bpffs.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_string(path)?;
    Attr::new().at(0, path.as_ptr()).fd(8, fd).call(command::OBJ_PIN).map(|_| ())
}

/// Opens what has a name on a bpffs.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    Attr::new().at(0, path.as_ptr()).open(command::OBJ_GET)
}

fn c_string(path: &Path) -> io::Result<CString> {
    let name: &OsStr = path.as_os_str();
    CString::new(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The ids of the programs that run at a hook, in their order. For a cgroup also those that are attached above it.
pub fn attached(target: Target<'_>, attach: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MAX_LISTED];
    let flags = if matches!(target, Target::Fd(_)) { QUERY_EFFECTIVE } else { 0 };
    let mut attr = Attr::new().u32(0, target.number()).u32(4, attach).u32(8, flags).u32(24, MAX_LISTED as u32);
    attr = attr.at(16, ids.as_mut_ptr());
    match attr.call(command::PROG_QUERY) {
        // More than are listed: the first ones stand there.
        Err(e) if e.raw_os_error() != Some(libc::ENOSPC) => Err(e),
        // Nothing was ever attached to this interface.
        _ => Ok(ids.into_iter().take_while(|id| *id != 0).collect()),
    }
}

/// The name of a loaded program, at most 15 letters.
pub fn name(id: u32) -> io::Result<String> {
    // `struct bpf_prog_info` up to and with the name.
    const NAME: usize = 64;
    let mut info = [0_u8; 80];
    let program = Attr::new().u32(0, id).open(command::PROG_GET_FD_BY_ID)?;
    let mut attr = Attr::new().fd(0, program.as_fd()).u32(4, info.len() as u32).at(8, info.as_mut_ptr());
    attr.call(command::OBJ_GET_INFO_BY_FD)?;
    let name = info[NAME..].split(|b| *b == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_not_statistics() {
        assert_eq!(last_words(b"0: (85) call\nunknown func\nprocessed 1 insns\n\0\0"), ": unknown func");
        assert_eq!(last_words(b"\0"), "");
    }
}
