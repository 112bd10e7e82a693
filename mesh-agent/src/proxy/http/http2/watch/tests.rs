//! What is seen of the frames, and what becomes of them, with `h2` between.

use std::collections::VecDeque;

use super::*;

const PING: u8 = 6;
const END: u8 = 5;
const GOOD: &[u8] = b"\x82\x86\x84\x01\x06server";

/// A frame with these flags.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn resets_are_seen_however_the_bytes_are_split() {
    let all = [
        frame(4, 0, 0, &[3; 18]),
        frame(RST_STREAM, 0, 1, &[0, 0, 0, 1]),
        frame(HEADERS, 0, 3, &[RST_STREAM; 13]),
        frame(RST_STREAM, 0, 5, &[0, 0, 0, 1]),
        frame(0, 0, 3, b""),
        frame(HEADERS, 0, 7, &[RST_STREAM; 13]),
        frame(RST_STREAM, 0, 7, &[0, 0, 0, 1]),
        frame(RST_STREAM, 0, 9, &[0, 0, 0, 1]),
        frame(RST_STREAM, 0, 11, &[0, 0, 0, 8]),
        frame(RST_STREAM, 0, 13, &[0, 0, 0, 7]),
        frame(GOAWAY, 0, 0, &[0; 8]),
        frame(GOAWAY, 0, 0, b"\0\0\0\x0d\0\0\0\x0btoo_many_internal_resets"),
        frame(RST_STREAM, 0, 15, &[0, 0, 0, 7]),
    ]
    .concat();
    for size in 1..=all.len() {
        let resets = Resets::default();
        resets.accepted(3);
        let mut place = Place::default();
        all.chunks(size).for_each(|chunk| place.pass(chunk, &resets));
        resets.accepted(9);
        assert_eq!(resets.unheard().collect::<Vec<_>>(), [0, 431], "{size}");
        assert_eq!((resets.unheard().count(), resets.refused(), resets.refused()), (0, 2, 0));
        assert_eq!(resets.ended_by(), Some(Limit::Http2Faults), "{size}");
    }
}

/// A client's words in pieces, and what it is told, in pieces too.
struct Script {
    words: VecDeque<Vec<u8>>,
    told: Rc<RefCell<Vec<u8>>>,
    /// So many bytes are taken at once.
    most: usize,
    vectored: bool,
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(words) = self.words.front_mut() else { return Poll::Ready(Ok(())) };
        let now = words.len().min(buf.remaining());
        buf.put_slice(&words[..now]);
        words.drain(..now);
        if words.is_empty() {
            self.words.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let now = buf.len().min(self.most);
        self.told.borrow_mut().extend_from_slice(&buf[..now]);
        Poll::Ready(Ok(now))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
        self.poll_write(cx, &all)
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Serves a client with `h2` and gives what it was told, but for SETTINGS and PING.
fn told(words: Vec<Vec<u8>>, most: usize, vectored: bool) -> Vec<Vec<u8>> {
    let told = Rc::new(RefCell::new(Vec::new()));
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, b"")[..]].concat();
    let words = [vec![preface], words].concat().into_iter().filter(|words| !words.is_empty()).collect();
    let script = Script { words, told: told.clone(), most, vectored };
    let serve = async {
        let mut connection = h2::server::handshake(Watched::new(script, Rc::default())).await.unwrap();
        let mut open = Vec::new();
        while let Some(Ok(one)) = connection.accept().await {
            open.push(one);
        }
    };
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(serve);
    let told = told.borrow();
    let (mut left, mut frames) = (&told[..], Vec::new());
    while let [a, b, c, kind, ..] = *left {
        let (frame, rest) = left.split_at(HEADER + u32::from_be_bytes([0, a, b, c]) as usize);
        left = rest;
        if kind != SETTINGS && kind != PING {
            frames.push(frame.to_vec());
        }
    }
    frames
}

fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

