//! Tables from the SPIFFE standard, and round trips.

use super::*;
use proptest::prelude::*;

#[test]
fn parses_istio_form() {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/bookinfo-reviews").unwrap();
    assert_eq!(id.trust_domain(), "cluster.local");
    assert_eq!(id.namespace(), "default");
    assert_eq!(id.service_account(), "bookinfo-reviews");
    assert_eq!(id.principal(), "cluster.local/ns/default/sa/bookinfo-reviews");
    assert_eq!(id, SpiffeId::new("cluster.local", "default", "bookinfo-reviews").unwrap());
}

#[test]
fn refuses_what_is_not_spiffe() {
    for bad in [
        "",
        "spiffe://",
        "spiffe:///ns/a/sa/b",
        "SPIFFE://td/ns/a/sa/b",
        "https://td/ns/a/sa/b",
        "spiffe://TD/ns/a/sa/b",
        "spiffe://td:80/ns/a/sa/b",
        "spiffe://u@td/ns/a/sa/b",
        "spiffe://td/ns/a/sa/b/",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td/ns//sa/b",
        "spiffe://td/ns/../sa/b",
        "spiffe://td/ns/./sa/b",
        "spiffe://td/ns/a%20/sa/b",
        "spiffe://td/ns/a/sa/b?q",
        "spiffe://td/ns/a/sa/b#f",
        "spiffe://td/ns/ä/sa/b",
        "spiffe://td/sa/a/ns/b",
        "spiffe://td",
    ] {
        assert!(SpiffeId::parse(bad).is_err(), "{bad}");
    }
    let long = format!("spiffe://td/ns/{}/sa/b", "a".repeat(MAX_ID_BYTES));
    assert_eq!(SpiffeId::parse(&long), Err(IdentityError::TooLong(long.len())));
}

#[test]
fn parts_cannot_smuggle_segments() {
    assert!(SpiffeId::new("td", "a/sa/b", "c").is_err());
    assert!(SpiffeId::new("td/ns/x/sa/y", "a", "c").is_err());
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in ".{0,80}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn parts_round_trip(td in "[a-z0-9._-]{1,20}", ns in "[a-z0-9-]{1,20}", sa in "[a-zA-Z0-9._-]{3,20}") {
        let id = SpiffeId::new(&td, &ns, &sa).unwrap();
        prop_assert_eq!(id.trust_domain(), td);
        prop_assert_eq!(id.namespace(), ns);
        prop_assert_eq!(id.service_account(), sa);
    }
}
