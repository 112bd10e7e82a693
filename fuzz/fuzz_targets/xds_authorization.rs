//! Any bytes are a policy or refused; whatever is accepted can be evaluated, and a DENY never lets more in.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use mesh_core::SpiffeId;
use mesh_core::authorization::Policies;
use mesh_core::resource::authorization::{Action, Authorization, Connection};
use mesh_proto::security as pb;
use prost::Message;

fuzz_target!(|body: &[u8]| {
    let Ok(message) = pb::Authorization::decode(body) else { return };
    let name = format!("{}/{}", message.namespace, message.name);
    let Ok(policy) = Authorization::parse(&name, body) else { return };
    let deny = Arc::new(Authorization { action: Action::Deny, dry_run: false, ..policy.clone() });
    let policy = Arc::new(policy);
    let (alone, with_deny) = (Policies::new(1, [policy.clone()]), Policies::new(2, [policy, deny]));
    let web = SpiffeId::new("cluster.local", "shop", "web").expect("an identity");
    for identity in [None, Some(&web)] {
        for source in [[10, 0, 0, 1].into(), [0xfd; 16].into()] {
            for port in [80, 15008] {
                let connection = Connection { identity, source, destination: source, port };
                let (one, two) = (alone.evaluate(&connection), with_deny.evaluate(&connection));
                assert!(one.is_allowed() || !two.is_allowed());
                assert_eq!(alone.rehearse(&connection).is_some(), alone.all().any(|policy| policy.dry_run));
            }
        }
    }
});
