//! Which TCP packets may leave a pod: the backstop behind the connect hooks; and what would let packets go around it. In:
//! who sends, and what the packet is. Out: yes or no. Reads no map: what costs a lookup is an argument to be called when it matters.
//!
//! An enrolled pod's connections go to the agent over loopback, so on its other interfaces there is TCP of four kinds
//! only: the agent's, that of sockets whose connect hook let them go, that of connections older than the enrolment, and
//! what the kernel says without a socket. Anything else came by a raw or packet socket, or by a way into the stack that
//! no hook saw.

/// FIN (RFC 9293, 3.1).
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;

/// The socket that sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The agent's.
    Agent,
    /// An application's, which the connect hook let go.
    Released,
    /// A handshake or a connection in TIME_WAIT: only the kernel sends by these.
    Kernel,
    /// None. Applications always send by one.
    Nobody,
    /// Another: older than the enrolment, the kernel's own for resets and acknowledgements, raw, or packet.
    Unknown,
}

/// A TCP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its flags, as on the wire.
    pub flags: u8,
    /// It carries no data.
    pub empty: bool,
}

/// Level of packet sockets' options, and the one by which they send without tc (packet(7)).
const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;
/// Level of AF_XDP sockets' options, and the one without which none can send (linux/if_xdp.h).
const SOL_XDP: i32 = 283;
const XDP_UMEM_REG: i32 = 4;

/// Whether this option of a socket lets it send around tc egress, where everything here is decided.
#[inline(always)]
pub fn goes_around(level: i32, option: i32) -> bool {
    (level == SOL_PACKET && option == PACKET_QDISC_BYPASS) || (level == SOL_XDP && option == XDP_UMEM_REG)
}

/// Whether a segment may leave. `kept`: its connection is one that may go on since before the enrolment. `answers`: an
/// answer to it would find a handshake, a connection in TIME_WAIT, or one of the agent.
#[inline(always)]
pub fn may_leave(
    sender: Sender,
    segment: Segment,
    kept: impl FnOnce() -> bool,
    answers: impl FnOnce() -> bool,
) -> bool {
    match sender {
        Sender::Agent | Sender::Released | Sender::Kernel => return true,
        Sender::Nobody | Sender::Unknown => {}
    }
    if kept() {
        return true;
    }
    // Without data nothing of an application's leaves, and none of these opens a connection.
    if !segment.empty {
        return false;
    }
    match segment.flags & (SYN | ACK | RST | FIN) {
        flags if flags & RST != 0 => true,
        // A SYN cookie; nobody else sends without a socket.
        flags if flags == SYN | ACK => matches!(sender, Sender::Nobody),
        ACK => answers(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaves(sender: Sender, flags: u8, empty: bool, kept: bool, answers: bool) -> bool {
        may_leave(sender, Segment { flags, empty }, || kept, || answers)
    }

    #[test]
    fn table() {
        use Sender::{Agent, Kernel, Nobody, Released, Unknown};
        for (sender, flags, empty, kept, answers, expected) in [
            (Agent, SYN, true, false, false, true),
            (Released, ACK, false, false, false, true),
            (Kernel, SYN | ACK, true, false, false, true),
            // A raw socket opens, answers, sends, and closes nothing.
            (Unknown, SYN, true, false, true, false),
            (Unknown, SYN | ACK, true, false, true, false),
            (Unknown, ACK, false, false, true, false),
            (Unknown, FIN | ACK, true, false, true, false),
            (Unknown, ACK, true, false, false, false),
            // What the kernel says by its own socket.
            (Unknown, RST, true, false, false, true),
            (Unknown, RST | ACK, true, false, false, true),
            (Unknown, ACK, true, false, true, true),
            (Unknown, RST, false, false, false, false),
            // A SYN cookie, and a forwarded connection.
            (Nobody, SYN | ACK, true, false, false, true),
            (Nobody, SYN, true, false, false, false),
            (Nobody, ACK, false, false, false, false),
            // Older than the enrolment.
            (Unknown, ACK, false, true, false, true),
            (Unknown, FIN | ACK, true, true, false, true),
        ] {
            let left = leaves(sender, flags, empty, kept, answers);
            assert_eq!(left, expected, "{sender:?} flags {flags:#x} empty {empty} kept {kept}");
        }
    }

    #[test]
    fn options_that_go_around() {
        for (level, option, around) in
            [(263, 20, true), (263, 5, false), (1, 20, false), (283, 4, true), (283, 2, false), (0, 4, false)]
        {
            assert_eq!(goes_around(level, option), around, "{level} {option}");
        }
    }

    proptest! {
        /// Whatever it sends, who has no word for its connection opens none and sends no data.
        #[test]
        fn nothing_unexplained_opens_or_carries(flags: u8, empty: bool, answers: bool) {
            if leaves(Sender::Unknown, flags, empty, false, answers) {
                prop_assert!(empty);
                prop_assert!(flags & RST != 0 || flags & SYN == 0);
            }
            if leaves(Sender::Nobody, flags, empty, false, answers) {
                prop_assert!(empty);
                prop_assert!(flags & RST != 0 || flags & (SYN | ACK) != SYN);
            }
        }
    }
}
