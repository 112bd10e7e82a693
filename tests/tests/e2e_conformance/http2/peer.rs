//! A client of HTTP/2 that may break every rule, and what it expects of a server that keeps them.
//!
//! In: a connected socket. Out: frames sent as they are, and what came of them: [`Seen`]. Waits as long as something may still come, and
//! for [`LIMIT`] at most.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::frames::*;

/// Longest that a server is waited for.
const LIMIT: Duration = Duration::from_secs(4);
/// What a client of HTTP/2 begins with (RFC 9113, 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame that has come.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// What came of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// An answer with this status, to its end.
    Answer(u32, u16),
    /// The stream was reset.
    Reset(u32, u32),
    /// The connection ends, with a reason.
    GoAway(u32),
    /// The connection ended without one.
    Closed,
    /// DATA of this length.
    Data(usize),
    /// An answer to a PING.
    Pong([u8; 8]),
    /// Nothing for as long as anybody waits.
    Silence,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answer(_, status) => write!(f, "answer {status}"),
            Self::Reset(_, code) => write!(f, "RST_STREAM {}", code_name(*code)),
            Self::GoAway(code) => write!(f, "GOAWAY {}", code_name(*code)),
            Self::Closed => f.write_str("closed"),
            Self::Data(length) => write!(f, "DATA of {length}"),
            Self::Pong(_) => f.write_str("PING answered"),
            Self::Silence => f.write_str("nothing"),
        }
    }
}

/// A case's outcome: what was seen, or what was wrong with it.
pub type Outcome = Result<Seen, String>;

/// The client.
pub struct Peer {
    socket: TcpStream,
    buffer: Vec<u8>,
    closed: bool,
    /// What the server has set.
    pub settings: BTreeMap<u16, u32>,
    /// It has acknowledged so many of our SETTINGS.
    pub acknowledged: usize,
    /// Statuses of answers whose end has not come.
    open: BTreeMap<u32, u16>,
    /// What has come of bodies, by stream.
    pub bodies: BTreeMap<u32, Vec<u8>>,
    /// What was seen while something else was waited for.
    early: VecDeque<Seen>,
}

impl Peer {
    /// Nothing has been said yet.
    pub fn new(socket: TcpStream) -> std::io::Result<Self> {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        socket.set_write_timeout(Some(LIMIT))?;
        Ok(Self {
            socket,
            buffer: Vec::new(),
            closed: false,
            settings: BTreeMap::new(),
            acknowledged: 0,
            open: BTreeMap::new(),
            bodies: BTreeMap::new(),
            early: VecDeque::new(),
        })
    }

    /// Preface and settings from both sides. We want no dynamic table, so that a status is a byte or a literal.
    pub fn greet(&mut self) -> Result<(), String> {
        self.greet_with(&[(HEADER_TABLE_SIZE, 0)])
    }

    /// The same with settings of the case's own.
    pub fn greet_with(&mut self, ours: &[(u16, u32)]) -> Result<(), String> {
        self.send(PREFACE);
        self.send(&settings(ours));
        self.acknowledgement(1)
    }

    /// Waits until the server has acknowledged so many SETTINGS.
    pub fn acknowledgement(&mut self, count: usize) -> Result<(), String> {
        let end = Instant::now() + LIMIT;
        while self.acknowledged < count || self.settings.is_empty() {
            match self.step(end) {
                None => {}
                Some(seen @ (Seen::Silence | Seen::Closed | Seen::GoAway(_))) => {
                    return Err(format!("instead of an acknowledgement of SETTINGS: {seen}"));
                }
                Some(seen) => self.early.push_back(seen),
            }
        }
        Ok(())
    }

