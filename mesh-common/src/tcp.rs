//! What a TCP socket counts of itself. In: its counts, its state. Out: bytes of the application's, and the places in
//! TCP_STATS. The kernel's counts of bytes are of sequence numbers, and SYN and FIN have one each (RFC 9293, 3.4).

use crate::abi::Path;

/// States, linux/net/tcp_states.h.
pub const ESTABLISHED: u32 = 1;
/// As [`ESTABLISHED`].
pub const SYN_SENT: u32 = 2;
/// As [`ESTABLISHED`].
pub const FIN_WAIT1: u32 = 4;
/// As [`ESTABLISHED`].
pub const FIN_WAIT2: u32 = 5;
/// As [`ESTABLISHED`].
pub const CLOSE: u32 = 7;
/// As [`ESTABLISHED`].
pub const CLOSE_WAIT: u32 = 8;
/// As [`ESTABLISHED`].
pub const LAST_ACK: u32 = 9;
/// As [`ESTABLISHED`].
pub const CLOSING: u32 = 11;

/// What a socket that has connected counts of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Its state; at its end the one before CLOSE.
    pub state: u32,
    /// Sequence numbers that the other end has taken note of (`bytes_acked`).
    pub acked: u64,
    /// Of what it has sent nothing is outstanding. Told apart only in states in which a FIN may be.
    pub all_acked: bool,
    /// Sequence numbers that have come in order (`bytes_received`).
    pub received: u64,
    /// In FIN_WAIT2: the last of them is the other end's FIN.
    pub ended: bool,
}

impl Counts {
    /// Bytes that the application has sent and that have come to the other end.
    #[inline(always)]
    pub fn forward(&self) -> u64 {
        let fin = match self.state {
            FIN_WAIT2 => true,
            LAST_ACK | CLOSING => self.all_acked,
            _ => false,
        };
        self.acked.saturating_sub(1 + fin as u64)
    }

    /// Bytes that have come for the application.
    #[inline(always)]
    pub fn back(&self) -> u64 {
        let fin = match self.state {
            CLOSE_WAIT | LAST_ACK | CLOSING => true,
            FIN_WAIT2 => self.ended,
            _ => false,
        };
        self.received.saturating_sub(fin as u64)
    }
}

/// Upper bounds (inclusive) of the buckets for round-trip times, in microseconds; one more follows for the rest.
pub const RTT_BOUNDS: [u32; 15] =
    [10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];

/// What TCP_STATS has of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Sockets whose smoothed round-trip time was in this bucket when they closed.
    Rtt(u32),
    /// The sum of these times, in microseconds.
    RttSum,
    /// Segments that they had sent again.
    Retransmitted,
}

/// Buckets of round-trip times.
pub const RTT_BUCKETS: u32 = RTT_BOUNDS.len() as u32 + 1;
/// Places of one path.
const PLACES: u32 = RTT_BUCKETS + 2;
/// Places in TCP_STATS.
pub const TCP_PLACES: u32 = PLACES * Path::OF_PACKETS.len() as u32;

/// Where a figure of a path is; a bucket is below [`RTT_BUCKETS`].
#[inline(always)]
pub fn place(path: Path, figure: Figure) -> u32 {
    let within = match figure {
        Figure::Rtt(bucket) => bucket,
        Figure::RttSum => RTT_BUCKETS,
        Figure::Retransmitted => RTT_BUCKETS + 1,
    };
    path as u32 * PLACES + within
}

/// The bucket of a round-trip time.
#[inline(always)]
pub fn bucket(micros: u32) -> u32 {
    let mut above = 0;
    let mut i = 0;
    while i < RTT_BOUNDS.len() {
        above += (micros > RTT_BOUNDS[i]) as u32;
        i += 1;
    }
    above
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(state: u32) -> Counts {
        Counts { state, acked: 101, all_acked: false, received: 51, ended: false }
    }

    #[test]
    fn syn_and_fin_are_no_bytes() {
        for (state, forward, back) in [
            (ESTABLISHED, 100, 51),
            (CLOSE_WAIT, 100, 50),
            (FIN_WAIT1, 100, 51),
            (FIN_WAIT2, 99, 51),
            (CLOSING, 100, 50),
            (LAST_ACK, 100, 50),
        ] {
            let (all, ended) = (Counts { all_acked: true, ..counts(state) }, Counts { ended: true, ..counts(state) });
            assert_eq!((counts(state).forward(), counts(state).back()), (forward, back), "{state}");
            let fin = matches!(state, CLOSING | LAST_ACK);
            assert_eq!(all.forward(), forward - u64::from(fin), "{state}");
            assert_eq!(ended.back(), back - u64::from(state == FIN_WAIT2), "{state}");
        }
        assert_eq!(Counts { acked: 0, received: 0, ..counts(LAST_ACK) }.forward(), 0);
    }

    #[test]
    fn every_figure_has_a_place_of_its_own() {
        let figures = || (0..RTT_BUCKETS).map(Figure::Rtt).chain([Figure::RttSum, Figure::Retransmitted]);
        let places =
            Path::OF_PACKETS.into_iter().flat_map(|(path, _)| figures().map(move |figure| place(path, figure)));
        assert!(places.eq(0..TCP_PLACES));
    }

    #[test]
    fn bounds_are_inclusive() {
        assert_eq!([0, 10, 11, 25, 26, 1_000_000, 1_000_001, u32::MAX].map(bucket), [0, 0, 1, 1, 2, 14, 15, 15]);
        assert_eq!(bucket(u32::MAX) + 1, RTT_BUCKETS);
    }
}
