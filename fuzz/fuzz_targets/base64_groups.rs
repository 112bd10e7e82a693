//! Base64 in pieces is the same as in one, and what it gives is base64 of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_http::{Groups, Refusal};

fn feed(text: &[u8], piece: usize) -> (Vec<u8>, Result<(), Refusal>) {
    let (mut groups, mut out) = (Groups::default(), Vec::new());
    for piece in text.chunks(piece) {
        if let Err(refusal) = groups.decode(piece, &mut out) {
            return (out, Err(refusal));
        }
    }
    (out, groups.end())
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, text) = input;
    let whole = feed(text, usize::MAX);
    assert!(whole.0.len() <= text.len() / 4 * 3);
    assert_eq!(feed(text, usize::from(piece) + 1), whole);
    assert_eq!(feed(text, 1), whole);
});
