//! First bytes give one answer however they are split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::detect::{Detect, MAX_BYTES, detect};

fuzz_target!(|bytes: &[u8]| {
    let mut answer = Detect::More;
    for end in 0..=bytes.len() {
        let now = detect(&bytes[..end]);
        if answer != Detect::More {
            assert_eq!(now, answer);
        }
        answer = now;
    }
    assert!(answer != Detect::More || bytes.len() < MAX_BYTES);
});
