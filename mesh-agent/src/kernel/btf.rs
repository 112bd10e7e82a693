//! Where members of the kernel's own structures stand, by the types that it tells of itself (BTF; the kernel's
//! Documentation/bpf/btf.rst). In: /sys/kernel/btf/vmlinux. Out: offsets. One pass over the types that looks at structures
//! only: a parser that keeps all of them takes longer than loading the programs.

use std::fs;
use std::path::Path;

/// Where the kernel tells its types.
const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u32 = 0xeb9f;
const HEADER: usize = 24;
/// Bytes of a type without what follows for its kind, and of a member of a structure.
const TYPE: usize = 12;
const KIND_STRUCT: u32 = 4;

/// The offset in bytes of a direct member of each of these structures, in this order. `None` if the kernel does not tell one of
/// them, or tells something else than such a member at a whole byte.
pub(super) fn kernel_offsets<const N: usize>(of: [(&str, &str); N]) -> Option<[u32; N]> {
    Types::new(&fs::read(Path::new(KERNEL)).ok()?)?.offsets(of)
}

struct Types<'a> {
    types: &'a [u8],
    names: &'a [u8],
}

impl<'a> Types<'a> {
    fn new(data: &'a [u8]) -> Option<Types<'a>> {
        if number(data, 0)? & 0xffff != MAGIC {
            return None;
        }
        let header = number(data, 4)? as usize;
        let section = |offset: usize, size: usize| {
            let start = header.checked_add(number(data, offset)? as usize)?;
            data.get(start..start.checked_add(number(data, size)? as usize)?)
        };
        if header < HEADER {
            return None;
        }
        Some(Types { types: section(8, 12)?, names: section(16, 20)? })
    }

    fn offsets<const N: usize>(&self, of: [(&str, &str); N]) -> Option<[u32; N]> {
        let mut found = [None; N];
        let mut rest = self.types;
        while !rest.is_empty() {
            let info = number(rest, 4)?;
            let (kind, length) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let more = match kind {
                // Integers, variables, declaration tags.
                1 | 14 | 17 => 4,
                // Arrays.
                3 => 12,
                // Structures, unions, sections, 64-bit enumerations.
                4 | 5 | 15 | 19 => 12 * length,
                // Enumerations, parameters.
                6 | 13 => 8 * length,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
            let members = rest.get(TYPE..TYPE + more)?;
            if kind == KIND_STRUCT {
                for (place, (structure, member)) in found.iter_mut().zip(of) {
                    if place.is_none() && self.is_named(rest, structure) {
                        *place = self.member(members, member, info >> 31 != 0);
                    }
                }
            }
            rest = rest.get(TYPE + more..)?;
        }
        let found = found.map(|one| one.unwrap_or(u32::MAX));
        (!found.contains(&u32::MAX)).then_some(found)
    }

    /// Whether what stands there begins with the offset of this name.
    fn is_named(&self, at: &[u8], name: &str) -> bool {
        let Some(rest) = number(at, 0).and_then(|offset| self.names.get(offset as usize..)) else { return false };
        rest.strip_prefix(name.as_bytes()).is_some_and(|end| end.first() == Some(&0))
    }

    /// `with_bits`: offsets carry the width of bit fields in their highest byte.
    fn member(&self, members: &[u8], name: &str, with_bits: bool) -> Option<u32> {
        let (members, _) = members.as_chunks::<12>();
        let offset = number(members.iter().find(|member| self.is_named(*member, name))?, 8)?;
        let (bits, width) = if with_bits { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
        (width == 0 && bits % 8 == 0).then_some(bits / 8)
    }
}

fn number(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An integer, a structure of two members and one without a name, told as the kernel does.
    fn told(second_offset: u32, flag: u32) -> Vec<u8> {
        let names = b"\0int\0pair\0one\0two\0";
        let integer = [1, 1 << 24, 4, 32];
        let pair = [5, flag << 31 | 4 << 24 | 2, 16, 10, 1, 0, 14, 1, second_offset];
        let nameless = [0, 4 << 24, 0];
        let types: Vec<u32> = integer.into_iter().chain(pair).chain(nameless).collect();
        let size = types.len() as u32 * 4;
        let header = [MAGIC | 1 << 16, HEADER as u32, 0, size, size, names.len() as u32];
        let numbers = header.into_iter().chain(types).flat_map(u32::to_ne_bytes);
        numbers.chain(names.iter().copied()).collect()
    }

    #[test]
    fn members_of_structures() {
        let find = |data: &[u8], of| Types::new(data).and_then(|types| types.offsets([of]));
        assert_eq!(find(&told(64, 0), ("pair", "two")), Some([8]));
        assert_eq!(find(&told(64, 0), ("pair", "one")), Some([0]));
        assert_eq!(find(&told(64, 1), ("pair", "two")), Some([8]));
        for nothing in [("pair", "tw"), ("pair", "three"), ("pai", "two"), ("int", "two"), ("", "two")] {
            assert_eq!(find(&told(64, 0), nothing), None, "{nothing:?}");
        }
        assert_eq!(find(&told(65, 0), ("pair", "two")), None, "not at a whole byte");
        assert_eq!(find(&told(3 << 24 | 64, 1), ("pair", "two")), None, "a bit field");
    }

    #[test]
    fn what_is_cut_off_tells_nothing() {
        let whole = told(64, 0);
        for length in 0..whole.len() {
            let cut = Types::new(&whole[..length]).and_then(|types| types.offsets([("pair", "two")]));
            assert_eq!(cut, None, "{length}");
        }
        let mut other = whole.clone();
        other[0] ^= 1;
        assert!(Types::new(&other).is_none());
    }

    #[test]
    fn this_kernel() {
        let found = kernel_offsets([("sock_common", "skc_state"), ("sock", "__sk_common")]);
        assert!(found.is_some_and(|[state, common]| state < 64 && common == 0), "{found:?}");
        assert_eq!(kernel_offsets([("sock_common", "skc_nothing")]), None);
    }
}
