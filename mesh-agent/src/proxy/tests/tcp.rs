//! Opaque connections.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::config::{Config, SERVICE};
use super::messages::tcp_listener;
use super::world::*;

#[tokio::test]
async fn a_server_on_a_declared_port_speaks_first_at_once() {
    run(async {
        let world = World::to("10.96.0.1:3306");
        world.configure(Config::new().listener(tcp_listener("0.0.0.0_3306", "0.0.0.0", 3306, SERVICE)).build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        let (mut upstream, _) = server.accept().await.unwrap();
        upstream.write_all(b"greeting").await.unwrap();
        assert_eq!(read_text(&mut client, 8).await, "greeting");
        client.write_all(b"answer").await.unwrap();
        assert_eq!(read_text(&mut upstream, 6).await, "answer");
        drop(client);
        assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
        drop(upstream);
        let labels = ["destination_service=\"web.default.svc.cluster.local\"", "request_protocol=\"tcp\""];
        for (metric, value) in [
            ("istio_tcp_connections_opened_total{", "} 1"),
            ("istio_tcp_connections_closed_total{", "} 1"),
            ("istio_tcp_sent_bytes_total{", "} 8"),
            ("istio_tcp_received_bytes_total{", "} 6"),
        ] {
            world.reported(metric, &[labels[0], labels[1], value]).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn on_an_undetected_port_whoever_speaks_first_decides() {
    run_paused(async {
        // Anything but HTTP on this port passes through to where the client wanted to go.
        for server_first in [true, false] {
            let world = World::configured(Config::new().build());
            let server = world.server("10.0.0.1:80").await;
            let mut client = world.client().await;
            let (mut upstream, _) = server.accept().await.unwrap();
            if server_first {
                upstream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
                assert_eq!(read_text(&mut client, 11).await, "SSH-2.0-x\r\n");
                client.write_all(b"SSH-2.0-y\r\n").await.unwrap();
                assert_eq!(read_text(&mut upstream, 11).await, "SSH-2.0-y\r\n");
            } else {
                let get = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
                let ((head, _), (_http, _)) = tokio::join!(exchange(&mut client, get), answer_once(&server));
                assert!(head.starts_with("http/1.1 200"), "{head}");
                assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0, "the connection on trial is closed");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn opaque_bytes_are_detected_and_passed_through_whole() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        client.write_all(b"\x01\x02not http").await.unwrap();
        let (mut upstream, _) = server.accept().await.unwrap();
        let mut got = [0; 10];
        upstream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"\x01\x02not http");
        client.shutdown().await.unwrap();
        assert_eq!(upstream.read(&mut got).await.unwrap(), 0);
        drop(upstream);
        world
            .reported("istio_tcp_connections_closed_total{", &["destination_service_name=\"PassthroughCluster\""])
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_refused_upstream_resets_the_client() {
    run(async {
        let world = World::to("10.96.0.1:3306");
        world.configure(Config::new().listener(tcp_listener("0.0.0.0_3306", "0.0.0.0", 3306, SERVICE)).build());
        let mut client = world.client().await;
        let error = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        world.reported("istio_tcp_connections_closed_total{", &["response_flags=\"UF\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_for_the_first_configuration_but_not_for_ever() {
    run_paused(async {
        let world = World::to("10.96.0.1:3306");
        let mut client = world.client().await;
        let error = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let server = world.server("10.0.0.1:80").await;
        let mut client = world.client().await;
        tokio::task::yield_now().await;
        world.configure(Config::new().listener(tcp_listener("0.0.0.0_3306", "0.0.0.0", 3306, SERVICE)).build());
        let (mut upstream, _) = server.accept().await.unwrap();
        upstream.write_all(b"late").await.unwrap();
        assert_eq!(read_text(&mut client, 4).await, "late");
    })
    .await;
}

#[tokio::test]
async fn inbound_an_application_may_speak_first_and_its_refusal_is_the_client_s() {
    run(async {
        let world = World::configured(Config::new().build());
        let mut refused = world.inbound_client(None).await;
        let error = refused.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = world.inbound_client(Some(&app)).await;
        let (mut upstream, _) = app.accept().await.unwrap();
        upstream.write_all(b"welcome").await.unwrap();
        assert_eq!(read_text(&mut client, 7).await, "welcome");
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(
            read_head(&mut upstream).await,
            "GET / HTTP/1.1\r\n\r\n",
            "now it is opaque, whatever it looks like"
        );
        drop((client, upstream));
        world.reported("istio_tcp_sent_bytes_total{", &["reporter=\"destination\"", "} 7"]).await;
    })
    .await;
}

/// What the kernel has chosen is where it goes, for as long as that is an endpoint.
#[tokio::test]
async fn the_endpoint_that_the_kernel_has_chosen_is_taken() {
    run(async {
        let world = World::to("10.96.0.1:3306");
        let listener = || tcp_listener("0.0.0.0_3306", "0.0.0.0", 3306, SERVICE);
        let all = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
        let servers = [world.server(all[0]).await, world.server(all[1]).await, world.server(all[2]).await];
        world.configure(Config::new().endpoints(&all).listener(listener()).build());
        for i in [2, 0, 2, 1, 1, 2] {
            world.test.chosen.set(Some(all[i].parse().unwrap()));
            let _client = world.client().await;
            servers[i].accept().await.unwrap();
        }
        world.configure(Config::new().endpoints(&all[..1]).listener(listener()).build());
        let _client = world.client().await;
        servers[0].accept().await.unwrap();
    })
    .await;
}
