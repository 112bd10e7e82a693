//! eBPF instructions, as many as the probe's little programs need. In: registers, offsets, numbers. Out: the words that
//! the kernel loads (instruction-set.rst). Knows nothing of what a program is for.

use std::os::fd::{AsRawFd, BorrowedFd};

/// A register.
pub type Reg = u8;
/// The result of a call, and of the program.
pub const R0: Reg = 0;
/// First argument; the context at the start.
pub const R1: Reg = 1;
/// Second argument.
pub const R2: Reg = 2;
/// Third argument.
pub const R3: Reg = 3;
/// Fourth argument.
pub const R4: Reg = 4;
/// Fifth argument.
pub const R5: Reg = 5;
/// Survives calls.
pub const R6: Reg = 6;
/// Survives calls.
pub const R7: Reg = 7;
/// The end of the stack frame.
pub const FP: Reg = 10;

/// Helpers, `enum bpf_func_id`.
pub mod helper {
    #![allow(missing_docs, reason = "the kernel's names")]
    pub const MAP_LOOKUP_ELEM: i32 = 1;
    pub const GET_SOCKET_COOKIE: i32 = 46;
    pub const SKB_LOAD_BYTES_RELATIVE: i32 = 68;
    pub const GET_CURRENT_CGROUP_ID: i32 = 80;
    pub const MSG_REDIRECT_MAP: i32 = 60;
    pub const SK_LOOKUP_UDP: i32 = 85;
    pub const SK_RELEASE: i32 = 86;
    pub const SK_FULLSOCK: i32 = 95;
    pub const SKC_LOOKUP_TCP: i32 = 99;
    pub const SK_STORAGE_GET: i32 = 107;
    pub const PROBE_READ_KERNEL: i32 = 113;
    pub const GET_NETNS_COOKIE: i32 = 122;
    pub const SK_ASSIGN: i32 = 124;
    pub const SET_RETVAL: i32 = 187;
}

/// A program under construction.
#[derive(Default)]
pub struct Asm {
    words: Vec<u64>,
    /// Jumps that lead to the end, which is not known yet.
    leaving: Vec<usize>,
}

impl Asm {
    /// An empty program.
    pub fn new() -> Asm {
        Asm::default()
    }

    fn push(mut self, opcode: u8, dst: Reg, src: Reg, offset: i16, immediate: i32) -> Asm {
        let word = u64::from(opcode)
            | u64::from(dst | src << 4) << 8
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(immediate.cast_unsigned()) << 32;
        self.words.push(word);
        self
    }

    /// `dst = immediate`
    pub fn set(self, dst: Reg, immediate: i32) -> Asm {
        self.push(0xb7, dst, 0, 0, immediate)
    }

    /// `dst = src`
    pub fn copy(self, dst: Reg, src: Reg) -> Asm {
        self.push(0xbf, dst, src, 0, 0)
    }

    /// `dst += immediate`
    pub fn add(self, dst: Reg, immediate: i32) -> Asm {
        self.push(0x07, dst, 0, 0, immediate)
    }

    /// `dst = *(u32 *)(src + offset)`
    pub fn load32(self, dst: Reg, src: Reg, offset: i16) -> Asm {
        self.push(0x61, dst, src, offset, 0)
    }

    /// `dst = *(u64 *)(src + offset)`
    pub fn load64(self, dst: Reg, src: Reg, offset: i16) -> Asm {
        self.push(0x79, dst, src, offset, 0)
    }

    /// `dst = *(u8 *)(src + offset)`
    pub fn load8(self, dst: Reg, src: Reg, offset: i16) -> Asm {
        self.push(0x71, dst, src, offset, 0)
    }

    /// `*(u32 *)(dst + offset) = src`
    pub fn store32(self, dst: Reg, offset: i16, src: Reg) -> Asm {
        self.push(0x63, dst, src, offset, 0)
    }

    /// `*(u64 *)(dst + offset) = immediate`
    pub fn put64(self, dst: Reg, offset: i16, immediate: i32) -> Asm {
        self.push(0x7a, dst, 0, offset, immediate)
    }

    /// `*(u16 *)(dst + offset) = immediate`
    pub fn put16(self, dst: Reg, offset: i16, immediate: u16) -> Asm {
        self.push(0x6a, dst, 0, offset, immediate.into())
    }

    /// `dst = map`
    pub fn map(self, dst: Reg, map: BorrowedFd<'_>) -> Asm {
        const IS_MAP: Reg = 1;
        self.push(0x18, dst, IS_MAP, 0, map.as_raw_fd()).push(0, 0, 0, 0, 0)
    }

    /// `r0 = helper(r1, …, r5)`
    pub fn call(self, helper: i32) -> Asm {
        self.push(0x85, 0, 0, 0, helper)
    }

    /// Goes to the end if `dst == immediate`.
    pub fn leave_if(mut self, dst: Reg, immediate: i32) -> Asm {
        self.leaving.push(self.words.len());
        self.push(0x15, dst, 0, 0, immediate)
    }

    /// Goes to the end if the low halves differ: `(u32) dst != immediate`.
    pub fn leave_unless(mut self, dst: Reg, immediate: u32) -> Asm {
        self.leaving.push(self.words.len());
        self.push(0x56, dst, 0, 0, immediate.cast_signed())
    }

    /// The end: the program's result.
    pub fn end(self, result: i32) -> Vec<u64> {
        let end = self.words.len();
        let leaving = self.leaving.clone();
        let mut words = self.set(R0, result).push(0x95, 0, 0, 0, 0).words;
        for at in leaving {
            words[at] |= ((end - at - 1) as u64) << 16;
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_as_the_kernel_decodes() {
        // From the assembler of LLVM: r0 = 1; exit.
        assert_eq!(Asm::new().end(1), [0x0000_0001_0000_00b7, 0x95]);
        // r2 = *(u64 *)(r1 + 64); if r2 == 0 goto +1; r6 = r2; r0 = 0; exit.
        let words = Asm::new().load64(R2, R1, 64).leave_if(R2, 0).copy(R6, R2).end(0);
        assert_eq!(words, [0x0040_1279, 0x0001_0215, 0x26bf, 0xb7, 0x95]);
    }
}
