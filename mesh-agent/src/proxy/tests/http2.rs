//! HTTP/2 with prior knowledge, as gRPC speaks it.

use ::http::{HeaderMap, Request, Response};
use bytes::Bytes;

use tokio::net::{TcpListener, TcpStream};

use super::config::Config;
use super::world::*;

#[tokio::test]
async fn grpc_passes_with_its_trailers_and_shares_one_connection() {
    run(async {
        let world = World::configured(Config::new().build());
        let server = world.server("10.0.0.1:80").await;
        let client = world.client().await;
        call(&world, client, server).await;
        let labels = ["request_protocol=\"grpc\"", "grpc_response_status=\"7\"", "response_code=\"200\"", "} 5"];
        world.reported("istio_requests_total{", &labels).await;
    })
    .await;
}

#[tokio::test]
async fn inbound_http2_is_recognised_whether_declared_or_not() {
    run(async {
        for config in [Config::new().inbound_declared_http(), Config::new()] {
            let world = World::configured(config.build());
            let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = world.inbound_client(Some(&app)).await;
            // The server's settings are there before the client's preface.
            call(&world, client, app).await;
            world.reported("istio_requests_total{", &["request_protocol=\"grpc\"", "} 5"]).await;
        }
    })
    .await;
}

/// Five calls at once on one connection, which all arrive on one connection.
async fn call(world: &World, client: TcpStream, server: TcpListener) {
    tokio::task::spawn_local(async move {
        let (stream, _) = server.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request.unwrap();
            assert_eq!(request.uri().to_string(), "http://web/shop.Cart/Add");
            let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(response, false).unwrap();
            send.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "7".parse().unwrap());
            send.send_trailers(trailers).unwrap();
        }
    });
    let (send, connection) = h2::client::handshake(client).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    let mut answers = Vec::new();
    for _ in 0..5 {
        let request = Request::post("http://web/shop.Cart/Add").header("content-type", "application/grpc").body(());
        let mut send = send.clone().ready().await.unwrap();
        let (answer, mut body) = send.send_request(request.unwrap(), false).unwrap();
        body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true).unwrap();
        answers.push(answer);
    }
    for answer in answers {
        let mut body = answer.await.unwrap().into_body();
        while let Some(data) = body.data().await {
            assert_eq!(data.unwrap().len(), 5);
        }
        assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "7");
    }
    assert_eq!(world.dials(), 1);
}
