//! Many requests through one inbound connection, with a route, a policy and metrics: what the benchmark counts instructions of.
//!
//! The client and the application have a thread of their own, so that what the agent executes stands apart.

use std::io::{Read, Write};
use std::net::TcpStream;

use mesh_proto::security::Action;

use super::config::Config;
use super::policies::{mesh, nobody, policy};
use super::world::*;

/// Requests, unless the environment's `MESH_REQUESTS` has another number.
const REQUESTS: usize = 100;
const ANSWER: usize = 1024;

/// Asks and answers in turn, so that neither waits for the other's thread.
fn converse(client: &mut TcpStream, app: &std::net::TcpListener, requests: usize) {
    let ask = "GET /x HTTP/1.1\r\nHost: client\r\nUser-Agent: tested\r\nAccept: */*\r\n\r\n";
    let answer = format!(
        "HTTP/1.1 200 OK\r\nServer: tested\r\nContent-Type: text/plain\r\nContent-Length: {ANSWER}\r\n\r\n{}",
        "x".repeat(ANSWER)
    );
    let mut upstream = None;
    for _ in 0..requests {
        client.write_all(ask.as_bytes()).unwrap();
        let upstream = upstream.get_or_insert_with(|| app.accept().unwrap().0);
        assert!(read_to(upstream, "\r\n\r\n").starts_with("GET /x HTTP/1.1\r\n"));
        upstream.write_all(answer.as_bytes()).unwrap();
        assert!(read_to(client, &"x".repeat(ANSWER)).starts_with("HTTP/1.1 200 OK\r\n"));
    }
}

/// Reads up to and with these bytes.
fn read_to(stream: &mut TcpStream, end: &str) -> String {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while !all.ends_with(end.as_bytes()) {
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "an end after {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&piece[..n]);
    }
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn many_requests_on_one_connection() {
    let requests = std::env::var("MESH_REQUESTS").map_or(REQUESTS, |number| number.parse().unwrap());
    run(async {
        let app = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = World::judged(None);
        world.configure(Config::new().build());
        world.tell_mesh(mesh(&[policy("p", Action::Allow, Some(nobody()))], &[]));
        let client = world.inbound_client(Some(&app)).await;
        let (mut client, app) = (client.into_std().unwrap(), app.into_std().unwrap());
        client.set_nonblocking(false).unwrap();
        app.set_nonblocking(false).unwrap();
        tokio::task::spawn_blocking(move || converse(&mut client, &app, requests)).await.unwrap();
        world.reported("istio_requests_total{", &["response_code=\"200\"", &format!("}} {requests}")]).await;
    })
    .await;
}
