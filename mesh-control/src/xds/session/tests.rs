//! A client that is told of differences is told what one is told that is looked at anew.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::resource::{Resource, Resources};

/// What happens: another version of what is offered, or a request. Names are few, so that they meet.
#[derive(Debug, Clone)]
enum Step {
    Offer { shared: Vec<(u8, u8)>, own: Vec<(u8, u8)> },
    Subscribe { names: Vec<u8>, wildcard: bool },
    Unsubscribe { names: Vec<u8>, wildcard: bool },
    Answer,
}

fn step() -> impl Strategy<Value = Step> {
    let resources = || proptest::collection::vec((0_u8..6, 0_u8..3), 0..6);
    let names = || proptest::collection::vec(0_u8..8, 0..4);
    prop_oneof![
        4 => (resources(), resources()).prop_map(|(shared, own)| Step::Offer { shared, own }),
        1 => (names(), any::<bool>()).prop_map(|(names, wildcard)| Step::Subscribe { names, wildcard }),
        1 => (names(), any::<bool>()).prop_map(|(names, wildcard)| Step::Unsubscribe { names, wildcard }),
        4 => Just(Step::Answer),
    ]
}

fn resources(kind: Kind, list: &[(u8, u8)]) -> Arc<Resources> {
    let one = |(name, version): &(u8, u8)| {
        let resource = Resource { aliases: vec![format!("also {name}")], ..Resource::new(kind, vec![*version]) };
        (name.to_string().into(), Arc::new(resource))
    };
    Arc::new(list.iter().map(one).collect())
}

fn names(names: &[u8], wildcard: bool) -> Vec<String> {
    // Some of them are names that only aliases have.
    let names = names.iter().map(|name| if *name > 5 { format!("also {}", name - 5) } else { name.to_string() });
    names.chain(wildcard.then(|| WILDCARD.to_owned())).collect()
}

/// The order in which a response tells of resources means nothing.
fn sorted(mut response: DeltaDiscoveryResponse) -> DeltaDiscoveryResponse {
    response.resources.sort_by(|one, other| one.name.cmp(&other.name));
    response.removed_resources.sort();
    response
}

proptest! {
    #[test]
    fn following_is_looking_anew(kind in proptest::sample::select(Kind::ALL.to_vec()), steps in proptest::collection::vec(step(), 1..40)) {
        let (mut session, mut anew) = (Session::default(), Session::default());
        let mut offer = Offer::default();
        let mut nonce = String::new();
        let ask = |subscribe, unsubscribe| DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..Default::default()
        };
        for step in steps {
            let request = match step {
                Step::Offer { shared, own } => {
                    offer = Offer { shared: resources(kind, &shared), own: resources(kind, &own) };
                    None
                }
                Step::Subscribe { names: list, wildcard } => Some(ask(names(&list, wildcard), Vec::new())),
                Step::Unsubscribe { names: list, wildcard } => Some(ask(Vec::new(), names(&list, wildcard))),
                Step::Answer => Some(DeltaDiscoveryRequest { response_nonce: nonce.clone(), ..ask(Vec::new(), Vec::new()) }),
            };
            if let Some(request) = request {
                prop_assert_eq!(session.request(&request).unwrap(), anew.request(&request).unwrap());
            }
            if session.ready(kind) {
                anew.kinds[kind.index()].brought = None;
                let [response, expected] = [&mut session, &mut anew].map(|one| one.respond(kind, &offer).map(sorted));
                prop_assert_eq!(&response, &expected);
                prop_assert_eq!(&session.kinds[kind.index()].sent, &anew.kinds[kind.index()].sent);
                if let Some(response) = response {
                    nonce = response.nonce;
                }
            }
        }
    }
}
