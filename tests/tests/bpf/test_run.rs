//! The tc programs by themselves: a packet in, a verdict out (BPF_PROG_TEST_RUN). Packets of every shape, and random ones.
//! Such a run has no way to hand a packet to a listener, so what ingress would give to the agent it drops here, and counts
//! as `inbound_assign_failed`: what counts is that it is not left to the kernel.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mesh_common::abi::{self, Counter, maps};

use super::packets::{self, ACK, IPV4, IPV6, RST, SYN, TCP, UDP, packet, packet_from, segment, segment_with};
use super::support::*;

const ICMP: u8 = 1;
const FRAGMENT: u8 = 44;
const OPTIONS: u8 = 60;

/// A program, run in the pod as if on its eth0.
struct Program {
    fd: OwnedFd,
    index: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Said {
    Next,
    Drop,
    /// The kernel takes no such packet.
    Refused,
}

impl Program {
    /// The instance for this mesh's pod: of its name, with its maps.
    fn of(mesh: &Mesh, name: &str) -> Program {
        let own = aya::maps::MapInfo::from_pin(map(&mesh.pins, maps::WORKLOADS)).unwrap().id();
        let found = aya::programs::loaded_programs().flatten().find(|program| {
            program.name_as_str() == Some(name)
                && program.map_ids().is_ok_and(|ids| ids.is_some_and(|ids| ids.contains(&own)))
        });
        let fd =
            found.unwrap_or_else(|| panic!("{name} is not loaded")).fd().unwrap().as_fd().try_clone_to_owned().unwrap();
        let index = mesh.net.pod.run(|| nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
        Program { fd, index }
    }

    fn run(&self, mesh: &Mesh, frame: &[u8]) -> Said {
        /// `struct __sk_buff`, as far as the interface's number.
        const CONTEXT: usize = 192;
        const IFINDEX: usize = 40;
        /// The part of `union bpf_attr` for this command (linux/bpf.h).
        #[repr(C)]
        #[derive(Default)]
        struct Attr {
            program: u32,
            retval: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            context_size_in: u32,
            context_size_out: u32,
            context_in: u64,
            context_out: u64,
            flags: u32,
            cpu: u32,
            batch: u32,
            pad: u32,
        }
        const PROG_TEST_RUN: libc::c_long = 10;
        let mut context = [0_u8; CONTEXT];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&self.index.to_ne_bytes());
        let mut attr = Attr {
            program: self.fd.as_raw_fd().cast_unsigned(),
            size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: 1,
            context_size_in: CONTEXT as u32,
            context_in: context.as_ptr() as u64,
            ..Attr::default()
        };
        // SAFETY: the attributes have the kernel's layout, and what they point to lives until the call returns.
        let mut call = || unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut attr, size_of::<Attr>()) };
        let done =
            mesh.net.pod.run(|| if call() == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }).unwrap();
        match (done, attr.retval.cast_signed()) {
            (Ok(()), -1) => Said::Next,
            (Ok(()), 2) => Said::Drop,
            (Ok(()), other) => panic!("verdict {other}"),
            (Err(e), _) if e.raw_os_error() == Some(libc::EINVAL) => Said::Refused,
            (Err(e), _) => panic!("{e}"),
        }
    }
}

fn frame(ethertype: u16, content: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &ethertype.to_be_bytes()[..], content].concat()
}

fn ip_frame(packet: &[u8]) -> Vec<u8> {
    frame(if packet[0] >> 4 == 4 { IPV4 } else { IPV6 }, packet)
}

/// IPv6 content behind eight bytes of a header that says what comes next.
fn behind(next: u8, rest: [u8; 7], content: &[u8]) -> Vec<u8> {
    [&[next][..], &rest, content].concat()
}

/// An IPv4 packet with options: three words that say nothing.
fn with_options(mut packet: Vec<u8>) -> Vec<u8> {
    packet[0] = 0x48;
    packet.splice(20..20, [1; 12]);
    let total = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet
}

