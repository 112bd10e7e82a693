//! HTTP/2 with prior knowledge, as gRPC speaks it.

use std::future::poll_fn;
use std::time::Duration;

use ::h2::client::SendRequest;
use ::h2::{Reason, RecvStream, SendStream};
use ::http::{HeaderMap, HeaderName, Request, Response};
use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::google::protobuf;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::config::Config;
use super::h2::*;
use super::messages::number;
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
        let mut connection = ::h2::server::handshake(stream).await.unwrap();
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
    let (send, connection) = ::h2::client::handshake(client).await.unwrap();
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

/// A route whose requests are tried again when a stream is refused.
fn retrying(config: Config) -> Config {
    config.host(|host| {
        host.retry_policy = Some(route::RetryPolicy {
            retry_on: "refused-stream".into(),
            num_retries: number(1),
            retry_back_off: Some(route::retry_policy::RetryBackOff {
                base_interval: Some(protobuf::Duration { seconds: 0, nanos: 1_000_000 }),
                ..Default::default()
            }),
            ..Default::default()
        });
    })
}

async fn pair_of_ends(world: &World) -> (SendRequest<Bytes>, mpsc::UnboundedReceiver<Asked>) {
    let server = server(world.server("10.0.0.1:80").await);
    (client(world.client().await).await, server)
}

/// Sends until nobody takes more, and gives the number of bytes.
async fn fill(send: &mut SendStream<Bytes>) -> usize {
    let mut sent = 0;
    loop {
        send.reserve_capacity(64 << 10);
        let room = async {
            while send.capacity() == 0 {
                poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
            }
        };
        if timeout(Duration::from_millis(200), room).await.is_err() {
            return sent;
        }
        let room = send.capacity();
        send.send_data(vec![b'x'; room].into(), false).unwrap();
        sent += room;
        assert!(sent < 32 << 20, "nobody holds the sender back");
    }
}

async fn take(body: &mut RecvStream, mut bytes: usize) {
    while bytes > 0 {
        let data = body.data().await.unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes -= data.len();
    }
}

#[tokio::test]
async fn who_reads_slowly_holds_the_other_end() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let (mut send, mut requests) = pair_of_ends(&world).await;
        let (answer, mut up) = send.send_request(grpc("/"), false).unwrap();
        let (mut request, mut respond) = requests.recv().await.unwrap();
        let mut down = respond.send_response(ok(), false).unwrap();
        let mut answer = answer.await.unwrap();
        let (forth, back) = (fill(&mut up).await, fill(&mut down).await);
        assert!(forth < 6 << 20 && back < 6 << 20, "{forth} {back}");
        // Another stream is not held.
        let (other, _) = send.send_request(get("/other"), true).unwrap();
        requests.recv().await.unwrap().1.send_response(ok(), true).unwrap();
        assert_eq!(other.await.unwrap().status(), 200);
        take(request.body_mut(), forth).await;
        take(answer.body_mut(), back).await;
        assert!(fill(&mut up).await > 0 && fill(&mut down).await > 0);
    })
    .await;
}

#[tokio::test]
async fn heads_trailers_and_interim_answers_pass_both_ways() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let (mut send, mut requests) = pair_of_ends(&world).await;
        let request = Request::post("http://web/p?q").header("x-mine", "1").header("te", "trailers");
        let (mut answer, mut up) = send.send_request(request.body(()).unwrap(), false).unwrap();
        let trailers =
            |name: &'static str| HeaderMap::from_iter([(HeaderName::from_static(name), "yes".parse().unwrap())]);
        up.send_data("hello".into(), false).unwrap();
        up.send_trailers(trailers("x-asked")).unwrap();
        let (mut request, mut respond) = requests.recv().await.unwrap();
        let headers = request.headers();
        assert_eq!(request.uri(), "http://web/p?q");
        assert!(headers["x-mine"] == "1" && headers["te"] == "trailers" && headers["x-forwarded-proto"] == "http");
        assert!(headers.contains_key("x-request-id") && !headers.contains_key("host"), "{headers:?}");
        let hints = Response::builder().status(103).header("link", "</x>").body(()).unwrap();
        respond.send_informational(hints).unwrap();
        let interim = poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
        assert!(interim.status() == 103 && interim.headers()["link"] == "</x>");
        assert_eq!(read(request.body_mut()).await.unwrap(), b"hello");
        assert_eq!(request.body_mut().trailers().await.unwrap().unwrap()["x-asked"], "yes");
        let mut down = respond.send_response(ok(), false).unwrap();
        down.send_data("there".into(), false).unwrap();
        down.send_trailers(trailers("x-told")).unwrap();
        let mut answer = answer.await.unwrap();
        assert!(
            answer.headers().contains_key("date") && answer.headers().contains_key("x-envoy-upstream-service-time")
        );
        assert_eq!(read(answer.body_mut()).await.unwrap(), b"there");
        assert_eq!(answer.body_mut().trailers().await.unwrap().unwrap()["x-told"], "yes");
    })
    .await;
}

