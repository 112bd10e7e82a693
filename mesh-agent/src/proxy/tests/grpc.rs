//! gRPC and gRPC-Web: the mesh's own answers, and browsers' calls.

use ::http::{HeaderMap, Request, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use tokio::io::AsyncWriteExt;

use super::config::Config;
use super::h2::*;
use super::messages::packed_empty;
use super::world::*;

#[tokio::test]
async fn a_grpc_client_is_told_of_failures_in_its_own_words() {
    run(async {
        let no_route = Config::new().host(|host| host.domains = vec!["elsewhere".into()]).build();
        for (snapshot, status, message, flags) in [
            (no_route, "12", None, "NR"),
            (Config::new().endpoints(&[]).build(), "14", Some("no healthy upstream"), "UH"),
        ] {
            let world = World::configured(snapshot);
            let mut send = client(world.client().await).await;
            let (answer, _) = send.send_request(grpc("/"), true).unwrap();
            let answer = answer.await.unwrap();
            assert!(answer.status() == 200 && answer.body().is_end_stream(), "{answer:?}");
            let headers = answer.headers();
            assert!(headers["content-type"] == "application/grpc" && headers["grpc-status"] == status, "{headers:?}");
            assert_eq!(headers.get("grpc-message").map(|value| value.to_str().unwrap()), message);
            let (status, flags) = (format!("grpc_response_status=\"{status}\""), format!("response_flags=\"{flags}\""));
            world.reported("istio_requests_total{", &["response_code=\"200\"", &status, &flags, "} 1"]).await;
            // Over HTTP/1 too, and others not.
            let mut stream = world.client().await;
            let ask = "POST / HTTP/1.1\r\nHost: web\r\nContent-Type: application/grpc\r\n\r\n";
            let (head, _) = exchange(&mut stream, ask).await;
            assert!(head.starts_with("http/1.1 200 ok") && head.contains("grpc-status: "), "{head}");
            let (head, _) = exchange(&mut stream, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert!(!head.contains("grpc") && !head.starts_with("http/1.1 200"), "{head}");
        }
    })
    .await;
}

fn web(listed: bool) -> World {
    let filter = hcm::HttpFilter {
        name: "envoy.filters.http.grpc_web".into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(packed_empty(
            "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
        ))),
        ..Default::default()
    };
    World::configured(
        Config::new().manager(|m| m.http_filters.splice(0..0, listed.then_some(filter)).for_each(drop)).build(),
    )
}

/// A call as the server sees it, answered with the same message and trailers.
async fn serve(requests: &mut tokio::sync::mpsc::UnboundedReceiver<Asked>) {
    let (mut request, mut respond) = requests.recv().await.unwrap();
    let headers = request.headers();
    assert!(headers["content-type"] == "application/grpc" && headers["te"] == "trailers", "{headers:?}");
    assert!(!headers.contains_key("content-length"), "{headers:?}");
    let message = read(request.body_mut()).await.unwrap();
    assert_eq!(message, b"\0\0\0\0\x02hi");
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut send = respond.send_response(response, false).unwrap();
    send.send_data(message.into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "5".parse().unwrap());
    send.send_trailers(trailers).unwrap();
}

const END: &[u8] = b"\x80\0\0\0\x0fgrpc-status:5\r\n";

#[tokio::test]
async fn a_browser_s_call_is_a_call_of_grpc_to_its_server() {
    run(async {
        let world = web(true);
        let mut requests = server(world.server("10.0.0.1:80").await);
        let message = b"\0\0\0\0\x02hi";
        let whole = [&message[..], END].concat();
        // Over HTTP/2, as bytes.
        let mut send = client(world.client().await).await;
        let ask = Request::post("http://web/").header("content-type", "application/grpc-web+proto").header("content-length", "7");
        let (answer, mut up) = send.send_request(ask.body(()).unwrap(), false).unwrap();
        up.send_data(message.to_vec().into(), true).unwrap();
        serve(&mut requests).await;
        let mut answer = answer.await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/grpc-web+proto");
        assert_eq!(read(answer.body_mut()).await.unwrap(), whole);
        assert!(answer.body_mut().trailers().await.unwrap().is_none());
        // Over HTTP/1, as text in two pieces, each padded.
        let mut stream = world.client().await;
        let text = [STANDARD.encode(&message[..4]), STANDARD.encode(&message[4..])].concat();
        let kind = "application/grpc-web-text";
        let head = format!(
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Type: {kind}\r\nAccept: {kind}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        stream.write_all(format!("{head}{text}").as_bytes()).await.unwrap();
        serve(&mut requests).await;
        let head = read_head(&mut stream).await;
        assert!(head.contains("content-type: application/grpc-web-text+proto\r\n"), "{head}");
        let (first, last) = (STANDARD.encode(message), STANDARD.encode(END));
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let body = format!("{}{}0\r\n\r\n", chunk(&first), chunk(&last));
        assert_eq!(read_text(&mut stream, body.len()).await, body);
        let labels = ["request_protocol=\"grpc\"", "grpc_response_status=\"5\"", "response_flags=\"-\"", "} 2"];
        world.reported("istio_requests_total{", &labels).await;
        // What is no text is refused.
        let mut stream = world.client().await;
        let (head, _) = exchange(
            &mut stream,
            &format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Type: {kind}\r\nContent-Length: 4\r\n\r\n!!!!"),
        )
        .await;
        assert!(head.starts_with("http/1.1 200 ok\r\n") && head.contains("grpc-status: 13\r\n"), "{head}");
        assert!(head.contains("content-type: application/grpc-web+proto\r\n"), "{head}");
    })
    .await;
}

#[tokio::test]
async fn without_the_filter_a_browser_s_call_is_any_request() {
    run(async {
        let world = web(false);
        let server = world.server("10.0.0.1:80").await;
        let mut stream = world.client().await;
        let ask = "POST / HTTP/1.1\r\nHost: web\r\nContent-Type: application/grpc-web\r\nContent-Length: 0\r\n\r\n";
        let (_, (_upstream, head)) = tokio::join!(exchange(&mut stream, ask), answer_once(&server));
        assert!(head.starts_with("POST / HTTP/1.1\r\n") && head.contains("application/grpc-web\r\n"), "{head}");
    })
    .await;
}