/// Every packet goes both ways: to the pod, and out of it by a socket that no hook has seen.
#[test]
fn packets_of_every_shape() {
    use Said::{Drop, Next};
    let mesh = Mesh::of(Net::new(), abi::UDP_DENY);
    let (ingress, egress) = (Program::of(&mesh, "mesh_ingress"), Program::of(&mesh, "mesh_egress"));
    for (wire, pod) in [("10.77.0.1:4000", "10.77.0.2:8080"), ("[fd77::1]:4000", "[fd77::2]:8080")] {
        let v4 = at(pod).is_ipv4();
        let to_pod =
            |next: u8, word: u16, content: &[u8]| packet_from(at(wire).ip(), at(pod).ip(), next, [1, word], content);
        let syn = segment(at(wire), at(pod), SYN, b"");
        let long = segment_with(at(wire), at(pod), [1, 1], ACK, &[1; 20], b"something to say");
        let reset = segment(at(wire), at(pod), RST, b"");
        let mut small_offset = syn.clone();
        small_offset[12] = 0x10;
        let mut large_offset = reset.clone();
        large_offset[12] = 0xf0;
        let udp = packets::udp(4000, 8080, b"datagram");
        let kind = if v4 { IPV4 } else { IPV6 };
        let mut cases = vec![
            ("SYN", ip_frame(&to_pod(TCP, 0, &syn)), Drop, Drop),
            ("data", ip_frame(&to_pod(TCP, 0, &long)), Drop, Drop),
            ("reset", ip_frame(&to_pod(TCP, 0, &reset)), Drop, Next),
            // Nothing is empty whose header is longer than itself.
            ("offset too small", ip_frame(&to_pod(TCP, 0, &small_offset)), Drop, Drop),
            ("offset too large", ip_frame(&to_pod(TCP, 0, &large_offset)), Drop, Drop),
            ("UDP", ip_frame(&to_pod(UDP, 0, &udp)), Next, Drop),
            ("UDP cut off", ip_frame(&to_pod(UDP, 0, &udp[..3])), Next, Drop),
            ("ICMP", ip_frame(&to_pod(if v4 { ICMP } else { 58 }, 0, &[8; 16])), Next, Next),
            // The kernel drops what ingress leaves to it here.
            ("TCP cut off", ip_frame(&to_pod(TCP, 0, &syn[..13])), Next, Drop),
            ("TCP without a byte", ip_frame(&to_pod(TCP, 0, b"")), Next, Drop),
            ("a tag", frame(0x8100, &[&[0, 0][..], &kind.to_be_bytes(), &to_pod(TCP, 0, &syn)].concat()), Drop, Drop),
            ("of no known kind", frame(0x88b5, &to_pod(TCP, 0, &syn)), Next, Next),
        ];
        if v4 {
            cases.extend([
                ("options", ip_frame(&with_options(to_pod(TCP, 0, &syn))), Drop, Drop),
                ("options and UDP", ip_frame(&with_options(to_pod(UDP, 0, &udp))), Next, Drop),
                // A connection in pieces is sk_lookup's.
                ("a first piece", ip_frame(&to_pod(TCP, 0x2000, &syn[..8])), Next, Drop),
                ("a later piece", ip_frame(&to_pod(TCP, 1, &syn[8..])), Next, Drop),
                ("a later piece of UDP", ip_frame(&to_pod(UDP, 1, &udp)), Next, Drop),
                ("another version", frame(IPV4, &[0x60; 40]), Next, Drop),
            ]);
        } else {
            let behind_options = to_pod(OPTIONS, 0, &behind(TCP, [0; 7], &syn));
            let many = (0..8).fold((TCP, syn.clone()), |(next, all), _| (OPTIONS, behind(next, [0; 7], &all)));
            cases.extend([
                ("options", ip_frame(&behind_options), Next, Drop),
                ("many options", ip_frame(&to_pod(many.0, 0, &many.1)), Drop, Drop),
                ("options cut off", ip_frame(&to_pod(OPTIONS, 0, &[TCP])), Drop, Drop),
                ("options and UDP", ip_frame(&to_pod(OPTIONS, 0, &behind(UDP, [0; 7], &udp))), Next, Drop),
                ("a whole piece", ip_frame(&to_pod(FRAGMENT, 0, &behind(TCP, [0; 7], &syn))), Next, Drop),
                (
                    "a later piece",
                    ip_frame(&to_pod(FRAGMENT, 0, &behind(TCP, [0, 0, 8, 0, 0, 0, 0], &syn))),
                    Next,
                    Drop,
                ),
                ("pieces in pieces", ip_frame(&to_pod(FRAGMENT, 0, &behind(FRAGMENT, [0; 7], &syn))), Drop, Drop),
                ("another version", frame(IPV6, &[0x45; 60]), Next, Drop),
            ]);
        }
        for (what, frame, comes, leaves) in cases {
            assert_eq!(ingress.run(&mesh, &frame), comes, "{pod}: {what} comes");
            assert_eq!(egress.run(&mesh, &frame), leaves, "{pod}: {what} leaves");
        }
    }
    assert_ne!(mesh.count(Counter::InboundAssignFailed), 0);
    assert_eq!(mesh.count(Counter::InboundForeign), 5, "what hides whose it is");
}

