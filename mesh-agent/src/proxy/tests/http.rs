//! HTTP/1 as clients and servers see it.

use std::time::Duration;

use ::http::StatusCode;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as route;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::config::{Config, direct};
use super::messages::*;
use super::world::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";

#[tokio::test]
async fn requests_of_one_client_share_one_connection_to_the_server() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let ((response, body), (mut upstream, head)) = tokio::join!(
            exchange(
                &mut client,
                "GET /a?b=1 HTTP/1.1\r\nHost: web\r\nX-Mine: 1\r\nConnection: x-gone\r\nX-Gone: 1\r\n\r\n"
            ),
            answer_once(&server)
        );
        assert!(head.starts_with("GET /a?b=1 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("X-Mine: 1") && !head.to_lowercase().contains("x-gone"), "{head}");
        let lower = head.to_lowercase();
        assert!(lower.contains("host: web\r\n") && lower.contains("x-forwarded-proto: http"), "{head}");
        assert!(lower.contains("x-request-id: "), "{head}");
        assert!(response.starts_with("http/1.1 200 ok"), "{response}");
        assert!(
            response.contains("server: tested") && response.contains("x-envoy-upstream-service-time: "),
            "{response}"
        );
        assert_eq!(body, "hello");
        for _ in 0..3 {
            let ((_, body), _) = tokio::join!(exchange(&mut client, GET), answer_on(&mut upstream));
            assert_eq!(body, "hello");
        }
        assert_eq!(world.dials(), 1);
        world
            .reported(
                "istio_requests_total{",
                &[
                    "reporter=\"source\"",
                    "response_code=\"200\"",
                    "source_workload=\"client-v1\"",
                    "destination_service=\"web.default.svc.cluster.local\"",
                    "request_protocol=\"http\"",
                    "response_flags=\"-\"",
                    "} 4",
                ],
            )
            .await;
        // The client leaves, and so does its upstream connection.
        drop(client);
        assert_eq!(upstream.read(&mut [0; 1]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn every_failure_has_envoy_s_status_and_flag() {
    run(async {
        let no_route = Config::new().host(|host| host.domains = vec!["elsewhere".into()]).build();
        let no_cluster = Config::new().route(|_, action| {
            action.cluster_specifier = Some(route::route_action::ClusterSpecifier::Cluster("gone".into()));
        });
        let answers = Config::new().route(|route, _| route.action = Some(direct(StatusCode::IM_A_TEAPOT, "short")));
        for (snapshot, status, flag, body) in [
            (no_route, 404, "NR", ""),
            (no_cluster.build(), 503, "NC", ""),
            (Config::new().endpoints(&[]).build(), 503, "UH", "no healthy upstream"),
            (Config::new().build(), 503, "UF", "upstream connect error"),
            (answers.build(), 418, "-", "short"),
        ] {
            let world = World::configured(snapshot);
            let mut client = world.client().await;
            for _ in 0..2 {
                let (head, text) = exchange(&mut client, GET).await;
                assert!(head.starts_with(&format!("http/1.1 {status}")), "{flag}: {head}");
                assert!(text.starts_with(body), "{flag}: {text}");
            }
            let code = format!("response_code=\"{status}\"");
            let flags = format!("response_flags=\"{flag}\"");
            world.reported("istio_requests_total{", &[&code, &flags, "} 2"]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_refused_connection_is_tried_on_another_endpoint_if_the_route_says_so() {
    run(async {
        let config = Config::new().endpoints(&["10.0.0.1:80", "10.0.0.2:80"]).host(|host| {
            host.include_request_attempt_count = true;
            host.retry_policy = Some(route::RetryPolicy {
                retry_on: "connect-failure".into(),
                num_retries: number(2),
                retry_back_off: Some(route::retry_policy::RetryBackOff {
                    base_interval: Some(envoy_types::pb::google::protobuf::Duration { seconds: 0, nanos: 1_000_000 }),
                    ..Default::default()
                }),
                ..Default::default()
            });
        });
        let world = World::configured(config.build());
        let server = world.server("10.0.0.2:80").await;
        let mut attempts = Vec::new();
        for _ in 0..10 {
            let mut client = world.client().await;
            let ((head, _), (_upstream, request)) = tokio::join!(exchange(&mut client, GET), answer_once(&server));
            assert!(head.starts_with("http/1.1 200"), "{head}");
            let count = request.lines().find_map(|line| line.strip_prefix("x-envoy-attempt-count: ")).unwrap();
            attempts.push(count.to_owned());
        }
        assert!(attempts.contains(&"2".to_owned()), "{attempts:?}");
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_replaced_without_a_failure() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let (_, (upstream, _)) = tokio::join!(exchange(&mut client, GET), answer_once(&server));
        drop(upstream);
        let post = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody";
        let ((head, _), (mut upstream, request)) = tokio::join!(exchange(&mut client, post), answer_once(&server));
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(request.starts_with("POST"));
        assert_eq!(read_text(&mut upstream, 4).await, "body");
    })
    .await;
}

#[tokio::test]
async fn a_request_that_the_server_may_have_seen_is_repeated_only_if_that_is_safe() {
    run(async {
        for (request, status) in [(GET, 200), ("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n", 503)] {
            let world = World::configured(Config::new().build());
            let server = world.server("10.0.0.1:80").await;
            let mut client = world.client().await;
            let (_, (mut upstream, _)) = tokio::join!(exchange(&mut client, GET), answer_once(&server));
            let serve = async {
                // The server reads the second request and goes away without an answer.
                read_head(&mut upstream).await;
                drop(upstream);
                if status == 200 {
                    answer_once(&server).await.0.shutdown().await.unwrap();
                }
            };
            let ((head, _), ()) = tokio::join!(exchange(&mut client, request), serve);
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{request}: {head}");
            if status == 503 {
                world.reported("istio_requests_total{", &["response_flags=\"UC\"", "} 1"]).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_route_s_timeout_ends_a_request() {
    run(async {
        let config = Config::new().route(|_, action| {
            action.timeout = Some(envoy_types::pb::google::protobuf::Duration { seconds: 0, nanos: 20_000_000 });
        });
        let world = World::configured(config.build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let (head, body) = exchange(&mut client, GET).await;
        assert!(head.starts_with("http/1.1 504"), "{head}");
        assert_eq!(body, "upstream request timeout");
        world.reported("istio_requests_total{", &["response_code=\"504\"", "response_flags=\"UT\""]).await;
        drop(server);
    })
    .await;
}

#[tokio::test]
async fn rewrites_and_header_rules_apply() {
    run(async {
        let config = Config::new().route(|route, action| {
            route.r#match = Some(route::RouteMatch {
                path_specifier: Some(route::route_match::PathSpecifier::Prefix("/old".into())),
                ..Default::default()
            });
            action.prefix_rewrite = "/new".into();
            action.host_rewrite_specifier =
                Some(route::route_action::HostRewriteSpecifier::HostRewriteLiteral("other".into()));
            let header = |key: &str, value: &str| core::HeaderValueOption {
                header: Some(core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() }),
                append_action: 2, // OVERWRITE_IF_EXISTS_OR_ADD
                ..Default::default()
            };
            route.request_headers_to_add = vec![header("x-added", "1")];
            route.request_headers_to_remove = vec!["x-unwanted".into()];
            route.response_headers_to_add = vec![header("server", "renamed")];
        });
        let world = World::configured(config.build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let request = "GET /old/x?y HTTP/1.1\r\nHost: web\r\nX-Unwanted: 1\r\n\r\n";
        let ((response, _), (_upstream, head)) = tokio::join!(exchange(&mut client, request), answer_once(&server));
        let head = head.to_lowercase();
        assert!(head.starts_with("get /new/x?y http/1.1\r\n"), "{head}");
        for line in ["host: other\r\n", "x-added: 1\r\n", "x-envoy-original-path: /old/x?y\r\n"] {
            assert!(head.contains(line), "{line}: {head}");
        }
        assert!(!head.contains("x-unwanted"), "{head}");
        assert!(response.contains("server: renamed"), "{response}");
    })
    .await;
}

#[tokio::test]
async fn an_upgraded_connection_is_bytes_in_both_directions() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let serve = async {
            let (mut stream, _) = server.accept().await.unwrap();
            let head = read_head(&mut stream).await.to_lowercase();
            assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
            // The first bytes of the new protocol come with the answer.
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst";
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream
        };
        let request = "GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let ((head, _), mut upstream) = tokio::join!(exchange(&mut client, request), serve);
        assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"), "{head}");
        assert_eq!(read_text(&mut client, 5).await, "first");
        client.write_all(b"ping").await.unwrap();
        assert_eq!(read_text(&mut upstream, 4).await, "ping");
        client.shutdown().await.unwrap();
        assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
        upstream.write_all(b"pong").await.unwrap();
        drop(upstream);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"pong");
        world.reported("istio_requests_total{", &["response_code=\"101\"", "response_flags=\"-\""]).await;
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_declined_and_the_request_served() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
        let ((head, _), (_upstream, sent)) = tokio::join!(exchange(&mut client, request), answer_once(&server));
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(!sent.to_lowercase().contains("upgrade"), "{sent}");
    })
    .await;
}

#[tokio::test]
async fn old_and_odd_clients_are_served() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        // HTTP/1.0 without Host, answered by a server that ends the body by closing.
        let mut client = world.client().await;
        let serve = async {
            let (mut stream, _) = server.accept().await.unwrap();
            let head = read_head(&mut stream).await.to_lowercase();
            assert!(head.starts_with("get /old http/1.1") && head.contains("host: 10.0.0.1:80"), "{head}");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await.unwrap();
        };
        let ask = async {
            client.write_all(b"GET /old HTTP/1.0\r\n\r\n").await.unwrap();
            let mut all = String::new();
            client.read_to_string(&mut all).await.unwrap();
            all
        };
        let (response, ()) = tokio::join!(ask, serve);
        assert!(response.ends_with("\r\n\r\nuntil the end"), "{response}");

        // Chunks and 100-continue.
        let mut client = world.client().await;
        let serve = async {
            let (mut stream, _) = server.accept().await.unwrap();
            read_head(&mut stream).await;
            let body = read_head(&mut stream).await;
            assert_eq!(body, "5\r\nhello\r\n0\r\n\r\n");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n")
                .await
                .unwrap();
        };
        let ask = async {
            let head = "PUT / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
            client.write_all(head.as_bytes()).await.unwrap();
            assert!(read_head(&mut client).await.starts_with("HTTP/1.1 100"));
            client.write_all(b"5\r\nhello\r\n0\r\n\r\n").await.unwrap();
            assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
            assert_eq!(read_head(&mut client).await, "3\r\nyes\r\n0\r\n\r\n");
        };
        tokio::join!(ask, serve);

        // HEAD: a length without a body.
        let mut client = world.client().await;
        let serve = async {
            let (mut stream, _) = server.accept().await.unwrap();
            for _ in 0..2 {
                read_head(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
            }
        };
        let ask = async {
            for _ in 0..2 {
                client.write_all(b"HEAD / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
                assert!(read_head(&mut client).await.to_lowercase().contains("content-length: 1000"));
            }
        };
        tokio::join!(ask, serve);
    })
    .await;
}

#[tokio::test]
async fn what_is_not_http_or_too_large_is_told_so() {
    run(async {
        let world = World::configured(Config::new().build());
        let huge = format!("GET / HTTP/1.1\r\nHost: web\r\nX: {}\r\n\r\n", "a".repeat(70_000));
        for (request, status) in [("GET / HTTP/1.1\r\nHost: web\r\nbad header\r\n\r\n", 400), (huge.as_str(), 431)] {
            let mut client = world.client().await;
            // The server may close before it has read everything.
            let _ = client.write_all(request.as_bytes()).await;
            let head = read_head(&mut client).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
            let code = format!("response_code=\"{status}\"");
            world.reported("istio_requests_total{", &[&code, "response_flags=\"DPE\""]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_with_it() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        client.write_all(GET.as_bytes()).await.unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        read_head(&mut upstream).await;
        drop(client);
        assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
        world.reported("istio_requests_total{", &["response_code=\"0\"", "response_flags=\"DC\""]).await;
    })
    .await;
}

#[tokio::test]
async fn new_routes_hold_for_the_next_request_of_an_old_connection() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let _upstream = tokio::join!(exchange(&mut client, GET), answer_once(&server)).1;
        world.configure(Config::new().route(|route, _| route.action = Some(direct(StatusCode::OK, "new"))).build());
        assert_eq!(exchange(&mut client, GET).await.1, "new");
    })
    .await;
}

#[tokio::test]
async fn a_drain_closes_idle_connections_and_lets_a_request_finish() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let (mut idle, mut busy) = (world.client().await, world.client().await);
        let _first = tokio::join!(exchange(&mut idle, GET), answer_once(&server)).1;
        busy.write_all(GET.as_bytes()).await.unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        let pod = world.pod();
        let World { test, .. } = world;
        tokio::task::spawn_local(test.trigger.drain(Duration::from_secs(60)));
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "an idle connection is closed");
        answer_on(&mut upstream).await;
        let mut response = String::new();
        busy.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("hello"), "{response}");
        drop(pod);
    })
    .await;
}

#[tokio::test]
async fn inbound_says_who_it_is_and_dials_before_it_reads() {
    run(async {
        let world = World::configured(Config::new().build());
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = world.inbound_client(Some(&app)).await;
        let (mut upstream, _) = app.accept().await.unwrap();
        let request = "GET / HTTP/1.1\r\nHost: web\r\nX-Forwarded-Client-Cert: URI=spiffe://forged\r\n\r\n";
        let ((response, _), head) = tokio::join!(exchange(&mut client, request), answer_on(&mut upstream));
        assert!(response.contains("server: istio-envoy"), "{response}");
        assert!(!head.to_lowercase().contains("forged"), "{head}");
        world
            .reported(
                "istio_requests_total{",
                &["reporter=\"destination\"", "connection_security_policy=\"none\"", "response_code=\"200\""],
            )
            .await;
    })
    .await;
}

#[tokio::test]
async fn an_application_that_tires_of_waiting_for_a_request_is_asked_anew() {
    run(async {
        let world = World::configured(Config::new().inbound_declared_http().build());
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = world.inbound_client(Some(&app)).await;
        drop(app.accept().await.unwrap());
        let post = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody";
        let ((head, _), (mut upstream, _)) = tokio::join!(exchange(&mut client, post), answer_once(&app));
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert_eq!(read_text(&mut upstream, 4).await, "body");
    })
    .await;
}

/// `path_with_escaped_slashes_action`: refused, told to ask for another path, or sent on as that.
#[tokio::test]
async fn escaped_slashes_are_what_the_listener_says() {
    run(async {
        for (action, status) in [(2, "400 bad request"), (3, "307 temporary redirect")] {
            let world =
                World::configured(Config::new().manager(|m| m.path_with_escaped_slashes_action = action).build());
            let mut client = world.client().await;
            let (head, _) = exchange(&mut client, "GET /a%2F..%5Cb?c%2F HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert!(head.starts_with(&format!("http/1.1 {status}\r\n")), "{head}");
            assert_eq!(head.contains("location: /b?c%2f\r\n"), action == 3, "{head}");
            assert_eq!(world.dials(), 0);
            // A gRPC client follows no redirect.
            let grpc = "POST /a%2Fb HTTP/1.1\r\nHost: web\r\nContent-Type: application/grpc\r\n\r\n";
            let (head, _) = exchange(&mut client, grpc).await;
            assert!(!head.contains("307"), "{head}");
        }
        for (action, sent) in [(1, "/a%2F..%5Cb?c%2F"), (4, "/b?c%2F")] {
            let world =
                World::configured(Config::new().manager(|m| m.path_with_escaped_slashes_action = action).build());
            let server = world.server("10.0.0.1:80").await;
            let mut client = world.client().await;
            let get = "GET /a%2F..%5Cb?c%2F HTTP/1.1\r\nHost: web\r\n\r\n";
            let (_, (_upstream, head)) = tokio::join!(exchange(&mut client, get), answer_once(&server));
            assert!(head.starts_with(&format!("GET {sent} HTTP/1.1\r\n")), "{head}");
        }
    })
    .await;
}

/// Where HTTP is declared, another version of it is refused; where it is looked for, it is opaque (as to Envoy's inspector).
#[tokio::test]
async fn another_version_of_http_is_refused_or_opaque() {
    run(async {
        let get = "GET / HTTP/3.0\r\nHost: web\r\n\r\n";
        let world = World::configured(Config::new().inbound_declared_http().build());
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = world.inbound_client(Some(&app)).await;
        let (head, _) = exchange(&mut client, get).await;
        assert!(head.starts_with("http/1.1 505 "), "{head}");
        world.reported("istio_requests_total{", &["response_code=\"505\"", "response_flags=\"DPE\"", "} 1"]).await;

        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        client.write_all(get.as_bytes()).await.unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        assert_eq!(read_head(&mut upstream).await, get);
        assert!(world.metric("istio_requests_total{").is_empty());
    })
    .await;
}
