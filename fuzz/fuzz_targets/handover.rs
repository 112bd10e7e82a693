//! Whatever another process says on the node's socket is a message within its bounds, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::handover::message::{MAX_SOCKETS, Message, VERSION};

fuzz_target!(|bytes: &[u8]| {
    let _ = Message::parse(bytes);
    let Ok(message) = Message::parse(&[VERSION.as_bytes(), bytes].concat()) else { return };
    assert!(message.descriptors() <= MAX_SOCKETS);
    if let Ok(packet) = message.to_packet() {
        assert_eq!(Message::parse(&packet).as_ref(), Ok(&message));
    }
});