/// Where nothing is forbidden the kernel gets what comes, and asks sk_lookup if nobody has it: but not what claims to come
/// from the pod itself, for which sk_lookup has no word, and no SYN if there is no agent.
#[test]
fn what_is_left_to_the_kernel() {
    use Said::{Drop, Next};
    let mut mesh = Mesh::new();
    mesh.kernel.set_inbound_modes(ID, false, &[(8081, true)]).unwrap();
    let ingress = Program::of(&mesh, "mesh_ingress");
    let run = |mesh: &Mesh, from: &str, to: &str, flags: u8| {
        let content = segment(at(from), at(to), flags, b"");
        ingress.run(mesh, &ip_frame(&packet_from(at(from).ip(), at(to).ip(), TCP, [1, 0], &content)))
    };
    let ends = [("10.77.0.1:4000", "10.77.0.2"), ("[fd77::1]:4000", "[fd77::2]")];
    for (wire, pod) in ends {
        for flags in [SYN, ACK, RST, SYN | ACK] {
            for (port, said) in [(8080, Next), (15008, Next), (8081, Drop), (8081 + 128, Next)] {
                assert_eq!(run(&mesh, wire, &format!("{pod}:{port}"), flags), said, "{port} {flags:#x}");
            }
            // `lookup` takes nothing that says to come from the pod itself, so what opens a connection is looked at here.
            let said = if flags == SYN { Drop } else { Next };
            assert_eq!(run(&mesh, &format!("{pod}:4000"), &format!("{pod}:8080"), flags), said, "{flags:#x}");
        }
    }
    mesh.lose_the_agent();
    for (wire, pod) in ends {
        assert_eq!(run(&mesh, wire, &format!("{pod}:8080"), SYN), Drop);
        assert_eq!(run(&mesh, wire, &format!("{pod}:8080"), ACK), Next, "sk_lookup refuses it");
    }
    assert!(mesh.count(Counter::InboundRefused) >= 2);
}

/// What a frame carries in the eyes of who gets it: only what is in no doubt.
#[derive(Debug, PartialEq)]
enum Carries {
    /// TCP; whether it is whole, so that ingress has to take it (the kernel drops others), and whether it is a reset.
    Tcp(bool, bool),
    Udp,
    Other,
}

fn carries(frame: &[u8]) -> Carries {
    let Some(packet) = frame.get(14..) else { return Carries::Other };
    let (next, header, pieces) = match (u16::from_be_bytes([frame[12], frame[13]]), packet.first().map(|b| b >> 4)) {
        (IPV4, Some(4)) if packet.len() >= 20 => {
            let word = u16::from_be_bytes([packet[6], packet[7]]);
            (packet[9], usize::from(packet[0] & 15) * 4, word & 0x3fff != 0)
        }
        (IPV6, Some(6)) if packet.len() >= 40 => (packet[6], 40, false),
        _ => return Carries::Other,
    };
    match next {
        UDP | 136 => Carries::Udp,
        TCP => {
            let reset = packet.get(header + 13).is_some_and(|flags| flags & RST != 0);
            Carries::Tcp(!pieces && packet.len() >= header + 20, reset && !pieces)
        }
        _ => Carries::Other,
    }
}

/// Frames that begin as good ones and have some bytes changed, the same ones in each run.
struct Random {
    state: u64,
    seeds: [Vec<u8>; 5],
}

impl Random {
    fn new() -> Random {
        let syn6 = segment(at("[fd77::1]:4000"), at("[fd77::2]:8080"), SYN, b"some data");
        let seeds = [
            ip_frame(&packet(ip_of(POD4), TCP, 0, &segment(at("10.77.0.1:4000"), at("10.77.0.2:8080"), SYN, b""))),
            ip_frame(&packet(ip_of(POD4), UDP, 0, &packets::udp(4000, 53, b"question"))),
            ip_frame(&packet(ip_of(POD6), TCP, 0, &syn6)),
            ip_frame(&packet(ip_of(POD6), OPTIONS, 0, &behind(TCP, [0; 7], &syn6))),
            ip_frame(&packet(ip_of(POD6), FRAGMENT, 0, &behind(UDP, [0; 7], &packets::udp(1, 53, b"question")))),
        ];
        Random { state: 0x1234_5678_9abc_def1, seeds }
    }

