//! Any text is an identity that gives itself back from its parts, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::SpiffeId;

fuzz_target!(|text: &str| {
    let Ok(id) = SpiffeId::parse(text) else { return };
    let again = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
    assert_eq!(again, Ok(id.clone()));
    assert_eq!(id.as_str(), text);
});
