//! Any bytes are a head, the beginning of one, or refused, however they are split; what is written of a head is that head.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_http::{Limits, Outcome, RequestHead, ResponseHead};

const LIMITS: Limits = Limits { bytes: 1024, lines: 16 };

fuzz_target!(|bytes: &[u8]| {
    let mut head = RequestHead::default();
    let outcome = head.parse(bytes, &LIMITS);
    let mut split = RequestHead::default();
    let first = (0..=bytes.len()).map(|end| split.parse(&bytes[..end], &LIMITS)).find(|now| *now != Outcome::More);
    assert_eq!(first.unwrap_or(Outcome::More), outcome);
    if outcome == Outcome::Head {
        let mut out = Vec::new();
        // In origin form, with the lines as they are: that is always a head again, of one host at most.
        if head.path(bytes).starts_with('/') {
            head.write(bytes, &head.path(bytes), &mut out);
            let mut again = RequestHead::default();
            let old = head.version == mesh_http::Version::Http10;
            let outcome = again.parse(&out, &Limits::default());
            assert!(outcome == Outcome::Head && again.len == out.len() || old, "{outcome:?}");
        }
        head.fields.strip_hop_by_hop(bytes, false);
        let kept = head.fields.iter(bytes).filter(|(.., known)| known.is_hop_by_hop()).count();
        assert!(kept <= 1, "TE: trailers at most");
    }
    for method in ["GET", "HEAD", "CONNECT"] {
        let mut head = ResponseHead::default();
        let outcome = head.parse(bytes, method, &LIMITS);
        let mut split = ResponseHead::default();
        let first =
            (0..=bytes.len()).map(|end| split.parse(&bytes[..end], method, &LIMITS)).find(|now| *now != Outcome::More);
        assert_eq!(first.unwrap_or(Outcome::More), outcome);
    }
});
