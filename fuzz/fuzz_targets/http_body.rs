//! A body is the same however its bytes come, never longer than the bytes, and over only once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_http::{Body, Framing, Refusal};

fn feed(input: &[u8], piece: usize, framing: Framing) -> (usize, usize, Result<bool, Refusal>) {
    let mut body = Body::new(framing);
    let (mut at, mut end, mut data) = (0, 0, 0);
    loop {
        end = input.len().min(end + piece);
        loop {
            match body.step(&input[at..end]) {
                Ok(step) => {
                    assert!(step.taken <= end - at && (step.data == 0 || step.data == step.taken));
                    at += step.taken;
                    data += step.data;
                    if step.done {
                        assert!(body.is_done());
                        return (at, data, Ok(true));
                    }
                    if step.taken == 0 {
                        break;
                    }
                }
                Err(refusal) => return (at, data, Err(refusal)),
            }
        }
        if end == input.len() {
            return (at, data, Ok(false));
        }
    }
}

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (piece, length, bytes) = input;
    for framing in [Framing::Chunked, Framing::Length(u64::from(length)), Framing::UntilClose, Framing::None] {
        let whole = feed(bytes, usize::MAX >> 1, framing);
        assert_eq!(feed(bytes, usize::from(piece) + 1, framing), whole);
        assert_eq!(feed(bytes, 1, framing), whole);
    }
});
