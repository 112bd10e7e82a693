//! What comes in the open: refused before the application hears of it, and cut off when it may no longer be there.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::config::Config;
use super::world::*;

const REFUSED: &str = "mesh_agent_plaintext_refused_total{";
const ANYBODY: &str = "spiffe://";

#[tokio::test(start_paused = true)]
async fn where_mutual_tls_is_asked_for_nobody_dials_the_application() {
    run_paused(async {
        let world = World::configured(Config::new().strict(ANYBODY).build());
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for words in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", b"\0", b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x03"] {
            let mut client = world.inbound_client(Some(&app)).await;
            // It may be reset already.
            let _ = client.write_all(words).await;
            assert!(is_reset(&mut client).await, "{words:?}");
        }
        assert_eq!(world.dials(), 0);
        world.reported(REFUSED, &["reason=\"strict\"", "} 4"]).await;
        world.reported("istio_tcp_connections_closed_total{", &["response_flags=\"NR\"", "} 4"]).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_a_configuration_nobody_comes_in() {
    run_paused(async {
        let world = World::new();
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = world.inbound_client(Some(&app)).await;
        assert!(is_reset(&mut client).await);
        assert_eq!(world.dials(), 0);
        world.reported(REFUSED, &["reason=\"no_configuration\"", "} 1"]).await;
        // One that comes in time decides.
        for (config, served) in [(Config::new().strict(ANYBODY), false), (Config::new(), true)] {
            let world = World::new();
            let client = world.inbound_client(Some(&app)).await;
            tokio::task::yield_now().await;
            assert_eq!(world.dials(), 0);
            world.configure(config.build());
            is_decided(client, &app, served).await;
        }
    })
    .await;
}

#[tokio::test]
async fn open_connections_end_when_plaintext_may_no_longer_come_in() {
    run(async {
        let world = World::configured(Config::new().build());
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Bytes, a request that waits for its answer, and a connection that has switched to another protocol.
        let mut bytes = world.inbound_client(Some(&app)).await;
        let (mut bytes_app, _) = app.accept().await.unwrap();
        bytes.write_all(b"\0a").await.unwrap();
        assert_eq!(read_text(&mut bytes_app, 2).await, "\0a");
        let mut http = world.inbound_client(Some(&app)).await;
        let (mut http_app, _) = app.accept().await.unwrap();
        http.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
        read_head(&mut http_app).await;
        let mut socket = world.inbound_client(Some(&app)).await;
        let (mut socket_app, _) = app.accept().await.unwrap();
        let ask = "GET / HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        socket.write_all(ask.as_bytes()).await.unwrap();
        read_head(&mut socket_app).await;
        let yes = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        socket_app.write_all(yes.as_bytes()).await.unwrap();
        assert!(read_head(&mut socket).await.starts_with("HTTP/1.1 101"));

        // A change that forbids nothing ends nothing.
        world.reconfigure(Config::new().build());
        socket.write_all(b"frame").await.unwrap();
        assert_eq!(read_text(&mut socket_app, 5).await, "frame");
        bytes.write_all(b"b").await.unwrap();
        assert_eq!(read_text(&mut bytes_app, 1).await, "b");

        world.reconfigure(Config::new().strict(ANYBODY).build());
        for end in [&mut bytes, &mut bytes_app, &mut http, &mut http_app, &mut socket, &mut socket_app] {
            assert!(is_over(end).await, "no byte more");
        }
        world.reported(REFUSED, &["reason=\"became_strict\"", "} 3"]).await;
        world.reported("istio_tcp_connections_closed_total{", &["response_flags=\"LR\"", "} 1"]).await;
    })
    .await;
}