#[test]
fn the_last_goaway_says_what_was_wrong_however_it_is_written() {
    const COMPRESSION_ERROR: u32 = 9;
    const FRAME_SIZE_ERROR: u32 = 6;
    const FLOW_CONTROL_ERROR: u32 = 3;
    let get = |stream| frame(HEADERS, END, stream, GOOD);
    let post = |stream| frame(HEADERS, 4, stream, GOOD);
    for (words, last, code) in [
        (vec![frame(PING, 0, 0, &[0; 6])], 0, FRAME_SIZE_ERROR),
        (vec![post(1), frame(RST_STREAM, 0, 1, &[0; 3])], 1, FRAME_SIZE_ERROR),
        (vec![get(1), frame(SETTINGS, 0, 0, b"\0\x04\x80\0\0\0")], 1, FLOW_CONTROL_ERROR),
        (vec![frame(HEADERS, END, 1, b"\x82\xbe")], 0, COMPRESSION_ERROR),
        (vec![get(1), frame(HEADERS, END, 3, &[GOOD, b"\x00\x81\xff"].concat())], 1, COMPRESSION_ERROR),
        (vec![frame(HEADERS, 1, 1, GOOD), frame(9, 4, 1, b"\x40")], 0, COMPRESSION_ERROR),
        // These are PROTOCOL_ERROR, and stay so.
        (vec![frame(PING, 0, 1, &[0; 8])], 0, PROTOCOL_ERROR),
        (vec![frame(HEADERS, END, 2, b"\x82\xbe")], 0, PROTOCOL_ERROR),
        (vec![frame(HEADERS, 1, 1, GOOD), frame(PING, 0, 0, &[0; 6])], 0, PROTOCOL_ERROR),
        (vec![frame(HEADERS, END, 1, &[GOOD, b"\x00\x01A\x01b"].concat())], 0, PROTOCOL_ERROR),
        (vec![frame(HEADERS, END, 1, &[GOOD, b"\x00\x81\xfc\x01b"].concat())], 0, PROTOCOL_ERROR),
        (vec![frame(HEADERS, END, 1, &[GOOD, b"\x00\x04:odd\x01b"].concat())], 0, PROTOCOL_ERROR),
        (vec![frame(SETTINGS, 0, 0, b"\0\x02\0\0\0\x02\0\x04\x80\0\0\0")], 0, PROTOCOL_ERROR),
        (vec![frame(0, 0, 1, b"x")], 0, PROTOCOL_ERROR),
        // And where another fault has come before, whatever comes with it.
        (vec![[frame(0, 0, 1, b"x"), frame(PING, 0, 0, &[0; 6])].concat()], 0, PROTOCOL_ERROR),
        (vec![[frame(HEADERS, END, 2, GOOD), frame(HEADERS, END, 3, b"\xbe")].concat()], 0, PROTOCOL_ERROR),
        (
            vec![[frame(HEADERS, END, 1, &[GOOD, b"\x00\x01A\x01b"].concat()), frame(PING, 0, 0, b"")].concat()],
            0,
            PROTOCOL_ERROR,
        ),
    ] {
        let all = words.concat();
        for vectored in [false, true] {
            for most in [1, 2, 7, 16, 17, 18, 25, 26, 1 << 20] {
                assert_eq!(told(words.clone(), most, vectored), [goaway(last, code)], "{words:x?}, {most} at once");
                assert_eq!(told(vec![all.clone()], most, vectored), [goaway(last, code)], "{words:x?}, {most} at once");
            }
        }
        for at in 1..all.len() {
            let split = vec![all[..at].to_vec(), all[at..].to_vec()];
            assert_eq!(told(split, 1 << 20, false), [goaway(last, code)], "{words:x?} split at {at}");
        }
        let bytes = all.iter().map(|byte| vec![*byte]).collect();
        assert_eq!(told(bytes, 1 << 20, false), [goaway(last, code)], "{words:x?} byte by byte");
    }
}

#[test]
fn bytes_that_look_like_a_goaway_are_left_alone() {
    let (resets, told) = (Rc::<Resets>::default(), Rc::default());
    let script = Script { words: VecDeque::new(), told: Rc::clone(&told), most: usize::MAX, vectored: false };
    let mut watched = Watched::new(script, resets.clone());
    // The client's last word would be an error of another kind.
    watched.incoming.pass(&[vec![0; PREFACE], frame(PING, 0, 0, b"")].concat(), &resets);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let last = goaway(0, PROTOCOL_ERROR);
    for (written, expected) in [
        (frame(0, 0, 1, &last), frame(0, 0, 1, &last)),
        ([frame(0, 0, 1, &[1; 30]), last.clone()].concat(), [frame(0, 0, 1, &[1; 30]), goaway(0, 6)].concat()),
    ] {
        let mut left = &written[..];
        while !left.is_empty() {
            let Poll::Ready(Ok(n)) = Pin::new(&mut watched).poll_write(&mut cx, left) else { panic!("not written") };
            left = &left[n..];
        }
        assert_eq!(told.take(), expected);
    }
}