    /// Sends bytes; a server that has closed shows it when something is expected.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// The next thing to be seen.
    pub fn see(&mut self) -> Seen {
        if let Some(seen) = self.early.pop_front() {
            return seen;
        }
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(seen) = self.step(end) {
                return seen;
            }
        }
    }

    /// Sees it again.
    pub fn put_back(&mut self, seen: Seen) {
        self.early.push_front(seen);
    }

    /// Takes one frame in, if it comes before `end`.
    fn step(&mut self, end: Instant) -> Option<Seen> {
        match self.frame(end) {
            Ok(frame) => self.take(&frame),
            Err(seen) => Some(seen),
        }
    }

    /// The next frame, whatever it is.
    pub fn next_frame(&mut self) -> Result<Frame, Seen> {
        let frame = self.frame(Instant::now() + LIMIT)?;
        let _ = self.take(&frame).map(|seen| self.early.push_back(seen));
        Ok(frame)
    }

    fn frame(&mut self, end: Instant) -> Result<Frame, Seen> {
        loop {
            if let [a, b, c, kind, flags, d, e, f, g, rest @ ..] = &self.buffer[..] {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if rest.len() >= length {
                    let stream = u32::from_be_bytes([*d, *e, *f, *g]) & 0x7fff_ffff;
                    let frame = Frame { kind: *kind, flags: *flags, stream, payload: rest[..length].to_vec() };
                    self.buffer.drain(..9 + length);
                    return Ok(frame);
                }
            }
            if self.closed {
                return Err(Seen::Closed);
            }
            let mut bytes = [0; 16384];
            match self.socket.read(&mut bytes) {
                Ok(0) => self.closed = true,
                Ok(n) => self.buffer.extend_from_slice(&bytes[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= end {
                        return Err(Seen::Silence);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.closed = true,
            }
        }
    }

    /// What a frame tells a case, if it does; SETTINGS and PING get their answers.
    fn take(&mut self, frame: &Frame) -> Option<Seen> {
        let word = |at: usize| Some(u32::from_be_bytes(frame.payload.get(at..at + 4)?.try_into().ok()?));
        match frame.kind {
            SETTINGS if frame.flags & ACK != 0 => self.acknowledged += 1,
            SETTINGS => {
                for pair in frame.payload.chunks_exact(6) {
                    let value = u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]);
                    self.settings.insert(u16::from_be_bytes([pair[0], pair[1]]), value);
                }
                // A mark that even a server without settings has been heard.
                self.settings.entry(0).or_default();
                self.send(&super::frames::frame(SETTINGS, ACK, 0, &[]));
            }
            PING if frame.flags & ACK != 0 => return Some(Seen::Pong(frame.payload.as_slice().try_into().ok()?)),
            PING => self.send(&super::frames::frame(PING, ACK, 0, &frame.payload)),
            RST_STREAM => return Some(Seen::Reset(frame.stream, word(0)?)),
            GOAWAY => return Some(Seen::GoAway(word(4)?)),
            HEADERS => {
                // The second head of a stream is its trailers.
                let status = self.open.get(&frame.stream).copied().or_else(|| super::status::status(frame));
                let status = status.unwrap_or_default();
                if frame.flags & END_STREAM != 0 {
                    self.open.remove(&frame.stream);
                    return Some(Seen::Answer(frame.stream, status));
                }
                if !(100..200).contains(&status) {
                    self.open.insert(frame.stream, status);
                }
            }
            DATA => {
                self.bodies.entry(frame.stream).or_default().extend_from_slice(&frame.payload);
                if frame.flags & END_STREAM != 0 {
                    let status = self.open.remove(&frame.stream)?;
                    return Some(Seen::Answer(frame.stream, status));
                }
            }
            _ => {}
        }
        None
    }

    /// Expects the answer of a whole request: 200.
    pub fn answered(&mut self, stream: u32) -> Outcome {
        match self.see() {
            seen @ Seen::Answer(of, 200) if of == stream => Ok(seen),
            seen => Err(format!("instead of an answer: {seen}")),
        }
    }

    /// Expects that the body of an answer has these words: the server echoes what it saw.
    pub fn body_has(&self, stream: u32, words: &str) -> Result<(), String> {
        let body = self.bodies.get(&stream).map(|body| String::from_utf8_lossy(body).into_owned()).unwrap_or_default();
        if body.contains(words) { Ok(()) } else { Err(format!("the server did not see {words:.60}: {body}")) }
    }

    /// Expects that the connection is alive, whatever comes before the answer to its PING.
    pub fn alive(&mut self) -> Outcome {
        let mark = *b"conforms";
        self.send(&frame(PING, 0, 0, &mark));
        loop {
            match self.see() {
                seen @ Seen::Pong(of) if of == mark => return Ok(seen),
                seen @ (Seen::GoAway(_) | Seen::Closed | Seen::Silence) => {
                    return Err(format!("instead of an answer to PING: {seen}"));
                }
                _ => {}
            }
        }
    }

    /// Expects an error of the connection: GOAWAY with one of the codes, or its end.
    pub fn connection_error(&mut self, codes: &[u32]) -> Outcome {
        loop {
            match self.see() {
                // A warning that no stream will be taken; the reason comes behind it.
                Seen::GoAway(NO_ERROR) | Seen::Pong(_) => {}
                Seen::Answer(_, 200) => {}
                Seen::GoAway(code) => return self.ends_by(code, codes),
                Seen::Closed => return Ok(Seen::Closed),
                seen => return Err(format!("instead of GOAWAY {}: {seen}", names(codes))),
            }
        }
    }

    /// Sees the end behind a GOAWAY, which must have the rule's code.
    fn ends_by(&mut self, code: u32, codes: &[u32]) -> Outcome {
        if !codes.contains(&code) {
            return Err(format!("instead of GOAWAY {}: GOAWAY {}", names(codes), code_name(code)));
        }
        self.end()?;
        Ok(Seen::GoAway(code))
    }

    /// Behind GOAWAY with an error comes the end (RFC 9113, 5.4.1).
    fn end(&mut self) -> Result<(), String> {
        loop {
            match self.see() {
                Seen::Closed => return Ok(()),
                Seen::Silence => return Err("a GOAWAY, but the connection stays".to_owned()),
                _ => {}
            }
        }
    }

    /// Expects an error of a stream: RST_STREAM with one of the codes, and a connection that goes on; or one of the connection.
    pub fn stream_error(&mut self, stream: u32, codes: &[u32]) -> Outcome {
        loop {
            match self.see() {
                seen @ Seen::Reset(of, code) if of == stream && codes.contains(&code) => {
                    return self.goes_on().map(|()| seen);
                }
                Seen::GoAway(NO_ERROR) | Seen::Pong(_) => {}
                Seen::GoAway(code) => return self.ends_by(code, codes),
                Seen::Closed => return Ok(Seen::Closed),
                seen => return Err(format!("instead of RST_STREAM {}: {seen}", names(codes))),
            }
        }
    }

    /// Expects that a malformed request is refused: by an answer of 4xx, an error of the stream, or one of the connection.
    pub fn refused(&mut self, stream: u32) -> Outcome {
        match self.see() {
            seen @ Seen::Answer(of, 400..=499) if of == stream => {
                // A stream whose rest nobody wants is reset (RFC 9113, 8.1).
                self.goes_on().map(|()| seen)
            }
            seen => {
                self.put_back(seen);
                self.stream_error(stream, &[PROTOCOL_ERROR])
            }
        }
    }

    /// A further request is answered on the same connection.
    pub fn goes_on(&mut self) -> Result<(), String> {
        const LATE: u32 = 0x0fff_ffff;
        self.send(&get(LATE));
        loop {
            match self.see() {
                Seen::Answer(LATE, 200) => return Ok(()),
                // What else becomes of the stream before.
                Seen::Reset(of, _) | Seen::Answer(of, _) if of != LATE => {}
                Seen::Pong(_) => {}
                seen => return Err(format!("the next request on the connection got {seen}")),
            }
        }
    }
}

fn names(codes: &[u32]) -> String {
    codes.iter().map(|code| code_name(*code)).collect::<Vec<_>>().join(" or ")
}
