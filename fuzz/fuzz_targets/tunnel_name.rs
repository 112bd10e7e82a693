//! Any name of a tunnel's handshake says the port that it says again, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::tls::{named_port, port_name};

fuzz_target!(|name: &str| {
    let Some(port) = named_port(name) else { return };
    let Some(again) = port_name(port) else { panic!("port {port} has no name") };
    assert_eq!(named_port(&again.to_str()), Some(port));
    // Only leading zeroes are lost.
    let digits = name.trim_start_matches("port-").trim_end_matches(".hbone").trim_start_matches('0');
    assert_eq!(digits, if port == 0 { String::new() } else { port.to_string() });
});
