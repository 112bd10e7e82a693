//! Follows the frames that `h2` is given, to know which rule one of them broke when `h2` ends the connection: it says PROTOCOL_ERROR
//! where RFC 9113 and RFC 7541 name FRAME_SIZE_ERROR, FLOW_CONTROL_ERROR or COMPRESSION_ERROR.
//!
//! In: what is read of the client, in pieces of any size, and when `h2` asks for more: then it has taken all whole frames before. Out: the
//! code, where it is certain which frame was at fault; streams whose trailers have a pseudo header. Never: reads a payload, but for
//! SETTINGS, whose values are looked at, and head blocks, of which the last is kept until the next comes.

use super::block::{self, Look};
use super::{ACK, GOAWAY, HEADER, HEADERS, PREFACE, RST_STREAM, Resets, SETTINGS};

const DATA: u8 = 0;
const PRIORITY: u8 = 2;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// Stands for the preface, which is no frame.
const NO_FRAME: u8 = 0xff;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

const FLOW_CONTROL_ERROR: u8 = 3;
const FRAME_SIZE_ERROR: u8 = 6;
const COMPRESSION_ERROR: u8 = 9;

/// Octets of a setting, and of what HEADERS have for a priority.
const SETTING: usize = 6;
const DEPENDENCY: usize = 5;
/// Bytes of a head block kept at most. Of a longer one less is known.
const MAX_KEPT: usize = 4096;

/// The frames of one client.
pub(super) struct Incoming {
    /// Header of the frame under way, and the setting in it that is.
    seen: [u8; HEADER + SETTING],
    length: usize,
    /// Bytes of its payload that have not come.
    left: usize,
    settings: Is,
    /// The stream that was opened last, and whether its body may come.
    last: u32,
    open: bool,
    /// The client has acknowledged our SETTINGS, which come once.
    acknowledged: bool,
    head: Head,
    /// In what was read last: something that `h2` may find another fault with.
    other: bool,
    /// In what was read last: the stream that was opened before what is suspected. `h2` has accepted its head, or ended there.
    before: u32,
    /// A frame that breaks a rule has come: nothing behind it counts.
    broken: Option<u8>,
}

/// The head block that is under way, or was last.
#[derive(Default)]
struct Head {
    stream: u32,
    /// It opens its stream; else it is trailers, or no stream that a client may open.
    opens: bool,
    under_way: bool,
    /// It has come in several frames.
    continued: bool,
    /// A frame of it came in what was read last.
    now: bool,
    kept: Vec<u8>,
    /// So much of that came in frames that are whole.
    whole: usize,
    /// Not all of it is kept.
    cut: bool,
}

/// What a frame is to `h2`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    /// Nothing that would end a connection with PROTOCOL_ERROR.
    Fine,
    /// The end of the connection, for which the rule has this code.
    Broken(u8),
    /// Perhaps its end, for which PROTOCOL_ERROR is right.
    Other,
}

impl Default for Incoming {
    fn default() -> Self {
        let mut seen = [0; HEADER + SETTING];
        seen[3] = NO_FRAME;
        Self {
            seen,
            length: HEADER,
            left: PREFACE,
            settings: Is::Fine,
            last: 0,
            open: false,
            acknowledged: false,
            head: Head::default(),
            other: false,
            before: 0,
            broken: None,
        }
    }
}

impl Incoming {
    /// `h2` wants more: there was nothing wrong with any whole frame before.
    pub(super) fn asked(&mut self) {
        (self.other, self.before, self.head.now) = (false, 0, false);
    }

    /// Bytes that `h2` is given.
    pub(super) fn pass(&mut self, mut bytes: &[u8], resets: &Resets) {
        while !bytes.is_empty() && self.broken.is_none() {
            if self.length < HEADER {
                let (now, rest) = bytes.split_at(bytes.len().min(HEADER - self.length));
                self.seen[self.length..self.length + now.len()].copy_from_slice(now);
                self.length += now.len();
                bytes = rest;
                if self.length == HEADER {
                    self.begin();
                }
            } else {
                let (now, rest) = bytes.split_at(bytes.len().min(self.left));
                match self.kind() {
                    HEADERS | CONTINUATION => self.head.keep(now),
                    SETTINGS => self.settings(now),
                    _ => {}
                }
                self.left -= now.len();
                bytes = rest;
            }
            if self.left == 0 && self.length >= HEADER {
                self.whole(resets);
            }
        }
    }

    /// The code that is right where `h2` says PROTOCOL_ERROR, the last stream that it has accepted being `accepted`.
    pub(super) fn code(&self, accepted: u32, resets: &Resets) -> Option<u8> {
        if self.other || accepted < self.before {
            return None;
        }
        if self.broken.is_some() {
            return self.broken;
        }
        let head = &self.head;
        if !head.now || head.opens && accepted >= head.stream {
            return None;
        }
        match block::look(&head.kept[..head.whole], head.under_way || head.cut) {
            Look::Unreadable => Some(COMPRESSION_ERROR),
            // All that could be wrong but its indices is not, and a stream that it opens has no state that it could be against. Of a
            // block that goes on, `h2` may have let go of the beginning, as of a malformed message.
            Look::Lines if head.opens && !head.continued && !head.cut && !resets.faulty() => Some(COMPRESSION_ERROR),
            Look::Lines | Look::Malformed => None,
        }
    }

    fn kind(&self) -> u8 {
        self.seen[3]
    }

