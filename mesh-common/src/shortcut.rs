//! Whether what a socket sends may be put straight into the queue of the socket at the other end, past TCP. In: what one
//! direction of a connection has done so far, and what it is about to send. Out: by shortcut, or by TCP. Reads no map: what
//! costs a lookup is an argument to be called when it matters.
//!
//! A direction begins by shortcut and can only change to TCP, for ever. The kernel gives a reader what came by shortcut
//! before what came by TCP, so this is what keeps the order. A shortcut has no backpressure, so each direction has a bound:
//! where the agent reads, it tells how much; where an application does, it is seen that nothing waits for it any more, or,
//! where the kernel lets nobody look, there is a small total.
//!
//! Where one direction has changed the other follows, and once nothing more can come by shortcut to either, and nothing
//! waits, their sockets leave it: the kernel's way through TCP is longer for an end of one.

pub mod queue;

/// Bytes that may be on their way to the agent, which tells what it has read.
pub const WINDOW: u64 = 256 * 1024;
/// The agent tells what it has read once this much is new, in bytes.
pub const TOLD_EVERY: u64 = 32 * 1024;
/// Bytes that may be sent to an application by shortcut before it is seen to have read them all, or has sent something itself.
pub const ALLOWANCE: u64 = 64 * 1024;
/// How often an application gets a new [`ALLOWANCE`], having sent something but not being seen to have read: in all, an
/// application that never reads gets less than a mebibyte.
pub const RENEWALS: u32 = 14;
/// Sends of fewer bytes are small: a stream of them is faster over TCP, which joins them.
pub const SMALL: u32 = 8 * 1024;
/// So many small sends in a row, without a word from the other side, are a stream.
pub const SMALL_IN_A_ROW: u32 = 16;
/// A first send to an application of more bytes than this begins something that soon has no allowance left.
pub const LARGE: u32 = 32 * 1024;

/// Level and name of the options of a socket that do not go with a shortcut (linux/socket.h, linux/tcp.h): TLS in the kernel
/// would be given what comes by shortcut as if it were decrypted, and nobody is told that zero-copy buffers are free again.
const REFUSED: [(i32, i32); 2] = [(6, 31), (1, 60)];

/// Whether a socket with a shortcut must not have this option.
#[inline(always)]
pub fn refuses(level: i32, option: i32) -> bool {
    let [(tcp, ulp), (socket, zerocopy)] = REFUSED;
    (level == tcp && option == ulp) || (level == socket && option == zerocopy)
}

/// Who reads what is sent in one direction.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The agent.
    Agent = 0,
    /// An application.
    App = 1,
}

/// Why a direction has changed to TCP.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fall {
    /// The other socket was not there yet, or no more.
    NoPeer = 1,
    /// The agent does not keep up with reading.
    Window = 2,
    /// The application has had all that it may have unseen.
    Allowance = 3,
    /// Many small sends.
    Small = 4,
    /// One side has ended its direction.
    Ending = 5,
    /// Something went by TCP before: it waited for the handshake, or came with it.
    TcpFirst = 6,
    /// The direct connection is no longer allowed, so nothing of it may leave: over TCP, nothing does.
    Revoked = 7,
    /// The other direction has changed.
    Follows = 8,
}

/// How a send goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Past TCP.
    Shortcut,
    /// By TCP, as all before since the direction changed.
    Tcp,
    /// By TCP from now on.
    Falls(Fall),
}

/// One direction of a connection. Only its sender changes it, under the lock of its socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Half {
    /// Bytes sent by shortcut.
    pub sent: u64,
    /// Of these, bytes known to be read; where an application reads, those of earlier allowances.
    pub base: u64,
    /// Sends in all.
    pub messages: u64,
    /// The other direction's `messages` at the last send.
    pub heard: u64,
    /// The other direction's `messages` when the allowance began.
    pub spoke: u64,
    /// Small sends in a row.
    pub streak: u32,
    /// Allowances after the first.
    pub renewals: u32,
    /// 0, or the [`Fall`] by which it changed to TCP.
    pub fallen: u32,
    /// 0; in the place of padding.
    pub zero: u32,
    /// The thread that has sent, by `bpf_get_current_pid_tgid`; 0 before anything was sent, [`SEVERAL`] or [`SILENCED`]. Does not
    /// change any more once the direction has.
    pub thread: u64,
}

/// In [`Half::thread`]: nobody can tell when each of them has put into the queue what it has sent.
pub const SEVERAL: u64 = u64::MAX - 1;
/// In [`Half::thread`]: before anything was sent the other side has changed this direction too. From 0 either a sender or
/// the other side takes it, in one instruction.
pub const SILENCED: u64 = u64::MAX;

