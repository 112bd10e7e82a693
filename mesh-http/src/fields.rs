//! The header lines of one head, and changes to them.
//!
//! In: where in a buffer they are; then what goes and what comes. Out: lookups as if the changes had been made, and the lines
//! as they go on. Lines that stay are copied as they were received, neighbours in one piece.
//! Never: holds the buffer. Every call is given the one that was parsed; with another one it answers nonsense, but it answers.

use crate::known::{Known, Seen, is_protected};

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Where `part` is in `whole`; empty if it is elsewhere.
    pub(crate) fn of(whole: &[u8], part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        match start.checked_add(part.len()) {
            Some(end) if end <= whole.len() => Self::new(start, end),
            _ => Self::default(),
        }
    }

    /// Heads are far shorter than 4 GiB; what is not becomes a range that holds nothing.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) => Self { start, end },
            _ => Self::default(),
        }
    }

    /// The bytes.
    pub fn of_bytes(self, whole: &[u8]) -> &[u8] {
        whole.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// The bytes, which are ASCII.
    pub(crate) fn of_text(self, whole: &[u8]) -> &str {
        std::str::from_utf8(self.of_bytes(whole)).unwrap_or_default()
    }

    pub(crate) fn start(self) -> usize {
        self.start as usize
    }
}

/// One header line.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    name: Span,
    value: Span,
    /// Which header it is.
    pub known: Known,
    /// It is in [`Fields::text`], not in the buffer.
    added: bool,
    /// It has been taken out.
    gone: bool,
}

/// Header lines.
#[derive(Debug, Default)]
pub struct Fields {
    list: Vec<Field>,
    /// Lines that were added, as they are written.
    text: Vec<u8>,
    /// Where the received lines end: behind the last one's line end.
    end: u32,
    /// Spares a search for what has never been there.
    seen: Seen,
}