#[tokio::test]
async fn a_reset_goes_through_to_the_other_side() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let (mut send, mut requests) = pair_of_ends(&world).await;
        // The client's, before there is an answer and behind its head.
        for begun in [false, true] {
            let (answer, mut up) = send.send_request(grpc("/"), false).unwrap();
            let (mut request, mut respond) = requests.recv().await.unwrap();
            let down = begun.then(|| respond.send_response(ok(), false).unwrap());
            let answer = if begun { (Some(answer.await.unwrap()), None) } else { (None, Some(answer)) };
            up.send_reset(Reason::CANCEL);
            let error = request.body_mut().data().await.unwrap().unwrap_err();
            assert_eq!(error.reason(), Some(Reason::CANCEL));
            drop((down, answer));
        }
        world.reported("istio_requests_total{", &["response_code=\"0\"", "response_flags=\"DR\"", "} 1"]).await;
        world.reported("istio_requests_total{", &["response_code=\"200\"", "response_flags=\"DR\"", "} 1"]).await;
        // With nothing more to send either.
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        let (_request, mut respond) = requests.recv().await.unwrap();
        drop(answer);
        assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
        let told = ["request_protocol=\"http\"", "response_code=\"0\"", "response_flags=\"DR\"", "} 1"];
        world.reported("istio_requests_total{", &told).await;
        // The server's.
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        requests.recv().await.unwrap().1.send_reset(Reason::INTERNAL_ERROR);
        assert_eq!(answer.await.unwrap().status(), 503);
        world.reported("istio_requests_total{", &["response_code=\"503\"", "response_flags=\"UR\"", "} 1"]).await;
        let (answer, _) = send.send_request(get("/"), true).unwrap();
        let (_request, mut respond) = requests.recv().await.unwrap();
        let mut down = respond.send_response(ok(), false).unwrap();
        let mut answer = answer.await.unwrap();
        down.send_reset(Reason::ENHANCE_YOUR_CALM);
        let error = answer.body_mut().data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
        world.reported("istio_requests_total{", &["response_code=\"200\"", "response_flags=\"UR\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_requests_with_it() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let mut requests = server(world.server("10.0.0.1:80").await);
        let stream = world.client().await;
        let (mut send, connection) = ::h2::client::handshake(stream).await.unwrap();
        let connection = tokio::task::spawn_local(connection);
        let (_answer, _up) = send.send_request(grpc("/"), false).unwrap();
        let (mut request, _respond) = requests.recv().await.unwrap();
        connection.abort();
        assert!(request.body_mut().data().await.unwrap().is_err());
        world.reported("istio_requests_total{", &["response_code=\"0\"", "response_flags=\"DC\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_refused_stream_is_tried_again_if_the_route_says_so() {
    run(async {
        for again in [true, false] {
            let config = Config::new().speaks_http2();
            let world = World::configured(if again { retrying(config) } else { config }.build());
            let (mut send, mut requests) = pair_of_ends(&world).await;
            let (answer, _) = send.send_request(Request::post("http://web/").body(()).unwrap(), true).unwrap();
            requests.recv().await.unwrap().1.send_reset(Reason::REFUSED_STREAM);
            if again {
                requests.recv().await.unwrap().1.send_response(ok(), true).unwrap();
            }
            assert_eq!(answer.await.unwrap().status(), if again { 200 } else { 503 });
            let flags = if again { "response_flags=\"-\"" } else { "response_flags=\"UR\"" };
            world.reported("istio_requests_total{", &[flags, "} 1"]).await;
        }
    })
    .await;
}

/// A server that says GOAWAY has not seen the streams behind the last one that it names.
#[tokio::test]
async fn a_request_that_goaway_overtook_goes_to_a_new_connection() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let listener = world.server("10.0.0.1:80").await;
        let mut send = client(world.client().await).await;
        let (answer, _) = send.send_request(Request::post("http://web/").body(()).unwrap(), true).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut raw = Raw(stream);
        raw.0.read_exact(&mut [0; 24]).await.unwrap();
        raw.send(SETTINGS, 0, 0, b"").await;
        assert!(raw.next(HEADERS).await.is_some());
        raw.send(GOAWAY, 0, 0, &[0; 8]).await;
        let mut requests = server(listener);
        requests.recv().await.unwrap().1.send_response(ok(), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
    })
    .await;
}

#[tokio::test]
async fn an_answer_before_the_request_s_end_is_an_answer() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let (mut send, mut requests) = pair_of_ends(&world).await;
        let (answer, mut up) = send.send_request(grpc("/"), false).unwrap();
        let (request, mut respond) = requests.recv().await.unwrap();
        let mut down = respond.send_response(Response::builder().status(413).body(()).unwrap(), false).unwrap();
        down.send_data("no".into(), true).unwrap();
        drop((request, respond, down));
        let mut answer = answer.await.unwrap();
        assert_eq!(answer.status(), 413);
        assert_eq!(read(answer.body_mut()).await.unwrap(), b"no");
        let reset = poll_fn(|cx| up.poll_reset(cx)).await;
        assert_eq!(reset.unwrap(), Reason::NO_ERROR);
        world.reported("istio_requests_total{", &["response_code=\"413\"", "response_flags=\"-\"", "} 1"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_drain_lets_open_streams_finish_and_takes_no_new_ones() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let mut requests = server(world.server("10.0.0.1:80").await);
        let (mut send, connection) = ::h2::client::handshake(world.client().await).await.unwrap();
        let connection = tokio::task::spawn_local(connection);
        let (answer, mut up) = send.send_request(grpc("/"), false).unwrap();
        let (mut request, mut respond) = requests.recv().await.unwrap();
        let _pod = world.pod();
        let World { test, .. } = world;
        tokio::task::spawn_local(test.trigger.drain(Duration::from_secs(60)));
        // Both steps of GOAWAY: from then on the client opens nothing more.
        let refused = async {
            while let Ok(ready) = send.clone().ready().await {
                send = ready;
                tokio::task::yield_now().await;
            }
        };
        refused.await;
        up.send_data("late".into(), true).unwrap();
        assert_eq!(read(request.body_mut()).await.unwrap(), b"late");
        respond.send_response(ok(), false).unwrap().send_data("too".into(), true).unwrap();
        assert_eq!(read(answer.await.unwrap().body_mut()).await.unwrap(), b"too");
        drop(send);
        connection.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_client_that_waits_to_send_its_body_is_told_to() {
    run(async {
        let world = World::configured(Config::new().speaks_http2().build());
        let (mut send, mut requests) = pair_of_ends(&world).await;
        let request = Request::put("http://web/").header("expect", "100-continue").body(()).unwrap();
        let (mut answer, mut up) = send.send_request(request, false).unwrap();
        let interim = poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!(interim.status(), 100);
        up.send_data("body".into(), true).unwrap();
        let (mut request, mut respond) = requests.recv().await.unwrap();
        assert!(!request.headers().contains_key("expect"));
        assert_eq!(read(request.body_mut()).await.unwrap(), b"body");
        respond.send_response(ok(), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
    })
    .await;
}

/// A connection that its server has closed meanwhile is no failure of a request that may be made again.
#[tokio::test]
async fn a_request_that_its_server_leaves_alone_is_made_again_only_if_that_is_safe() {
    run(async {
        for (request, status) in [(get("/"), 200), (Request::post("http://web/").body(()).unwrap(), 503)] {
            let world = World::configured(Config::new().speaks_http2().build());
            let listener = world.server("10.0.0.1:80").await;
            let mut send = client(world.client().await).await;
            let (answer, _) = send.send_request(get("/first"), true).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = ::h2::server::handshake(stream).await.unwrap();
            let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
            respond.send_response(ok(), true).unwrap();
            let next = tokio::task::spawn_local(async move {
                // It reads the second request and goes away without a word.
                let second = connection.accept().await.unwrap().unwrap();
                drop((connection, second));
            });
            assert_eq!(answer.await.unwrap().status(), 200);
            let (answer, _) = send.send_request(request, true).unwrap();
            next.await.unwrap();
            let mut requests = server(listener);
            if status == 200 {
                requests.recv().await.unwrap().1.send_response(ok(), true).unwrap();
            }
            assert_eq!(answer.await.unwrap().status(), status);
        }
    })
    .await;
}
