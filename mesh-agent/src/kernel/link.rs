//! Links that outlive the process: each is pinned. In: a loaded program, the place where it is to work, the path of the
//! pin. Out: that program in force there. A link that is there already gets the new program in one step
//! (`BPF_LINK_UPDATE`), so the place is never without one. Removing the pin detaches; nothing else does.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A cgroup, by its id (the inode of its directory).
    Cgroup(u64),
    /// A network namespace, by the inode of its file.
    Netns(u32),
    /// An interface, by its index in the namespace whose directory of pins the link is in.
    Interface(u32),
    /// What it was attached to is gone, or of a kind that we do not use.
    Gone,
}

/// Puts `program` in force at `place` by the link pinned at `path`; where that is another place's, or there is none,
/// `attach` makes one and pins it at the path it is given. The error says what the kernel says.
pub(super) fn put(
    path: &Path,
    program: BorrowedFd<'_>,
    place: Place,
    attach: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<(), String> {
    let pinned = match open(path) {
        Ok(link) => Some(link),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(format!("pin {}: {e}", path.display())),
    };
    if let Some(link) = &pinned
        && at(link.as_fd()).map_err(|e| format!("pin {}: {e}", path.display()))? == place
    {
        return update(link.as_fd(), program).map_err(|e| format!("replacing the program of {}: {e}", path.display()));
    }
    if pinned.is_none() {
        return attach(path);
    }
    // Renamed over the old one, which so goes only when the new one is in force.
    let beside = path.with_file_name(BESIDE);
    let _ = std::fs::remove_file(&beside);
    attach(&beside)?;
    std::fs::rename(&beside, path).map_err(|e| format!("pin {}: {e}", path.display()))
}

/// What the link pinned at `path` is attached to.
pub(super) fn place(path: &Path) -> io::Result<Place> {
    at(open(path)?.as_fd())
}

/// Detaches the link pinned at `path` and removes the pin. (Only removing the pin would detach too, but some time later.)
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let mut attr = DetachAttr { link: 0 };
    let detached = open(path).and_then(|link| {
        attr.link = link.as_raw_fd();
        bpf(BPF_LINK_DETACH, &mut attr)
    });
    // The pin goes in any case; what it was attached to may be gone already.
    std::fs::remove_file(path)?;
    match detached {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT | libc::EINVAL)) => Err(e),
        _ => Ok(()),
    }
}

/// Name of a pin that is about to replace another one. (A bpffs takes no dots.)
const BESIDE: &str = "replacement";

fn at(link: BorrowedFd<'_>) -> io::Result<Place> {
    let mut info = Info::default();
    let mut attr = InfoAttr { fd: link.as_raw_fd(), len: size_of::<Info>() as u32, info: &raw mut info as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let half = info.place as u32;
    Ok(match info.kind {
        LINK_CGROUP if info.place != 0 => Place::Cgroup(info.place),
        LINK_NETNS if half != 0 => Place::Netns(half),
        LINK_TCX if half != 0 => Place::Interface(half),
        _ => Place::Gone,
    })
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel has just given this descriptor to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = UpdateAttr { link: link.as_raw_fd(), program: program.as_raw_fd(), flags: 0, old: 0 };
    bpf(BPF_LINK_UPDATE, &mut attr).map(|_| ())
}

// linux/bpf.h: `enum bpf_cmd`, `enum bpf_link_type`.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const LINK_CGROUP: u32 = 3;
const LINK_NETNS: u32 = 5;
const LINK_TCX: u32 = 11;

/// The part of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    fd: RawFd,
    len: u32,
    info: u64,
}

/// The part for `BPF_LINK_UPDATE`.
#[repr(C)]
struct UpdateAttr {
    link: RawFd,
    program: RawFd,
    flags: u32,
    old: u32,
}

/// The part for `BPF_LINK_DETACH`.
#[repr(C)]
struct DetachAttr {
    link: RawFd,
}

/// The beginning of `struct bpf_link_info`. `place` is a cgroup's id, or in its first half (little endian) the inode of
/// a namespace or the index of an interface.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    _link: u32,
    _program: u32,
    _pad: u32,
    place: u64,
    _rest: [u64; 5],
}

/// Every `Attr` above is a value that this may be called with: integers laid out as the kernel expects them for its
/// command, pointing, where one is an address, to something that lives.
fn bpf<Attr>(command: libc::c_long, attr: &mut Attr) -> io::Result<RawFd> {
    // SAFETY: as said above; the size is the attribute's.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<Attr>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as RawFd) }
}