/// What a sender knows besides its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send {
    /// Bytes.
    pub size: u32,
    /// Neither side has ended its direction.
    pub open: bool,
    /// The connection is one with the agent, or it may still be.
    pub allowed: bool,
    /// Who reads.
    pub reader: Reader,
    /// The other direction's `messages`.
    pub heard: u64,
    /// The other direction has changed.
    pub alone: bool,
}

/// What is known of the direction that a socket reads, at once: of a direction that has changed nothing changes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// As in [`Half`].
    pub fallen: u32,
    /// As in [`Half`].
    pub sent: u64,
    /// As in [`Half`].
    pub thread: u64,
}

/// Whether a socket may leave its shortcut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// At once.
    Now,
    /// To be asked again.
    Later,
    /// Nobody will ever know that it may.
    Never,
}

/// Whether a socket may leave, which takes its queue away. `own`: what it sends goes by TCP for ever. `sees`: it can be seen
/// whether its queue is empty, which `drained` tells. The queue has everything, or had it, once the thread that has sent it
/// all sends again: that thread itself changed the direction.
#[inline(always)]
pub fn may_leave(own: bool, incoming: Incoming, sees: bool, drained: impl FnOnce() -> bool) -> Leaving {
    if !own || incoming.fallen == 0 {
        return Leaving::Later;
    }
    if incoming.sent == 0 {
        return Leaving::Now;
    }
    if incoming.thread >= SEVERAL || !sees {
        return Leaving::Never;
    }
    if drained() { Leaving::Now } else { Leaving::Later }
}

impl Half {
    /// Nothing sent yet.
    pub const NEW: Half = Half {
        sent: 0,
        base: 0,
        messages: 0,
        heard: 0,
        spoke: 0,
        streak: 0,
        renewals: 0,
        fallen: 0,
        zero: 0,
        thread: 0,
    };

    /// How this goes. `read` asks for the bytes that the agent has read, in all; `drained` whether an application is seen to
    /// have read everything.
    #[inline(always)]
    pub fn send(&mut self, send: Send, read: impl FnOnce() -> u64, drained: impl FnOnce() -> bool) -> Way {
        // Before it has sent anything, a side leaves nothing unread either.
        let answered = send.heard != self.heard || self.messages == 0;
        self.heard = send.heard;
        self.messages += 1;
        if self.fallen != 0 {
            return Way::Tcp;
        }
        if !send.allowed {
            return self.fall(Fall::Revoked);
        }
        if !send.open {
            return self.fall(Fall::Ending);
        }
        if send.alone && answered {
            return self.fall(Fall::Follows);
        }
        self.streak = match send.size < SMALL {
            true if answered => 1,
            true => self.streak + 1,
            false => 0,
        };
        if self.streak > SMALL_IN_A_ROW {
            return self.fall(Fall::Small);
        }
        let fits = match send.reader {
            Reader::Agent => self.fits_window(send.size, read),
            Reader::App => self.fits_allowance(send, answered, drained),
        };
        if let Err(fall) = fits {
            return self.fall(fall);
        }
        self.sent += u64::from(send.size);
        Way::Shortcut
    }

    /// What was to go by shortcut cannot: the other end is not there.
    #[inline(always)]
    pub fn no_peer(&mut self, size: u32) -> Fall {
        self.sent = self.sent.saturating_sub(u64::from(size));
        self.fallen = Fall::NoPeer as u32;
        Fall::NoPeer
    }

    /// By TCP from now on.
    #[inline(always)]
    pub fn fall(&mut self, why: Fall) -> Way {
        self.fallen = why as u32;
        Way::Falls(why)
    }

    #[inline(always)]
    fn fits_window(&mut self, size: u32, read: impl FnOnce() -> u64) -> Result<(), Fall> {
        let after = self.sent + u64::from(size);
        if after - self.base <= WINDOW {
            return Ok(());
        }
        let read = read();
        // Nobody can have read more than was sent.
        if read > self.base && read <= self.sent {
            self.base = read;
        }
        if after - self.base <= WINDOW { Ok(()) } else { Err(Fall::Window) }
    }

