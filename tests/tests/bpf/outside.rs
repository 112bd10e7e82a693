//! What the mesh costs a socket that has nothing to do with it: one look into a map in each run of a hook, at most. In: the
//! object's instructions. Every way through a program is followed on which all looks find nothing, as they do for such a
//! socket, and the looks on it are counted. Nothing is loaded.

use std::collections::{BTreeMap, BTreeSet};

use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use mesh_agent::kernel::hooks;

use super::support::*;

/// Helpers that look into a map or a socket table (`enum bpf_func_id`), and what they return where there is nothing.
const LOOKS: [(i32, i64); 11] = [
    (1, NULL),      // map_lookup_elem
    (2, UNKNOWN),   // map_update_elem
    (3, ENOENT),    // map_delete_elem
    (84, NULL),     // sk_lookup_tcp
    (85, NULL),     // sk_lookup_udp
    (99, NULL),     // skc_lookup_tcp
    (107, NULL),    // sk_storage_get
    (108, ENOENT),  // sk_storage_delete
    (130, UNKNOWN), // ringbuf_output
    (131, UNKNOWN), // ringbuf_reserve
    (195, NULL),    // map_lookup_percpu_elem
];
const NULL: i64 = 0;
const ENOENT: i64 = -2;
const UNKNOWN: i64 = i64::MIN;

/// What is known on the way: registers, and places of the stack frame.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Known {
    registers: [Option<i64>; 11],
    stack: BTreeMap<i16, i64>,
}

#[test]
fn outside_the_mesh_a_hook_makes_one_look_at_most() {
    require();
    let bytes = std::fs::read(object()).unwrap();
    let object = Object::parse(&bytes).unwrap();
    let mut found = BTreeMap::new();
    for hook in hooks::cgroup() {
        let program = &object.programs[hook.program];
        let function = &object.functions[&program.function_key()];
        found.insert(hook.program, most_looks(hook.program, &function.instructions));
    }
    assert!(found.values().all(|looks| *looks <= 1), "looks on the longest way: {found:?}");
    // Those that never look see nothing at all, and would be no hooks of ours.
    assert!(found.values().all(|looks| *looks == 1), "looks on the longest way: {found:?}");
}

/// The most looks on any way through a program.
fn most_looks(name: &str, program: &[bpf_insn]) -> usize {
    let mut seen = BTreeSet::new();
    let mut ways = vec![(0_usize, 0_usize, Known::default())];
    let mut most = 0;
    while let Some((mut at, mut looks, mut known)) = ways.pop() {
        loop {
            most = most.max(looks);
            if !seen.insert((at, looks, known.clone())) {
                break;
            }
            assert!(seen.len() < 2_000_000, "{name} has too many ways");
            let i = program[at];
            let (dst, src) = (usize::from(i.dst_reg()), usize::from(i.src_reg()));
            at += 1;
            match i.code & 7 {
                // Loads of 64 bits in two instructions: addresses of maps and globals, for us.
                0 => {
                    known.registers[dst] = None;
                    at += 1;
                }
                // Loads; only whole spilled registers are followed.
                1 => {
                    known.registers[dst] =
                        if src == 10 && i.code == 0x79 { known.stack.get(&i.off).copied() } else { None }
                }
                // Stores forget what they may touch.
                2 | 3 => {
                    known.stack.retain(|place, _| (place - i.off).abs() >= 8);
                    if dst == 10
                        && i.code == 0x7b
                        && let Some(value) = known.registers[src]
                    {
                        known.stack.insert(i.off, value);
                    }
                }
                4 | 7 => compute(&i, dst, src, &mut known),
                class => {
                    let wide = class == 5;
                    match i.code & 0xf0 {
                        0x90 => break,
                        0x80 => {
                            assert_eq!(src, 0, "{name} calls a function of its own, which is not followed");
                            let look = LOOKS.iter().find(|(helper, _)| *helper == i.imm);
                            looks += usize::from(look.is_some());
                            known.registers[..6].fill(None);
                            known.registers[0] = look.map(|look| look.1).filter(|value| *value != UNKNOWN);
                            // What helpers write on the frame is never a place where a register was put.
                        }
                        0x00 => at = jump(at, if wide { i64::from(i.off) } else { i64::from(i.imm) }),
                        condition => {
                            let right = if i.code & 8 == 0 { Some(i64::from(i.imm)) } else { known.registers[src] };
                            let left = known.registers[dst];
                            let target = jump(at, i64::from(i.off));
                            match left.zip(right).map(|(left, right)| holds(condition, wide, left, right)) {
                                Some(true) => at = target,
                                Some(false) => {}
                                None => ways.push((target, looks, known.clone())),
                            }
                        }
                    }
                }
            }
        }
    }
    most
}

fn jump(from: usize, by: i64) -> usize {
    usize::try_from(from as i64 + by).unwrap()
}

/// Arithmetic, as far as null pointers and errors go through it.
fn compute(i: &bpf_insn, dst: usize, src: usize, known: &mut Known) {
    let right = if i.code & 8 == 0 { Some(i64::from(i.imm)) } else { known.registers[src] };
    let left = known.registers[dst];
    let value = match i.code & 0xf0 {
        0xb0 if i.off == 0 => right,
        0x00 => left.zip(right).map(|(left, right)| left.wrapping_add(right)),
        0x40 => left.zip(right).map(|(left, right)| left | right),
        0x50 => left.zip(right).map(|(left, right)| left & right),
        _ => None,
    };
    let narrow = i.code & 7 == 4;
    known.registers[dst] = value.map(|value| if narrow { i64::from(value as u32) } else { value });
}

/// Whether a jump is taken (instruction-set.rst, jump instructions).
fn holds(condition: u8, wide: bool, left: i64, right: i64) -> bool {
    let (left, right) = if wide { (left, right) } else { (i64::from(left as i32), i64::from(right as i32)) };
    let unsigned = |value: i64| if wide { value as u64 } else { u64::from(value as u32) };
    match condition {
        0x10 => left == right,
        0x20 => unsigned(left) > unsigned(right),
        0x30 => unsigned(left) >= unsigned(right),
        0x40 => left & right != 0,
        0x50 => left != right,
        0x60 => left > right,
        0x70 => left >= right,
        0xa0 => unsigned(left) < unsigned(right),
        0xb0 => unsigned(left) <= unsigned(right),
        0xc0 => left < right,
        0xd0 => left <= right,
        other => panic!("no such jump: {other:#x}"),
    }
}
