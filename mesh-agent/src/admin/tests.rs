//! The pages over a real socket: what they say, and what they do not let a client do.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::net::netns::NetNs;
use crate::settings::WorkloadSettings;
use crate::shutdown;
use crate::telemetry::Limits;

const SETTINGS: &str = "node: n1\ncontrolPlane: {address: 'http://127.0.0.1:1'}\n";

fn view(roster: Roster) -> Arc<View> {
    let settings = Settings::parse(std::path::Path::new("agent.yaml"), SETTINGS).unwrap();
    let (sender, receiver) = watch::channel(Arc::new(roster));
    // The pages must work when the app has gone, too.
    drop(sender);
    Arc::new(View {
        identities: Identities::new(&settings.control_plane, tokio::runtime::Handle::current()),
        settings: Arc::new(settings),
        metrics: Metrics::new(Limits::default()),
        live: Arc::default(),
        node_stream: None,
        roster: receiver,
        started: SystemTime::UNIX_EPOCH,
        shutdown: shutdown::channel().1,
    })
}

fn enrolled() -> Enrolled {
    let settings = WorkloadSettings {
        name: "a".into(),
        namespace: "default".into(),
        service_account: "sa-a".into(),
        labels: [("app".to_owned(), "a".to_owned())].into(),
        netns: None,
        pid: None,
        cgroup: None,
        ports: Vec::new(),
        workload_name: None,
        on_agent_loss: Default::default(),
        existing_connections: Default::default(),
        same_node: Default::default(),
        udp: Default::default(),
        shortcuts: Default::default(),
        tls_files: None,
        probes: Vec::new(),
    };
    let netns = Arc::new(NetNs::current().expect("a network namespace (these tests need root)"));
    let workload =
        Workload::new(7, &settings, &"c1".into(), "cluster.local", netns, vec![[10, 0, 0, 1].into()]).unwrap();
    Enrolled { workload: Arc::new(workload), xds: StatusCell::default() }
}

async fn start(pages: &'static [Page], view: Arc<View>) -> (SocketAddr, shutdown::Trigger) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (trigger, watch, _guard) = shutdown::channel();
    watch.spawn("test", serve(listener, pages, view, watch.clone()));
    (address, trigger)
}

async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // A reset after the answer is no concern of this test.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = raw(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn admin_pages() {
    let pending = Pending { key: "default/b".into(), reason: "no such file".into() };
    let (address, _trigger) =
        start(Page::ADMIN, view(Roster { enrolled: vec![enrolled()], pending: vec![pending] })).await;

    let (status, body) = get(address, "/").await;
    assert_eq!(status, 200);
    for page in Page::ADMIN {
        assert!(body.lines().any(|line| line.starts_with(page.path)), "{body}");
    }
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".into()));

    let (_, body) = get(address, "/workloads").await;
    let workloads: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(workloads["node"], "n1");
    assert_eq!(workloads["started"], "1970-01-01T00:00:00Z");
    assert_eq!(workloads["enrolled"][0]["identity"], "spiffe://cluster.local/ns/default/sa/sa-a");
    assert_eq!(workloads["enrolled"][0]["addresses"][0], "10.0.0.1");
    assert_eq!(workloads["enrolled"][0]["configured"], false);
    assert_eq!(workloads["enrolled"][0]["xds"]["connected"], false);
    assert_eq!(workloads["pending"][0]["reason"], "no such file");

    let (_, body) = get(address, "/certs").await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap()["certificates"], serde_json::json!([]));
    let (_, body) = get(address, "/stats").await;
    assert!(body.contains("istio_build{component=\"proxy\""), "{body}");

    let (status, body) = get(address, "/nothing").await;
    assert_eq!(status, 404);
    assert!(body.contains("/config_dump"));
}

#[tokio::test]
async fn configuration_by_workload() {
    let view = view(Roster { enrolled: vec![enrolled()], pending: Vec::new() });
    view.live.publish(7, Arc::new(mesh_core::Snapshot::default()));
    let (address, _trigger) = start(Page::ADMIN, view).await;
    let (_, body) = get(address, "/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(dump["workloads"][0]["workload"], "default/a");
    assert_eq!(dump["workloads"][0]["counts"]["listeners"], 0);
    for path in ["/config_dump?workload=default/a", "/config_dump?x=1&workload=default%2Fa"] {
        let (_, body) = get(address, path).await;
        let dump: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(dump["configuration"]["listeners"], serde_json::json!([]), "{body}");
    }
    assert_eq!(get(address, "/config_dump?workload=default/x").await.0, 404);
}

#[tokio::test]
async fn ready_says_what_is_missing() {
    let (address, _trigger) = start(Page::READY, view(Roster::default())).await;
    assert_eq!(get(address, "/healthz/ready").await, (200, "ready\n".into()));
    assert_eq!(get(address, "/workloads").await.0, 404);

    let pending = (0..30).map(|i| Pending { key: format!("default/p{i}"), reason: "no".into() }).collect();
    let (address, _trigger) = start(Page::READY, view(Roster { enrolled: vec![enrolled()], pending })).await;
    let (status, body) = get(address, "/healthz/ready").await;
    assert_eq!(status, 503);
    assert!(body.starts_with("not ready: 32 missing\ndefault/p0: not enrolled: no\n"), "{body}");
    assert!(body.ends_with("and 12 more\n"), "{body}");

    let lone = view(Roster { enrolled: vec![enrolled()], pending: Vec::new() });
    lone.live.publish(7, Arc::new(mesh_core::Snapshot::default()));
    let (address, _trigger) = start(Page::READY, lone).await;
    let (_, body) = get(address, "/healthz/ready").await;
    assert_eq!(
        body,
        "not ready: 1 missing\ndefault/a: no valid certificate for spiffe://cluster.local/ns/default/sa/sa-a\n"
    );
}

#[tokio::test]
async fn an_ending_agent_is_not_ready() {
    let (trigger, watch, _guard) = shutdown::channel();
    let mut ending = Arc::into_inner(view(Roster::default())).unwrap();
    ending.shutdown = watch.clone();
    let (address, _trigger) = start(Page::READY, Arc::new(ending)).await;
    tokio::spawn(trigger.drain(Duration::from_secs(3600)));
    watch.clone().draining().await;
    assert_eq!(get(address, "/healthz/ready").await, (503, "not ready: the agent is ending\n".into()));
}

#[tokio::test]
async fn only_get_and_only_small() {
    let (address, _trigger) = start(Page::ADMIN, view(Roster::default())).await;
    for method in ["POST", "PUT", "DELETE", "QUIT"] {
        let answer = raw(
            address,
            &format!("{method} /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains("\r\nallow: GET\r\n"), "{answer}");
    }
    let huge = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(huge.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    // Garbage closes its own connection, and the server goes on.
    raw(address, "\x16\x03\x01 what\r\n\r\n").await;
    assert_eq!(get(address, "/healthz").await.0, 200);
}

#[tokio::test]
async fn idle_connections_do_not_block_the_port() {
    let (address, trigger) = start(Page::ADMIN, view(Roster::default())).await;
    let _idle = TcpStream::connect(address).await.unwrap();
    assert_eq!(get(address, "/healthz").await.0, 200);
    // The shutdown closes the port with what is open on it.
    trigger.drain(Duration::ZERO).await;
    tokio::time::timeout(Duration::from_secs(10), async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the port closes");
}