    fn number(&mut self) -> u32 {
        let state = &mut self.state;
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 16) as u32
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut frame = self.seeds[self.number() as usize % self.seeds.len()].clone();
        for _ in 0..self.number() % 6 {
            let place = self.number() as usize % frame.len();
            frame[place] = self.number() as u8;
        }
        if self.number().is_multiple_of(4) {
            frame.truncate(14 + self.number() as usize % (frame.len() - 14));
        }
        if self.number().is_multiple_of(16) {
            frame.iter_mut().skip(14).for_each(|byte| *byte = self.number() as u8);
        }
        frame
    }
}

/// Where nothing is forbidden most packets get a short look only: it says what the long one says, whatever the bytes.
#[test]
fn a_short_look_says_what_a_long_one_does() {
    const PACKETS: u32 = 10_000;
    let mut mesh = Mesh::new();
    let cookie = mesh.net.pod.cookie();
    let place = abi::unguarded_at(cookie);
    let mut unguarded = array::<abi::Unguarded>(&mesh.pins, maps::UNGUARDED);
    assert_eq!(unguarded.get(&place, 0).unwrap().netns, cookie);
    // What opens a connection is then refused, and everything else left to the kernel.
    mesh.lose_the_agent();
    let ingress = Program::of(&mesh, "mesh_ingress");
    let mut random = Random::new();
    let mut verdicts = [0_u32; 3];
    for i in 0..PACKETS {
        if i == PACKETS / 2 {
            mesh.kernel.set_inbound_modes(ID, false, &[(8080, true)]).unwrap();
            assert_ne!(unguarded.get(&place, 0).unwrap().mode_ports, [0; 4]);
        }
        let frame = random.frame();
        let short = ingress.run(&mesh, &frame);
        // Somebody else's place.
        let there = unguarded.get(&place, 0).unwrap();
        let others = abi::Unguarded { netns: cookie + u64::from(abi::MAX_UNGUARDED), ..there };
        unguarded.set(place, others, 0).unwrap();
        assert_eq!(short, ingress.run(&mesh, &frame), "packet {i}: {frame:02x?}");
        unguarded.set(place, there, 0).unwrap();
        verdicts[short as usize] += 1;
    }
    assert!(verdicts[..2].iter().all(|count| *count > PACKETS / 20), "{verdicts:?}");
    // What is not open needs a long look, and what is gone is named no more.
    mesh.kernel.set_inbound_modes(ID, true, &[]).unwrap();
    assert_eq!(unguarded.get(&place, 0).unwrap(), abi::Unguarded::default());
    // Nor is somebody else's place taken for one's own.
    let others = abi::Unguarded { netns: cookie + u64::from(abi::MAX_UNGUARDED), ..Default::default() };
    unguarded.set(place, others, 0).unwrap();
    let (from, to) = (at("10.77.0.1:4000"), at("10.77.0.2:8080"));
    let data = packet_from(from.ip(), to.ip(), TCP, [1, 0], &segment(from, to, ACK, b"data"));
    assert_eq!(ingress.run(&mesh, &ip_frame(&data)), Said::Drop);
    unguarded.set(place, abi::Unguarded::default(), 0).unwrap();
    mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
    assert_eq!(unguarded.get(&place, 0).unwrap(), abi::Unguarded { netns: cookie, ..Default::default() });
    mesh.kernel.withdraw(ID);
    assert_eq!(unguarded.get(&place, 0).unwrap(), abi::Unguarded::default());
}

/// Whatever the bytes: the programs end with a verdict, and what is TCP or UDP beyond doubt does not pass by them.
#[test]
fn random_packets_pass_nowhere() {
    const PACKETS: u32 = 30_000;
    let mesh = Mesh::of(Net::new(), abi::UDP_DENY);
    let (ingress, egress) = (Program::of(&mesh, "mesh_ingress"), Program::of(&mesh, "mesh_egress"));
    let mut random = Random::new();
    let mut verdicts = [0_u32; 3];
    for i in 0..PACKETS {
        let frame = random.frame();
        let (comes, leaves, what) = (ingress.run(&mesh, &frame), egress.run(&mesh, &frame), carries(&frame));
        for said in [comes, leaves] {
            verdicts[said as usize] += 1;
        }
        match what {
            Carries::Tcp(whole, reset) => {
                assert!(!whole || comes != Said::Next, "packet {i} comes in: {frame:02x?}");
                assert!(reset || leaves != Said::Next, "packet {i} leaves: {frame:02x?}");
            }
            Carries::Udp => assert_ne!(leaves, Said::Next, "packet {i} leaves: {frame:02x?}"),
            Carries::Other => {}
        }
    }
    assert!(verdicts[0] > PACKETS / 20 && verdicts[1] > PACKETS / 2, "{verdicts:?}");
}