    /// Where there is a choice, the change comes when the other side has just spoken, and so has most likely read
    /// everything: a reader that takes a short read for an empty queue does not see what is queued behind by TCP.
    #[inline(always)]
    fn fits_allowance(&mut self, send: Send, answered: bool, drained: impl FnOnce() -> bool) -> Result<(), Fall> {
        if answered && send.size > LARGE {
            return Err(Fall::Allowance);
        }
        let after = self.sent + u64::from(send.size);
        if after - self.base <= ALLOWANCE / 2 {
            return Ok(());
        }
        if drained() {
            self.base = self.sent;
            self.spoke = send.heard;
            return if u64::from(send.size) <= ALLOWANCE { Ok(()) } else { Err(Fall::Allowance) };
        }
        let last = self.renewals >= RENEWALS;
        if after - self.base <= ALLOWANCE {
            return if last && answered { Err(Fall::Allowance) } else { Ok(()) };
        }
        if last || send.heard == self.spoke || u64::from(send.size) > ALLOWANCE {
            return Err(Fall::Allowance);
        }
        self.base = self.sent;
        self.spoke = send.heard;
        self.renewals += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::bool::weighted;
    use proptest::prelude::*;

    use super::*;

    fn to_agent(size: u32) -> Send {
        Send { size, open: true, allowed: true, reader: Reader::Agent, heard: 0, alone: false }
    }

    fn to_app(size: u32, heard: u64) -> Send {
        Send { size, open: true, allowed: true, reader: Reader::App, heard, alone: false }
    }

    fn never() -> u64 {
        panic!("nobody is to be asked")
    }

    /// Nobody sees what an application reads.
    fn unseen() -> bool {
        false
    }

    #[test]
    fn the_agent_is_asked_only_when_the_window_is_full() {
        let mut half = Half::default();
        let sends = WINDOW / 65_536;
        for _ in 0..sends {
            assert_eq!(half.send(to_agent(65_536), never, unseen), Way::Shortcut);
        }
        assert_eq!(half.send(to_agent(65_536), || 65_536, unseen), Way::Shortcut);
        assert_eq!(half.send(to_agent(1), || 65_536, unseen), Way::Falls(Fall::Window));
        assert_eq!(half.send(to_agent(1), never, unseen), Way::Tcp);
    }

    #[test]
    fn a_nonsensical_word_of_what_was_read_opens_nothing() {
        let mut half = Half::default();
        while half.send(to_agent(65_536), || u64::MAX, unseen) == Way::Shortcut {}
        assert_eq!((half.sent, half.fallen), (WINDOW, Fall::Window as u32));
    }

    #[test]
    fn a_silent_application_gets_one_allowance() {
        let mut half = Half::default();
        for _ in 0..ALLOWANCE / 16_384 {
            assert_eq!(half.send(to_app(16_384, 0), never, unseen), Way::Shortcut);
        }
        assert_eq!(half.send(to_app(1, 0), never, unseen), Way::Falls(Fall::Allowance));
        assert_eq!(half.sent, ALLOWANCE);
    }

    #[test]
    fn a_conversation_changes_when_it_is_quiet() {
        let (mut half, mut heard) = (Half::default(), 0);
        while half.send(to_app(1000, heard), never, unseen) == Way::Shortcut {
            heard += 1;
        }
        assert_eq!(half.fallen, Fall::Allowance as u32);
        assert!(half.sent > ALLOWANCE * u64::from(RENEWALS), "{half:?}");
        // What begins as more than fits goes by TCP from the first byte.
        let mut half = Half::default();
        assert_eq!(half.send(to_app(LARGE + 1, 0), never, unseen), Way::Falls(Fall::Allowance));
        assert_eq!(half.sent, 0);
    }

    #[test]
    fn an_application_that_is_seen_to_read_has_no_total() {
        let (mut half, mut asked) = (Half::default(), 0);
        for heard in 0..10_000 {
            let way = half.send(to_app(1000, heard), never, || {
                asked += 1;
                true
            });
            assert_eq!(way, Way::Shortcut);
        }
        assert!(half.sent > 100 * ALLOWANCE && half.renewals == 0, "{half:?}");
        assert_eq!(asked, 10_000 / 32, "it is looked at when half of the allowance is gone");
        // One that reads on, and leaves something each time.
        while half.send(to_app(16_384, 10_000), never, unseen) == Way::Shortcut {}
        assert_eq!(half.fallen, Fall::Allowance as u32);
        let mut half = Half::default();
        half.send(to_app(1, 0), never, || true);
        assert_eq!(half.send(to_app(ALLOWANCE as u32 + 1, 0), never, || true), Way::Falls(Fall::Allowance));
    }

    #[test]
    fn streams_of_small_sends_go_by_tcp_and_conversations_do_not() {
        let mut half = Half::default();
        let sent = (0..100).take_while(|_| half.send(to_agent(1024), never, unseen) == Way::Shortcut).count();
        assert_eq!((sent, half.fallen), (SMALL_IN_A_ROW as usize, Fall::Small as u32));
        let mut half = Half::default();
        for heard in 0..100 {
            assert_eq!(half.send(Send { heard, ..to_agent(1024) }, never, unseen), Way::Shortcut);
        }
    }

    #[test]
    fn what_follows_an_end_goes_by_tcp() {
        let mut half = Half::default();
        assert_eq!(half.send(Send { open: false, ..to_agent(1) }, never, unseen), Way::Falls(Fall::Ending));
        let mut half = Half::default();
        assert_eq!(half.send(Send { allowed: false, ..to_app(1, 0) }, never, unseen), Way::Falls(Fall::Revoked));
        assert_eq!(half.send(to_app(1, 0), never, unseen), Way::Tcp);
    }

    #[test]
    fn a_direction_follows_the_other_when_that_has_just_spoken() {
        let mut half = Half::default();
        half.send(to_agent(100), never, unseen);
        assert_eq!(half.send(Send { alone: true, ..to_agent(100) }, never, unseen), Way::Shortcut);
        let heard = Send { alone: true, heard: 1, ..to_agent(100) };
        assert_eq!(half.send(heard, never, unseen), Way::Falls(Fall::Follows));
        let mut first = Half::default();
        assert_eq!(first.send(Send { alone: true, ..to_agent(100) }, never, unseen), Way::Falls(Fall::Follows));
    }

    #[test]
    fn a_socket_leaves_when_nothing_can_come_by_shortcut_and_nothing_waits() {
        let incoming = Incoming { fallen: Fall::Follows as u32, sent: 100, thread: 7 };
        let ask = |own, incoming, sees, drained| may_leave(own, incoming, sees, || drained);
        assert_eq!(ask(true, incoming, true, true), Leaving::Now);
        assert_eq!(ask(false, incoming, true, true), Leaving::Later);
        assert_eq!(ask(true, Incoming { fallen: 0, ..incoming }, true, true), Leaving::Later);
        assert_eq!(ask(true, incoming, true, false), Leaving::Later);
        assert_eq!(ask(true, incoming, false, true), Leaving::Never);
        assert_eq!(ask(true, Incoming { thread: SEVERAL, ..incoming }, true, true), Leaving::Never);
        // Where nothing was sent there is nothing to see.
        for thread in [SEVERAL, SILENCED, 7] {
            assert_eq!(ask(true, Incoming { sent: 0, thread, ..incoming }, false, false), Leaving::Now);
        }
    }

    proptest! {
        /// Whatever is sent, heard and read: it never comes back from TCP, and what nobody has read stays in bounds.
        #[test]
        fn bounded_and_one_way(
            app: bool,
            seen: bool,
            steps in proptest::collection::vec((0_u32..200_000, 0_u8..3, 0_u64..400_000, weighted(0.99), weighted(0.99)), 1..300),
        ) {
            let reader = if app { Reader::App } else { Reader::Agent };
            let (mut half, mut heard, mut read, mut fallen) = (Half::default(), 0, 0, false);
            for (size, speaks, reads, open, allowed) in steps {
                heard += u64::from(speaks);
                read = half.sent.min(read + reads);
                let (had, before) = (half.sent, read);
                let way = half.send(Send { size, open, allowed, reader, heard, alone: false }, || read, || seen && before == had);
                prop_assert!(!fallen || way == Way::Tcp, "{way:?} after TCP");
                prop_assert!(fallen || way != Way::Tcp, "TCP without a reason");
                fallen |= way != Way::Shortcut;
                if way == Way::Shortcut {
                    let unseen = if app && !seen { 0 } else { read };
                    let bound = if app { ALLOWANCE * u64::from(RENEWALS + 1) } else { WINDOW };
                    prop_assert!(open && allowed && half.sent - unseen <= bound);
                }
            }
        }

        /// An application that neither reads nor writes.
        #[test]
        fn a_reader_that_never_reads(app: bool, sizes in proptest::collection::vec(1_u32..1_000_000, 1..2000)) {
            let reader = if app { Reader::App } else { Reader::Agent };
            let mut half = Half::default();
            for size in sizes {
                half.send(Send { size, open: true, allowed: true, reader, heard: 0, alone: false }, || 0, unseen);
            }
            let bound = if app { ALLOWANCE } else { WINDOW };
            prop_assert!(half.sent <= bound);
        }
    }

    /// However it comes, an application that never reads has less than a mebibyte waiting for it.
    const _: () = assert!(ALLOWANCE * (RENEWALS as u64 + 1) < 1 << 20 && WINDOW < 1 << 20);
}
