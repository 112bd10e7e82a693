//! One operation by io_uring, as liburing would ask for it (io_uring_setup(2), io_uring_enter(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

pub const SENDMSG: u8 = 9;
pub const CONNECT: u8 = 16;

/// An operation; what the fields mean depends on it.
pub struct Ask {
    pub operation: u8,
    pub fd: i32,
    pub address: u64,
    pub length: u32,
    pub offset: u64,
}

const ENTRIES: usize = 1;
const OFF_SQES: i64 = 0x1000_0000;
const GETEVENTS: u32 = 1;
const PAGE: usize = 4096;

/// Asks, and waits for the answer. `None` where the kernel has no io_uring or forbids it: nothing to get around by.
///
/// # Safety
/// Whatever the operation points to lives until this returns.
pub unsafe fn ask(ask: &Ask) -> Option<io::Result<()>> {
    let mut parameters = [0_u32; 30];
    // SAFETY: the parameters are live and as long as the kernel expects them, 120 bytes.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, parameters.as_mut_ptr()) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        let without = matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM));
        assert!(without, "io_uring is neither there nor forbidden: {error}");
        return None;
    }
    // SAFETY: the kernel has just opened it for us.
    let ring = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let map = |offset: i64, length: usize| {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping of the ring's memory.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, ring.as_raw_fd(), offset) };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        at.cast::<u8>()
    };
    // Offsets of the submission queue: tail at word 11, array at word 16; of the completion queue: its entries at word 25.
    let [tail, array, completions] = [11, 16, 25].map(|word| parameters[word] as usize);
    let (rings, entries) = (map(0, PAGE), map(OFF_SQES, PAGE));
    // SAFETY: within the mapped page, at the offsets that the kernel has told; the call waits for the answer.
    let result = unsafe {
        entries.write(ask.operation);
        entries.add(4).cast::<i32>().write(ask.fd);
        entries.add(8).cast::<u64>().write(ask.offset);
        entries.add(16).cast::<u64>().write(ask.address);
        entries.add(24).cast::<u32>().write(ask.length);
        rings.add(array).cast::<u32>().write(0);
        let tail = &*rings.add(tail).cast::<AtomicU32>();
        tail.store(1, Ordering::Release);
        let done = libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 1, 1, GETEVENTS, 0, 0);
        assert_eq!(done, 1, "{}", io::Error::last_os_error());
        let result = rings.add(completions + 8).cast::<i32>().read();
        libc::munmap(rings.cast(), PAGE);
        libc::munmap(entries.cast(), PAGE);
        result
    };
    Some(if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) })
}
