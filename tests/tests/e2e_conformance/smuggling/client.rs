//! A client of HTTP/1 that sends bytes as they are, and tells answers apart.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::Dialer;

/// Longest that an answer takes.
const LIMIT: Duration = Duration::from_secs(5);

/// A connection from the pod `client` to a port of `server`.
pub struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
    to: String,
    /// Our end, as the mesh knows it.
    pub local: SocketAddr,
}

/// What came back on one connection.
#[derive(Debug, Default)]
pub struct Answers {
    /// Status and body of each.
    all: Vec<(u16, String)>,
    /// The connection ended by itself, before we had said that we are done.
    pub closed: bool,
    /// Bytes that are no answer.
    rest: usize,
}

impl Answers {
    /// So many answers, each with this status, and no more.
    pub fn all_are(&self, status: u16, count: usize) -> bool {
        self.all.len() == count && self.rest == 0 && self.all.iter().all(|(of, _)| *of == status)
    }

    /// No second answer, nor half of one.
    pub fn at_most_one(&self) -> bool {
        self.all.len() <= 1 && self.rest == 0
    }
}

impl std::fmt::Display for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let statuses: Vec<_> = self.all.iter().map(|(status, _)| status.to_string()).collect();
        f.write_str(if statuses.is_empty() { "closed" } else { "" })?;
        f.write_str(&statuses.join(", "))?;
        if self.rest > 0 { write!(f, ", and {} bytes that are no answer", self.rest) } else { Ok(()) }
    }
}

impl Client {
    pub fn new(dialer: &Dialer, port: u16) -> Result<Self> {
        let to = format!("server:{port}");
        let (socket, local) = dialer.connect(&to)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { socket, buffer: Vec::new(), to, local })
    }

    /// Sends bytes; a server that has closed shows it when an answer is expected.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// A request of its own, whose answer must be the one to it.
    pub fn asks(&mut self, path: &str) -> Result<()> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.to).as_bytes());
        let answer = self.answer(Instant::now() + LIMIT);
        ensure!(answer == Some((200, path.to_owned())), "{path} was answered with {answer:?}");
        Ok(())
    }

    /// So many answers, and then what comes behind them until both ends are done; else all until the server closes.
    pub fn answers(&mut self, count: Option<usize>) -> Answers {
        let mut answers = Answers::default();
        let end = Instant::now() + LIMIT;
        while count != Some(answers.all.len()) {
            match self.answer(end) {
                Some(answer) => answers.all.push(answer),
                None => break,
            }
        }
        if count.is_some() {
            let _ = self.socket.shutdown(Shutdown::Write);
            while let Some(answer) = self.answer(end) {
                answers.all.push(answer);
            }
        }
        answers.closed = count.is_none() && !self.fill(end);
        answers.rest = self.buffer.len();
        answers
    }

    /// The next answer; `None` at the end of the connection, or of our patience.
    fn answer(&mut self, end: Instant) -> Option<(u16, String)> {
        loop {
            if let Some((length, answer)) = whole(&self.buffer) {
                self.buffer.drain(..length);
                return Some(answer);
            }
            if !self.fill(end) {
                return None;
            }
        }
    }

    /// Reads more; false at the end.
    fn fill(&mut self, end: Instant) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return false,
                Ok(n) => {
                    self.buffer.extend_from_slice(&bytes[..n]);
                    return true;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= end {
                        // Not the end of the connection: one who waits for that must not take it for one.
                        self.buffer.push(b'?');
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
    }
}

/// A whole answer at the beginning of the bytes: its length, status and body.
fn whole(bytes: &[u8]) -> Option<(usize, (u16, String))> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?.to_ascii_lowercase();
    let status = text.strip_prefix("http/1.1 ")?.get(..3)?.parse().ok()?;
    let length: Option<usize> = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    if let Some(length) = length {
        let body = bytes.get(head..head + length)?;
        return Some((head + length, (status, String::from_utf8_lossy(body).into_owned())));
    }
    text.contains("transfer-encoding: chunked").then_some(())?;
    let (mut at, mut body) = (head, Vec::new());
    loop {
        let line = bytes[at..].windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16).ok()?;
        let data = bytes.get(at + line + 2..at + line + 4 + size)?;
        body.extend_from_slice(&data[..size]);
        at += line + 4 + size;
        if size == 0 {
            return Some((at, (status, String::from_utf8_lossy(&body).into_owned())));
        }
    }
}
