//! Policies at both doors: who is refused before the application hears of it, who is cut off when they change, and who
//! waits until they are known.

use std::sync::Arc;

use mesh_core::ambient::{Ambient, Store};
use mesh_core::resource::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use mesh_core::store::Upsert;
use mesh_proto::{security as pb, workload};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::config::Config;
use super::pair::{APP, B, Pair};
use super::world::*;
use crate::upstream::UpstreamError;

const REFUSED: &str = "mesh_agent_policy_refused_total{";
/// The client of [`Pair`].
pub(super) const CLIENT: &str = "cluster.local/ns/default/sa/a";

pub(super) fn principal(name: &str) -> pb::Match {
    let exact = pb::string_match::MatchType::Exact(name.into());
    pb::Match { principals: vec![pb::StringMatch { match_type: Some(exact) }], ..Default::default() }
}

pub(super) fn nobody() -> pb::Match {
    let presence = pb::string_match::MatchType::Presence(());
    pb::Match { not_principals: vec![pb::StringMatch { match_type: Some(presence) }], ..Default::default() }
}

pub(super) fn policy(name: &str, action: pb::Action, one: Option<pb::Match>) -> pb::Authorization {
    let rule = |one| pb::Rule { clauses: vec![pb::Clause { matches: vec![one] }] };
    pb::Authorization {
        name: name.into(),
        namespace: "default".into(),
        scope: pb::Scope::Namespace.into(),
        action: action.into(),
        rules: one.map(rule).into_iter().collect(),
        ..Default::default()
    }
}

