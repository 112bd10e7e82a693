//! What two agents of one node say to each other when one takes over from the other: one packet a message, a line that
//! names the protocol's version, then JSON. In: bytes. Out: a [`Message`] within its bounds, or why not. No I/O.

use serde::{Deserialize, Serialize};

use crate::settings::MAX_WORKLOADS;

/// The first line of every packet. Another version of the protocol has another one.
pub const VERSION: &str = "mesh-agent-handover/1\n";
/// Largest packet, in bytes.
pub const MAX_PACKET: usize = 16 << 10;
/// Sockets of one workload.
pub const MAX_SOCKETS: usize = 32;
/// Descriptors that come with [`Message::Offer`]: the lock on the pins, then the admin, metrics and readiness listeners.
pub const OFFER_DESCRIPTORS: usize = 4;
/// Longest text in a message, in bytes.
const MAX_TEXT: usize = 4096;

/// One message. Descriptors travel beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Message {
    /// New to old: wants to take over.
    Hello {
        /// Version of the maps' layout.
        abi: u32,
        /// Name of the node.
        node: String,
        /// Directory of the pins.
        pins: String,
    },
    /// Old to new, with [`OFFER_DESCRIPTORS`] descriptors: that many [`Message::Pod`] follow.
    Offer {
        /// How many.
        pods: usize,
    },
    /// Old to new, with one socket for each of `sockets`.
    Pod {
        /// `namespace/name`.
        workload: String,
        /// Cookie of its network namespace.
        netns: u64,
        /// It has configuration and a certificate: the new agent must have them too before it takes over.
        ready: bool,
        /// What each descriptor is for.
        sockets: Vec<Door>,
    },
    /// New to old: everything is in force, you may go.
    Taken,
    /// Old to new: takes nothing new any more.
    Leaving,
    /// Either: it is not to be.
    Refused {
        /// Why.
        why: String,
    },
}

/// What a socket of a workload is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Door {
    /// What the workload sends elsewhere.
    Outbound,
    /// What comes in the open.
    Inbound,
    /// HBONE.
    Tunnel,
    /// Questions to DNS servers.
    Dns,
}

/// Why a packet is no message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Another version of the agent, or not an agent.
    #[error("it speaks another version of the hand-over; stop the old agent and start the new one instead")]
    Version,
    /// More than is allowed.
    #[error("a message that exceeds its bounds: {0}")]
    Bounds(&'static str),
    /// Not a message.
    #[error("not a message: {0}")]
    Form(String),
}

impl Message {
    /// Reads one packet.
    pub fn parse(packet: &[u8]) -> Result<Message, MessageError> {
        if packet.len() > MAX_PACKET {
            return Err(MessageError::Bounds("bytes of a packet"));
        }
        let body = packet.strip_prefix(VERSION.as_bytes()).ok_or(MessageError::Version)?;
        let message: Message = serde_json::from_slice(body).map_err(|e| MessageError::Form(e.to_string()))?;
        message.check()?;
        Ok(message)
    }

    /// The packet.
    pub fn to_packet(&self) -> Result<Vec<u8>, MessageError> {
        self.check()?;
        let mut packet = VERSION.as_bytes().to_vec();
        serde_json::to_writer(&mut packet, self).map_err(|e| MessageError::Form(e.to_string()))?;
        Ok(packet)
    }

    /// Descriptors that must come with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Message::Offer { .. } => OFFER_DESCRIPTORS,
            Message::Pod { sockets, .. } => sockets.len(),
            Message::Hello { .. } | Message::Taken | Message::Leaving | Message::Refused { .. } => 0,
        }
    }

    fn check(&self) -> Result<(), MessageError> {
        let texts: [&str; 2] = match self {
            Message::Hello { node, pins, .. } => [node, pins],
            Message::Pod { workload, .. } => [workload, ""],
            Message::Refused { why } => [why, ""],
            Message::Offer { .. } | Message::Taken | Message::Leaving => ["", ""],
        };
        if texts.iter().any(|text| text.len() > MAX_TEXT) {
            return Err(MessageError::Bounds("bytes of a text"));
        }
        match self {
            Message::Offer { pods } if *pods > MAX_WORKLOADS => Err(MessageError::Bounds("workloads")),
            Message::Pod { sockets, .. } if sockets.len() > MAX_SOCKETS => Err(MessageError::Bounds("sockets")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        let door = prop_oneof![Just(Door::Outbound), Just(Door::Inbound), Just(Door::Tunnel), Just(Door::Dns)];
        prop_oneof![
            (any::<u32>(), ".{0,20}", ".{0,20}").prop_map(|(abi, node, pins)| Message::Hello { abi, node, pins }),
            (0..=MAX_WORKLOADS).prop_map(|pods| Message::Offer { pods }),
            (".{0,20}", any::<u64>(), any::<bool>(), prop::collection::vec(door, 0..=MAX_SOCKETS))
                .prop_map(|(workload, netns, ready, sockets)| Message::Pod { workload, netns, ready, sockets }),
            Just(Message::Taken),
            Just(Message::Leaving),
            ".{0,20}".prop_map(|why| Message::Refused { why }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_understood(message in message()) {
            prop_assert_eq!(Message::parse(&message.to_packet().unwrap()).unwrap(), message);
        }

        #[test]
        fn nonsense_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Message::parse(&bytes).is_err());
            let _ = Message::parse(&[VERSION.as_bytes(), &bytes].concat());
        }
    }

    #[test]
    fn another_version_and_what_is_too_much_are_named() {
        assert_eq!(Message::parse(b"mesh-agent-handover/2\n{}"), Err(MessageError::Version));
        let parse = |json: &str| Message::parse(format!("{VERSION}{json}").as_bytes());
        assert_eq!(parse(r#"{"message":"offer","pods":10001}"#), Err(MessageError::Bounds("workloads")));
        let long = "x".repeat(MAX_TEXT + 1);
        assert!(parse(&format!(r#"{{"message":"refused","why":"{long}"}}"#)).is_err());
        assert!(matches!(parse(r#"{"message":"offer","pods":1,"more":1}"#), Err(MessageError::Form(_))));
        assert!(matches!(parse(r#"{"message":"else"}"#), Err(MessageError::Form(_))));
        assert_eq!(Message::parse(&vec![b' '; MAX_PACKET + 1]), Err(MessageError::Bounds("bytes of a packet")));
    }
}
