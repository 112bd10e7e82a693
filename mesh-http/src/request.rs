//! Heads of requests.
//!
//! In: the bytes so far. Out: where the parts are, and how the body ends. Never: goes on with a request that a server behind could
//! read as another one, or as two.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use crate::fields::tokens;
use crate::{Fields, Framing, Known, Limits, MOST_LINES, Outcome, Refusal, Span, Version, framing};

/// A parsed head. One is used for all requests of a connection, so that its memory is.
#[derive(Debug, Default)]
pub struct RequestHead {
    /// The header lines.
    pub fields: Fields,
    /// Version that the client speaks.
    pub version: Version,
    /// How the body ends.
    pub framing: Framing,
    /// Bytes of the head.
    pub len: usize,
    /// Whether the client can send another request afterwards.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    method: Span,
    target: Span,
    /// From the target if that has one, else from `Host`.
    authority: Span,
    path: Span,
    /// `Upgrade`, if `Connection` says so.
    upgrade: Option<Span>,
}

impl RequestHead {
    /// Parses what is there. Only after [`Outcome::Head`] does the head hold anything.
    pub fn parse(&mut self, buf: &[u8], limits: &Limits) -> Outcome {
        match self.try_parse(buf, limits) {
            Ok(true) => Outcome::Head,
            Ok(false) => Outcome::More,
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    fn try_parse(&mut self, buf: &[u8], limits: &Limits) -> Result<bool, Refusal> {
        let seen = &buf[..buf.len().min(limits.bytes)];
        let mut headers = [const { MaybeUninit::uninit() }; MOST_LINES];
        let headers = &mut headers[..limits.lines.min(MOST_LINES)];
        let mut request = httparse::Request::new(&mut []);
        let len = match request.parse_with_uninit_headers(seen, headers) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if buf.len() >= limits.bytes => return Err(Refusal::HeadTooLarge),
            Ok(httparse::Status::Partial) => return Ok(false),
            Err(httparse::Error::Version) => return version_fault(seen, buf.len() >= limits.bytes),
            Err(error) => return Err(error.into()),
        };
        check_lines(&seen[..len])?;
        self.len = len;
        self.version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
        self.method = Span::of(buf, request.method.unwrap_or_default().as_bytes());
        self.target = Span::of(buf, request.path.unwrap_or_default().as_bytes());
        self.fields.take(buf, request.headers, len - 2);
        self.split_target(buf)?;
        self.check_host(buf)?;
        self.connection(buf);
        self.frame(buf)?;
        Ok(true)
    }

    /// The four forms of RFC 9112, 3.2.
    fn split_target(&mut self, buf: &[u8]) -> Result<(), Refusal> {
        let target = self.target.of_bytes(buf);
        if !is_target(target) {
            return Err(Refusal::Target);
        }
        let at = |from: usize, to: usize| Span::new(self.target.start() + from, self.target.start() + to);
        let all = target.len();
        (self.authority, self.path) = match target {
            _ if self.is_connect(buf) => (at(0, all), Span::default()),
            [b'/', ..] => (Span::default(), self.target),
            b"*" if self.method(buf) == "OPTIONS" => (Span::default(), self.target),
            _ => {
                let is = |scheme: &&str| {
                    target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
                };
                let begin = ["http://", "https://"].iter().find(|scheme| is(scheme)).ok_or(Refusal::Target)?.len();
                let rest = &target[begin..];
                let end = begin + rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
                (at(begin, end), at(end, all))
            }
        };
        let named = self.is_connect(buf) || self.path != self.target;
        let authority = self.authority.of_bytes(buf);
        if named && (authority.is_empty() || !is_host(authority)) { Err(Refusal::Target) } else { Ok(()) }
    }

    fn check_host(&mut self, buf: &[u8]) -> Result<(), Refusal> {
        let mut hosts = self.fields.all_known(buf, Known::Host);
        let host = match (hosts.next(), hosts.next()) {
            (Some(_), Some(_)) => return Err(Refusal::ManyHosts),
            (Some(host), None) => host,
            (None, _) if self.version == Version::Http10 => return Ok(()),
            (None, _) => return Err(Refusal::NoHost),
        };
        if !is_host(host) {
            return Err(Refusal::Host);
        }
        if self.authority == Span::default() {
            self.authority = Span::of(buf, host);
        }
        Ok(())
    }

    fn connection(&mut self, buf: &[u8]) {
        let (mut close, mut keep_alive, mut upgrade) = (false, false, false);
        for token in self.fields.all_known(buf, Known::Connection).flat_map(tokens) {
            close |= token.eq_ignore_ascii_case(b"close");
            keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            upgrade |= token.eq_ignore_ascii_case(b"upgrade");
        }
        let new = self.version == Version::Http11;
        self.keep_alive = !close && (new || keep_alive);
        let wanted = self.fields.known(buf, Known::Upgrade).filter(|wanted| upgrade && new && !wanted.is_empty());
        self.upgrade = wanted.map(|wanted| Span::of(buf, wanted));
        let mut expects = self.fields.all_known(buf, Known::Expect);
        self.expects_continue = new && expects.any(|value| value.eq_ignore_ascii_case(b"100-continue"));
    }

    fn frame(&mut self, buf: &[u8]) -> Result<(), Refusal> {
        self.framing = framing::declared(&self.fields, buf, self.version)?.unwrap_or_default();
        match self.framing {
            // Its content has no meaning (RFC 9110, 9.3.6), and what comes behind the head is the tunnel's.
            Framing::Chunked if self.is_connect(buf) => Err(Refusal::Encoding),
            Framing::Length(1..) if self.is_connect(buf) => Err(Refusal::Length),
            _ => Ok(()),
        }
    }

    /// The method.
    pub fn method<'a>(&self, buf: &'a [u8]) -> &'a str {
        self.method.of_text(buf)
    }

    /// Whether the method is CONNECT.
    pub fn is_connect(&self, buf: &[u8]) -> bool {
        self.method.of_bytes(buf) == b"CONNECT"
    }

    /// Host and port as the client named them; empty if it named none.
    pub fn authority<'a>(&self, buf: &'a [u8]) -> &'a str {
        self.authority.of_text(buf)
    }

    /// Whether [`RequestHead::authority`] is what `Host` says.
    pub fn names_host(&self, buf: &[u8]) -> bool {
        self.fields.known(buf, Known::Host) == Some(self.authority.of_bytes(buf))
    }

    /// Path and query; `*` for the server as a whole, empty for CONNECT.
    pub fn path<'a>(&self, buf: &'a [u8]) -> Cow<'a, str> {
        match self.path.of_text(buf) {
            "" if self.is_connect(buf) => Cow::Borrowed(""),
            "" => Cow::Borrowed("/"),
            query if query.starts_with('?') => Cow::Owned(format!("/{query}")),
            path => Cow::Borrowed(path),
        }
    }

    /// Protocol that the client wants to switch to (RFC 9110, 7.8).
    pub fn upgrade<'a>(&self, buf: &'a [u8]) -> Option<&'a [u8]> {
        self.upgrade.map(|wanted| wanted.of_bytes(buf))
    }

    /// Writes the head, with this target and all changes made to the lines.
    pub fn write(&self, buf: &[u8], target: &str, out: &mut Vec<u8>) {
        out.reserve(self.len + 256);
        for part in [self.method.of_bytes(buf), b" ", target.as_bytes(), b" HTTP/1.1\r\n"] {
            out.extend_from_slice(part);
        }
        self.fields.write(buf, out);
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether a target has only characters that one may have: printable ASCII without `"` and `#`.
pub fn is_target(target: &[u8]) -> bool {
    target.iter().all(|byte| matches!(byte, 0x21 | 0x24..=0x7e))
}

/// Whether all characters are those of `host [":" port]` (RFC 3986, 3.2.2 and 3.2.3); an empty one names nobody.
pub fn is_host(host: &[u8]) -> bool {
    host.iter().all(|byte| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
            || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
    })
}

/// Every line ends in CRLF; `httparse` also takes LF alone.
pub(crate) fn check_lines(head: &[u8]) -> Result<(), Refusal> {
    let bare = |at: usize| at == 0 || head[at - 1] != b'\r';
    if memchr::memchr_iter(b'\n', head).any(bare) { Err(Refusal::BareLf) } else { Ok(()) }
}

/// Whether the version is one at all: known once its line has ended.
pub(crate) fn version_fault(seen: &[u8], full: bool) -> Result<bool, Refusal> {
    let start = seen.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(seen.len());
    let Some(end) = memchr::memchr(b'\n', &seen[start..]) else {
        return if full { Err(Refusal::Version) } else { Ok(false) };
    };
    let line = seen[start..start + end].trim_ascii_end();
    let version = match line {
        [b'H', b'T', b'T', b'P', b'/', ..] => line.split(|byte| *byte == b' ').next(),
        _ => line.splitn(3, |byte| *byte == b' ').nth(2),
    };
    let well_formed = |word: &[u8]| matches!(word, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit());
    let other = version.is_some_and(well_formed);
    Err(if other { Refusal::OtherVersion } else { Refusal::Version })
}