    /// A frame's header is there.
    fn begin(&mut self) {
        let [a, b, c, kind, ..] = self.seen;
        self.left = u32::from_be_bytes([0, a, b, c]) as usize;
        match kind {
            HEADERS if !self.head.under_way => {
                self.behind_head();
                self.head.begin();
            }
            SETTINGS => self.settings = Is::Fine,
            _ => {}
        }
    }

    /// Looks at values of settings (RFC 9113, 6.5.2), which `h2` takes in their order.
    fn settings(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.seen[self.length] = *byte;
            self.length += 1;
            if self.length < HEADER + SETTING {
                continue;
            }
            self.length = HEADER;
            let [.., a, b, c, d, e, f] = self.seen;
            let value = u32::from_be_bytes([c, d, e, f]);
            let is = match u16::from_be_bytes([a, b]) {
                4 if value > 0x7fff_ffff => Is::Broken(FLOW_CONTROL_ERROR),
                2 | 8 if value > 1 => Is::Other,
                5 if !(1 << 14..1 << 24).contains(&value) => Is::Other,
                _ => Is::Fine,
            };
            if self.settings == Is::Fine {
                self.settings = is;
            }
        }
    }

    /// A frame is there whole.
    fn whole(&mut self, resets: &Resets) {
        let [a, b, c, kind, flags, d, e, f, g, ..] = self.seen;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes([d, e, f, g]) & 0x7fff_ffff;
        self.length = 0;
        match self.judge(kind, flags, stream, length) {
            Is::Fine if matches!(kind, HEADERS | CONTINUATION) => {
                self.head.whole = self.head.kept.len();
                self.head.look_at_trailers(resets);
            }
            Is::Fine => {}
            Is::Other => self.other = true,
            Is::Broken(code) => {
                self.behind_head();
                self.broken = Some(code);
            }
        }
    }

    fn judge(&mut self, kind: u8, flags: u8, stream: u32, length: usize) -> Is {
        let broken_unless = |holds: bool, is: Is| if holds { is } else { Is::Broken(FRAME_SIZE_ERROR) };
        let head = &self.head;
        if head.under_way && stream != head.stream || head.under_way != (kind == CONTINUATION) {
            return Is::Other;
        }
        match kind {
            DATA if stream == 0 => Is::Other,
            DATA if flags & PADDED != 0 => broken_unless(length > 0, Is::Other),
            DATA if stream == self.last && self.open => {
                self.open = flags & END_STREAM == 0;
                Is::Fine
            }
            HEADERS if stream != 0 => self.headers(flags, stream, length),
            CONTINUATION => {
                self.head.under_way = flags & END_HEADERS == 0;
                (self.head.continued, self.head.now) = (true, true);
                Is::Fine
            }
            PRIORITY if stream != 0 => broken_unless(length == DEPENDENCY, Is::Fine),
            RST_STREAM if stream != 0 => {
                self.open &= stream != self.last;
                let opened = stream % 2 == 1 && stream <= self.last;
                broken_unless(length == 4, if opened { Is::Fine } else { Is::Other })
            }
            SETTINGS if stream == 0 && flags & ACK != 0 => {
                let again = std::mem::replace(&mut self.acknowledged, true);
                broken_unless(length == 0, if again { Is::Other } else { Is::Fine })
            }
            SETTINGS if stream == 0 => broken_unless(length.is_multiple_of(SETTING), self.settings),
            PING if stream == 0 => broken_unless(length == 8, Is::Fine),
            GOAWAY if stream == 0 => broken_unless(length >= 8, Is::Other),
            WINDOW_UPDATE => broken_unless(length == 4, Is::Other),
            DATA | HEADERS | PRIORITY | RST_STREAM | SETTINGS | PUSH_PROMISE | PING | GOAWAY => Is::Other,
            _ => Is::Fine,
        }
    }

    fn headers(&mut self, flags: u8, stream: u32, length: usize) -> Is {
        let front = usize::from(flags & PADDED != 0) + if flags & WITH_PRIORITY != 0 { DEPENDENCY } else { 0 };
        if length < front {
            return Is::Broken(FRAME_SIZE_ERROR);
        }
        let head = &mut self.head;
        (head.stream, head.now) = (stream, true);
        head.opens = stream > self.last && stream % 2 == 1;
        head.under_way = flags & END_HEADERS == 0;
        if head.opens {
            (self.last, self.open) = (stream, flags & END_STREAM == 0);
        } else {
            self.open &= stream != self.last;
        }
        if front == 0 {
            return Is::Fine;
        }
        let padding = if flags & PADDED != 0 { usize::from(head.kept.first().copied().unwrap_or_default()) } else { 0 };
        let Some(end) = (length - front).checked_sub(padding) else { return Is::Other };
        head.kept.drain(..front.min(head.kept.len()));
        head.kept.truncate(end);
        Is::Fine
    }

    /// What comes now can be at fault only if the head before it was not, which shows only where it has opened a stream.
    fn behind_head(&mut self) {
        if std::mem::take(&mut self.head.now) {
            match self.head.opens {
                true => self.before = self.head.stream,
                false => self.other = true,
            }
        }
    }
}

impl Head {
    fn begin(&mut self) {
        self.kept.clear();
        (self.whole, self.continued, self.cut) = (0, false, false);
    }

    /// Pseudo headers of trailers break a rule (RFC 9113, 8.1), of which `h2` says nothing.
    fn look_at_trailers(&self, resets: &Resets) {
        if !self.opens && !self.under_way && block::begins_with_pseudo(&self.kept) {
            resets.forbid(self.stream);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_KEPT - self.kept.len();
        self.cut |= bytes.len() > room;
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

#[cfg(test)]
mod tests;