impl Fields {
    /// Takes the lines that `httparse` has found; `end` is where the last one ends.
    pub(crate) fn take(&mut self, buf: &[u8], headers: &[httparse::Header<'_>], end: usize) {
        self.list.clear();
        self.text.clear();
        self.end = Span::new(0, end).end;
        self.list.reserve(headers.len() + 8);
        self.seen = Seen::default();
        for header in headers {
            let known = Known::of(header.name.as_bytes());
            self.seen.add(known);
            let (name, value) = (Span::of(buf, header.name.as_bytes()), Span::of(buf, header.value));
            self.list.push(Field { name, value, known, added: false, gone: false });
        }
    }

    /// Gives back what memory it holds.
    pub fn give_back(&mut self) {
        *self = Self::default();
    }

    fn name<'a>(&'a self, buf: &'a [u8], field: &Field) -> &'a [u8] {
        field.name.of_bytes(if field.added { &self.text } else { buf })
    }

    fn value<'a>(&'a self, buf: &'a [u8], field: &Field) -> &'a [u8] {
        field.value.of_bytes(if field.added { &self.text } else { buf })
    }

    /// All lines that are there now: name, value and meaning.
    pub fn iter<'a>(&'a self, buf: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8], Known)> {
        let there = self.list.iter().filter(|field| !field.gone);
        there.map(move |field| (self.name(buf, field), self.value(buf, field), field.known))
    }

    /// All values of a header.
    pub fn all<'a>(&'a self, buf: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter(buf).filter(|(other, ..)| other.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value, _)| value)
    }

    /// All values of a known header.
    pub fn all_known<'a>(&'a self, buf: &'a [u8], known: Known) -> impl Iterator<Item = &'a [u8]> {
        let list = if self.seen.has(known) { self.list.as_slice() } else { &[] };
        let there = list.iter().filter(move |field| field.known == known && !field.gone);
        there.map(move |field| self.value(buf, field))
    }

    /// The first value of a known header.
    pub fn known<'a>(&'a self, buf: &'a [u8], known: Known) -> Option<&'a [u8]> {
        self.all_known(buf, known).next()
    }

    /// Bytes of the lines as HTTP/1 writes them at least: name, colon, space, value, line end.
    pub fn size(&self) -> u64 {
        let length = |span: Span| u64::from(span.end.saturating_sub(span.start));
        self.list.iter().filter(|field| !field.gone).map(|field| length(field.name) + length(field.value) + 4).sum()
    }

    /// Takes out every line of a header; whether there was one.
    pub fn remove(&mut self, buf: &[u8], name: &str) -> bool {
        let Self { list, text, .. } = self;
        let mut any = false;
        for field in list.iter_mut().filter(|field| !field.gone) {
            let whole: &[u8] = if field.added { text } else { buf };
            if field.name.of_bytes(whole).eq_ignore_ascii_case(name.as_bytes()) {
                field.gone = true;
                any = true;
            }
        }
        any
    }

    /// Takes out every line of a known header.
    pub fn remove_known(&mut self, known: Known) {
        if !self.seen.has(known) {
            return;
        }
        for field in self.list.iter_mut().filter(|field| field.known == known) {
            field.gone = true;
        }
    }

    /// Adds a line. The caller vouches for name and value: they stand as they are.
    pub fn append(&mut self, name: &str, value: &[u8]) {
        let at = self.text.len();
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(b": ");
        self.text.extend_from_slice(value);
        self.text.extend_from_slice(b"\r\n");
        let (name_end, value_at) = (at + name.len(), at + name.len() + 2);
        let known = Known::of(name.as_bytes());
        self.seen.add(known);
        self.list.push(Field {
            name: Span::new(at, name_end),
            value: Span::new(value_at, value_at + value.len()),
            known,
            added: true,
            gone: false,
        });
    }

    /// Puts one line in place of every line of that name. The caller vouches for name and value.
    pub fn set(&mut self, buf: &[u8], name: &str, value: &[u8]) {
        self.remove(buf, name);
        self.append(name, value);
    }

    /// Takes out what is for the next hop only (RFC 9110, 7.6.1): headers with that meaning, and those that `Connection` names
    /// unless they are protected ([`is_protected`]). `TE: trailers` stays. `chunked`: so does `Transfer-Encoding`, because the body goes
    /// on as it came.
    pub fn strip_hop_by_hop(&mut self, buf: &[u8], chunked: bool) {
        if !self.seen.has_any(Seen::HOP_BY_HOP) {
            return;
        }
        let mut trailers = false;
        for at in 0..self.list.len() {
            let field = self.list[at];
            if field.added || field.gone {
                continue;
            }
            match field.known {
                Known::Connection => {
                    for token in
                        tokens(field.value.of_bytes(buf)).filter(|token| !is_plain(token) && !is_protected(token))
                    {
                        self.remove_named(buf, token);
                    }
                }
                Known::Te => {
                    trailers |= tokens(field.value.of_bytes(buf)).any(|token| token.eq_ignore_ascii_case(b"trailers"));
                }
                _ => {}
            }
            self.list[at].gone |= field.known.is_hop_by_hop() && !(chunked && field.known == Known::TransferEncoding);
        }
        if trailers {
            self.append("te", b"trailers");
        }
    }

    fn remove_named(&mut self, buf: &[u8], name: &[u8]) {
        let named = |field: &Field| !field.added && field.name.of_bytes(buf).eq_ignore_ascii_case(name);
        for field in self.list.iter_mut().filter(|field| named(field) && !field.known.is_hop_by_hop()) {
            field.gone = true;
        }
    }

    /// Writes the lines, without the empty one behind them.
    pub fn write(&self, buf: &[u8], out: &mut Vec<u8>) {
        // Received lines stand in the order of the buffer: a run of those that stay ends where one that goes begins.
        let mut run: Option<usize> = None;
        let received = self.list.iter().take_while(|field| !field.added);
        for field in received {
            match (run, field.gone) {
                (None, false) => run = Some(field.name.start()),
                (Some(start), true) => {
                    out.extend_from_slice(buf.get(start..field.name.start()).unwrap_or_default());
                    run = None;
                }
                _ => {}
            }
        }
        if let Some(start) = run {
            out.extend_from_slice(buf.get(start..self.end as usize).unwrap_or_default());
        }
        for field in self.list.iter().filter(|field| field.added && !field.gone) {
            let line = Span { start: field.name.start, end: field.value.end + 2 };
            out.extend_from_slice(line.of_bytes(&self.text));
        }
    }
}

/// What `Connection` says as a rule: no header, or one that goes anyway.
fn is_plain(token: &[u8]) -> bool {
    token.eq_ignore_ascii_case(b"close") || Known::of(token).is_hop_by_hop()
}

/// The elements of a list (RFC 9110, 5.6.1); empty ones are none.
pub(crate) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests;
