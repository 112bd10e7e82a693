//! Connections between two workloads of one node without the agent. In: what ALLOWED and DIRECT hold, and a segment. Out:
//! whether it passes. Reads no map.
//!
//! The client's SYN leaves a record with its initial sequence number as it leaves the client's pod; the server's pod lets a
//! SYN in only by such a record. So neither a packet from another host nor one from a raw socket opens a connection, and
//! nobody's address is taken for an identity. The client says nothing to whom the SYN has not come to. Both ends ask for every
//! segment whether the connection is still allowed.

use crate::abi::{Allowance, BY_SERVICE, Direct, HAS_DIRECT, MAX_DIRECT_SHARE, PAUSED, Stage, Tuple, Workload};
use crate::addr::Endpoint;
use crate::egress::{ACK, RST, SYN};

/// How often the server may be missed before the way is taken for one on which packets are changed: a connection counts
/// when it ends, and whenever somebody else answers it.
pub const MAX_MISSED: u32 = 3;

/// What to do with a segment that comes to a server's pod and whose connection has a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arriving {
    /// It is what the client sent, and may come in.
    Pass,
    /// Its connection is no longer allowed.
    Drop,
    /// The record is not this segment's: judge it as if there were none.
    Unrelated,
}

/// The key of a connection's record: tuples of direct connections are unambiguous on their node, and both ends must find it.
#[inline(always)]
pub fn key(client: &Endpoint, server: &Endpoint) -> Tuple {
    Tuple { netns: 0, client: *client, server: *server }
}

/// Which of a service's places is drawn. Each is as likely as any other, as far as 32 bits can be shared out.
#[inline(always)]
pub fn draw(random: u32, places: u32) -> u32 {
    ((random as u64 * places as u64) >> 32) as u32
}

/// Whether a new connection of `workload` goes directly. `chosen`: to an endpoint that was chosen for a service. `allowed`
/// finds the way's allowance, `held` how many direct connections the workload has.
#[inline(always)]
pub fn goes_directly(
    workload: &Workload,
    chosen: bool,
    allowed: impl FnOnce() -> Option<Allowance>,
    held: impl FnOnce() -> Option<i64>,
) -> bool {
    workload.flags & HAS_DIRECT != 0
        && allowed().is_some_and(|allowance| may_open(&allowance, chosen))
        && held().is_some_and(|held| held < MAX_DIRECT_SHARE)
}

/// Whether a new connection may go that way; `chosen` as in [`goes_directly`].
#[inline(always)]
pub fn may_open(allowance: &Allowance, chosen: bool) -> bool {
    let flags = if chosen { allowance.flags & !BY_SERVICE } else { allowance.flags };
    flags & (PAUSED | BY_SERVICE) == 0 && allowance.missed < MAX_MISSED
}

/// Whether a segment opens a connection.
#[inline(always)]
pub fn is_opening(flags: u8) -> bool {
    flags & (SYN | ACK | RST) == SYN
}

/// Whether a connection may go on: its allowance is there, and has been all its life.
#[inline(always)]
pub fn is_allowed(record: &Direct, allowance: Option<&Allowance>) -> bool {
    match allowance {
        Some(allowance) => allowance.generation == record.generation && allowance.server == record.server,
        None => false,
    }
}

/// Judges a segment on its way into the pod of `server`.
#[inline(always)]
pub fn arriving(
    record: &Direct,
    server: u64,
    flags: u8,
    sequence: u32,
    allowance: impl FnOnce() -> Option<Allowance>,
) -> Arriving {
    if record.server != server || (is_opening(flags) && sequence != record.sequence) {
        return Arriving::Unrelated;
    }
    if is_allowed(record, allowance().as_ref()) { Arriving::Pass } else { Arriving::Drop }
}

/// What to do with a segment that a directly connecting client sends, other than a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It may leave.
    Pass,
    /// Who answers is not the server, which has seen nothing of the connection: nothing but a reset goes there.
    Missed,
}

/// Judges a segment on its way out of its client's pod.
#[inline(always)]
pub fn leaving(record: &Direct, client: u64, flags: u8) -> Leaving {
    let missed = record.client == client && record.stage == Stage::Sent as u32 && flags & RST == 0;
    if missed { Leaving::Missed } else { Leaving::Pass }
}

/// Whether a connection that its client, in this namespace, takes for established may have a shortcut: its SYN has come to the
/// server as it was sent, so nobody else has answered.
#[inline(always)]
pub fn may_be_shortened(record: &Direct, client: u64) -> bool {
    record.client == client && record.stage == Stage::Arrived as u32
}