/// The mesh with these policies and the pod under test, which names some more.
pub(super) fn mesh(policies: &[pb::Authorization], named: &[&str]) -> Arc<Ambient> {
    let mut store = Store::new();
    let upsert = |name: String, body: Vec<u8>| Upsert { name, version: "1".into(), body: body.into() };
    let all: Vec<Upsert> =
        policies.iter().map(|one| upsert(format!("{}/{}", one.namespace, one.name), one.encode_to_vec())).collect();
    assert!(store.apply(AUTHORIZATION_TYPE, &all, &[]).is_empty());
    let pod = workload::Workload {
        uid: "pod".into(),
        name: "client".into(),
        namespace: "default".into(),
        addresses: vec![vec![10, 0, 0, 2]],
        authorization_policies: named.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let message = workload::Address { r#type: Some(workload::address::Type::Workload(pod)) };
    assert!(store.apply(ADDRESS_TYPE, &[upsert("pod".into(), message.encode_to_vec())], &[]).is_empty());
    store.snapshot().unwrap()
}

#[tokio::test]
async fn a_client_in_the_open_is_nobody() {
    run(async {
        use pb::Action::{Allow, Deny};
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (policies, served) in [
            (vec![], true),
            (vec![policy("p", Allow, Some(principal(CLIENT)))], false),
            (vec![policy("p", Allow, Some(nobody()))], true),
            (vec![policy("p", Allow, None)], false),
            (vec![policy("p", Deny, Some(principal(CLIENT)))], true),
            (vec![policy("p", Allow, Some(nobody())), policy("q", Deny, Some(nobody()))], false),
            (vec![pb::Authorization { dry_run: true, ..policy("p", Deny, Some(nobody())) }], true),
        ] {
            let world = World::judged(None);
            world.configure(Config::new().build());
            world.tell_mesh(mesh(&policies, &[]));
            let mut client = world.inbound_client(Some(&app)).await;
            if served {
                let (mut upstream, _) = app.accept().await.unwrap();
                upstream.write_all(b"hello").await.unwrap();
                assert_eq!(read_text(&mut client, 5).await, "hello", "{policies:?}");
            } else {
                assert!(is_reset(&mut client).await, "{policies:?}");
                assert_eq!(world.dials(), 0, "{policies:?}");
                world.reported(REFUSED, &["reason=\"denied\"", "} 1"]).await;
                world.reported("istio_tcp_connections_closed_total{", &["response_flags=\"DENY\"", "} 1"]).await;
            }
            let tried = u8::from(policies.iter().any(|policy| policy.dry_run));
            world.reported("mesh_agent_policy_dry_run_total", &[&format!(" {tried}")]).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn until_the_policies_are_known_nobody_comes_in() {
    run_paused(async {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Nothing is known; the pod is not; a policy that selects it is not.
        let elsewhere = || {
            let mut store = Store::new();
            store.apply(AUTHORIZATION_TYPE, &[], &[]);
            store.apply(ADDRESS_TYPE, &[], &[]);
            store.snapshot().unwrap()
        };
        for known in [None, Some(elsewhere()), Some(mesh(&[], &["default/late"]))] {
            let world = World::judged(None);
            world.configure(Config::new().build());
            if let Some(known) = known {
                world.tell_mesh(known);
            }
            let mut client = world.inbound_client(Some(&app)).await;
            assert!(is_reset(&mut client).await);
            assert_eq!(world.dials(), 0);
            world.reported(REFUSED, &["reason=\"unknown\"", "} 1"]).await;
        }
        // What comes in time decides.
        for (one, served) in [(nobody(), false), (principal(CLIENT), true)] {
            let world = World::judged(None);
            world.configure(Config::new().build());
            world.tell_mesh(mesh(&[], &["default/late"]));
            let client = world.inbound_client(Some(&app)).await;
            tokio::task::yield_now().await;
            assert_eq!(world.dials(), 0);
            let late = pb::Authorization {
                scope: pb::Scope::WorkloadSelector.into(),
                ..policy("late", pb::Action::Deny, Some(one))
            };
            world.tell_mesh(mesh(&[late], &["default/late"]));
            is_decided(client, &app, served).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_workload_that_ends_serves_on_under_its_policies() {
    run(async {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = World::judged(None);
        world.configure(Config::new().build());
        let own = |one| pb::Authorization {
            scope: pb::Scope::WorkloadSelector.into(),
            ..policy("own", pb::Action::Deny, Some(one))
        };
        world.tell_mesh(mesh(&[own(principal(CLIENT))], &["default/own"]));
        // The control plane tells of it no longer.
        let without = |one: pb::Authorization| {
            let mut store = Store::new();
            let upsert = Upsert { name: "default/own".into(), version: "1".into(), body: one.encode_to_vec().into() };
            store.apply(AUTHORIZATION_TYPE, &[upsert], &[]);
            store.apply(ADDRESS_TYPE, &[], &[]);
            store.snapshot().unwrap()
        };
        world.tell_mesh(without(own(principal(CLIENT))));
        let mut open = world.inbound_client(Some(&app)).await;
        let (mut upstream, _) = app.accept().await.unwrap();
        upstream.write_all(b"still").await.unwrap();
        assert_eq!(read_text(&mut open, 5).await, "still");
        world.tell_mesh(without(own(nobody())));
        assert!(is_over(&mut open).await && is_over(&mut upstream).await);
        assert!(is_reset(&mut world.inbound_client(Some(&app)).await).await);
    })
    .await;
}

#[tokio::test]
async fn strict_said_by_a_policy_is_told_as_strict() {
    run(async {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = World::judged(None);
        world.configure(Config::new().build());
        world.tell_mesh(mesh(&[], &[]));
        let mut open = world.inbound_client(Some(&app)).await;
        let (mut upstream, _) = app.accept().await.unwrap();
        upstream.write_all(b"hello").await.unwrap();
        assert_eq!(read_text(&mut open, 5).await, "hello");
        world.tell_mesh(mesh(&[policy("istio_converted_static_strict", pb::Action::Deny, Some(nobody()))], &[]));
        assert!(is_over(&mut open).await && is_over(&mut upstream).await);
        assert!(is_reset(&mut world.inbound_client(Some(&app)).await).await);
        for reason in ["strict", "became_strict"] {
            let reason = format!("reason=\"{reason}\"");
            world.reported("mesh_agent_plaintext_refused_total{", &[&reason, "} 1"]).await;
        }
        world.reported(REFUSED, &["reason=\"denied\"", "} 0"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_is_who_its_certificate_says() {
    run(async {
        use pb::Action::{Allow, Deny};
        for (policies, served) in [
            (vec![policy("p", Allow, Some(principal(CLIENT)))], true),
            (vec![policy("p", Allow, Some(principal("cluster.local/ns/default/sa/c")))], false),
            (vec![policy("p", Deny, Some(principal(CLIENT)))], false),
            (vec![policy("p", Deny, Some(nobody()))], true),
        ] {
            let pair = Pair::serving(Config::new(), |credential| World::judged(Some(credential))).await;
            pair.server.tell_mesh(mesh(&policies, &[]));
            let app = pair.app().await;
            match pair.connect(APP, B).await {
                Ok(_) => {
                    assert!(served, "{policies:?}");
                    app.accept().await.unwrap();
                }
                Err(UpstreamError::Refused { status, .. }) => {
                    assert!(!served && status == 401, "{policies:?}: {status}");
                    assert_eq!(pair.server.dials(), 0);
                    pair.server.reported(REFUSED, &["reason=\"denied\"", "} 1"]).await;
                    let closed = "istio_tcp_connections_closed_total{";
                    pair.server.reported(closed, &["response_flags=\"DENY\"", CLIENT, "} 1"]).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_change_ends_what_it_forbids_and_nothing_else() {
    run(async {
        let pair = Pair::serving(Config::new(), |credential| World::judged(Some(credential))).await;
        pair.server.tell_mesh(mesh(&[], &[]));
        let app = pair.app().await;
        // Bytes, a request that waits for its answer, and one that has said nothing yet.
        let mut bytes = pair.connect(APP, B).await.unwrap();
        let (mut bytes_app, _) = app.accept().await.unwrap();
        bytes.write_all(b"\0a").await.unwrap();
        assert_eq!(read_text(&mut bytes_app, 2).await, "\0a");
        let mut http = pair.connect(APP, B).await.unwrap();
        let (mut http_app, _) = app.accept().await.unwrap();
        http.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
        read_head(&mut http_app).await;
        let mut silent = pair.connect(APP, B).await.unwrap();
        let (mut silent_app, _) = app.accept().await.unwrap();

        // Others are forbidden, and for a moment a policy is missing: neither ends anything.
        let other = policy("p", pb::Action::Deny, Some(principal("cluster.local/ns/default/sa/c")));
        pair.server.tell_mesh(mesh(&[other], &[]));
        pair.server.tell_mesh(mesh(&[], &["default/missing"]));
        bytes.write_all(b"b").await.unwrap();
        assert_eq!(read_text(&mut bytes_app, 1).await, "b");

        pair.server.tell_mesh(mesh(&[policy("p", pb::Action::Deny, Some(principal(CLIENT)))], &[]));
        for end in [&mut bytes, &mut http, &mut silent] {
            assert!(is_over(end).await, "no byte more");
        }
        for end in [&mut bytes_app, &mut http_app, &mut silent_app] {
            assert!(is_over(end).await, "no byte more");
        }
        pair.server.reported(REFUSED, &["reason=\"closed\"", "} 3"]).await;
        // The tunnel itself goes on, and the next policy decides again.
        pair.server.tell_mesh(mesh(&[], &[]));
        pair.connect(APP, B).await.unwrap();
    })
    .await;
}