/// Whether a record at this stage goes with the client's socket: nobody has accepted the connection. Otherwise it goes with the
/// server's, which may have to say something after its client has gone.
#[inline(always)]
pub fn is_clients(stage: u32) -> bool {
    stage < Stage::Accepted as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::tests::workload;
    use proptest::prelude::*;

    const RECORD: Direct = Direct {
        client: 1,
        server: 2,
        generation: 7,
        sequence: 1000,
        stage: Stage::Arrived as u32,
        to: Endpoint::ZERO,
        received: 0,
        link: 0,
    };
    const ALLOWANCE: Allowance = Allowance { server: 2, generation: 7, missed: 0, flags: 0 };

    #[test]
    fn a_way_is_direct_by_its_allowance_only() {
        let mut w = workload();
        let direct = |w: &Workload, allowance, held| goes_directly(w, false, || allowance, || held);
        assert!(!direct(&w, Some(ALLOWANCE), Some(0)), "nobody has said so of the workload");
        w.flags = HAS_DIRECT;
        assert!(direct(&w, Some(ALLOWANCE), Some(MAX_DIRECT_SHARE - 1)));
        assert!(!direct(&w, Some(ALLOWANCE), Some(MAX_DIRECT_SHARE)));
        assert!(!direct(&w, Some(ALLOWANCE), None));
        assert!(!direct(&w, None, Some(0)));
        assert!(direct(&w, Some(Allowance { missed: MAX_MISSED - 1, ..ALLOWANCE }), Some(0)));
        assert!(!direct(&w, Some(Allowance { missed: MAX_MISSED, ..ALLOWANCE }), Some(0)));
        assert!(!direct(&w, Some(Allowance { flags: PAUSED, ..ALLOWANCE }), Some(0)));
        let of_service = Allowance { flags: BY_SERVICE, ..ALLOWANCE };
        assert!(!direct(&w, Some(of_service), Some(0)));
        assert!(goes_directly(&w, true, || Some(of_service), || Some(0)));
        assert!(goes_directly(&w, true, || Some(ALLOWANCE), || Some(0)));
        assert!(!goes_directly(&w, true, || Some(Allowance { flags: BY_SERVICE | PAUSED, ..ALLOWANCE }), || Some(0)));
    }

    #[test]
    fn what_opens() {
        assert!(is_opening(SYN) && is_opening(SYN | 0xc0));
        assert!(!is_opening(SYN | ACK) && !is_opening(ACK) && !is_opening(SYN | RST));
    }

    #[test]
    fn segments_by_their_record() {
        let judge = |server, flags, sequence, allowance| arriving(&RECORD, server, flags, sequence, || allowance);
        assert_eq!(judge(2, SYN, 1000, Some(ALLOWANCE)), Arriving::Pass);
        assert_eq!(judge(2, ACK, 5, Some(ALLOWANCE)), Arriving::Pass);
        assert_eq!(judge(2, ACK, 5, Some(Allowance { flags: PAUSED, missed: 9, ..ALLOWANCE })), Arriving::Pass);
        assert_eq!(judge(2, SYN, 1001, Some(ALLOWANCE)), Arriving::Unrelated, "a SYN of somebody else's making");
        assert_eq!(judge(3, ACK, 5, Some(ALLOWANCE)), Arriving::Unrelated, "another pod");
        assert_eq!(judge(2, SYN, 1000, None), Arriving::Drop);
        assert_eq!(judge(2, ACK, 5, Some(Allowance { generation: 8, ..ALLOWANCE })), Arriving::Drop);
        assert_eq!(judge(2, ACK, 5, Some(Allowance { server: 3, ..ALLOWANCE })), Arriving::Drop);
    }

    #[test]
    fn nothing_is_said_to_another_than_the_server() {
        let sent = Direct { stage: Stage::Sent as u32, ..RECORD };
        assert_eq!(leaving(&sent, 1, ACK), Leaving::Missed);
        assert_eq!(leaving(&sent, 1, RST | ACK), Leaving::Pass);
        assert_eq!(leaving(&RECORD, 1, ACK), Leaving::Pass);
        assert_eq!(leaving(&Direct { stage: Stage::Accepted as u32, ..RECORD }, 1, ACK), Leaving::Pass);
        assert!(may_be_shortened(&RECORD, 1) && !may_be_shortened(&RECORD, 2) && !may_be_shortened(&sent, 1));
    }

    #[test]
    fn who_owns_a_record() {
        for (stage, clients) in [(Stage::Sent, true), (Stage::Arrived, true), (Stage::Accepted, false)] {
            assert_eq!(is_clients(stage as u32), clients);
        }
    }

    proptest! {
        /// Whatever is drawn is a place, and there is none that nothing draws.
        #[test]
        fn every_place_is_drawn(random: u32, places in 1_u32..2000, place in 0_u32..2000) {
            prop_assert!(draw(random, places) < places);
            let place = place % places;
            let least = (u64::from(place) << 32).div_ceil(u64::from(places));
            prop_assert_eq!(draw(least as u32, places), place);
        }

        /// Whatever comes, it passes only to the pod that the record is for, by the allowance that the record is of, and
        /// opens a connection only with the number that the client's own SYN had.
        #[test]
        fn nothing_passes_without_all_of_it(
            server in 0_u64..4, generation in 6_u64..9, of in 1_u64..4, there: bool, flags: u8, sequence in 999_u32..1002,
        ) {
            let allowance = there.then_some(Allowance { server: of, generation, ..ALLOWANCE });
            if arriving(&RECORD, server, flags, sequence, || allowance) == Arriving::Pass {
                prop_assert!(there && server == RECORD.server && of == RECORD.server && generation == RECORD.generation);
                prop_assert!(!is_opening(flags) || sequence == RECORD.sequence);
            }
        }
    }
}
