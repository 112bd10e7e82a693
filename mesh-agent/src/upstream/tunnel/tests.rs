//! Tunnels over in-memory pipes, with a server of h2 at the other end.

use std::io;
use std::rc::Rc;

use h2::Reason;
use h2::server::SendResponse;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;

use super::*;
use crate::net::share::Share;
use crate::tls::tests::Authority;

const A: &str = "spiffe://cluster.local/ns/default/sa/a";
const B: &str = "spiffe://cluster.local/ns/default/sa/b";
const LIMIT: Duration = Duration::from_secs(5);

fn key(workload: u32) -> TunnelKey {
    TunnelKey {
        workload,
        to: "10.0.0.2:15008".parse().unwrap(),
        source: A.parse().unwrap(),
        expected: [B.parse().unwrap()].into(),
        port: None,
    }
}

fn tunnels() -> Tunnels {
    Tunnels::new(&Limits::default(), Arc::default())
}

fn window() -> Window {
    Share::new(&Limits::default(), Arc::default()).window()
}

fn head() -> ConnectHead {
    ConnectHead { authority: "10.0.0.2:80".parse().unwrap(), headers: HeaderMap::new() }
}

/// What a test sees of a server's tunnel.
type Request_ = (http::Request<h2::RecvStream>, SendResponse<Bytes>);

type Dialling = std::pin::Pin<Box<dyn Future<Output = Result<Transport<DuplexStream>, UpstreamError>>>>;

/// Stands for the other agents: every dial makes a tunnel whose requests arrive at the test.
struct Peers {
    dials: Rc<Cell<usize>>,
    requests: mpsc::UnboundedReceiver<Request_>,
    to_test: mpsc::UnboundedSender<Request_>,
    /// Streams that a server allows.
    max_streams: u32,
    /// GOAWAY after so many streams.
    goaway_after: Option<usize>,
    /// Bytes under way to a server.
    pipe: usize,
    /// Servers look at nothing more once told.
    stall: Rc<Notify>,
}

impl Peers {
    fn new() -> Self {
        let (to_test, requests) = mpsc::unbounded_channel();
        Self {
            dials: Rc::default(),
            requests,
            to_test,
            max_streams: 1000,
            goaway_after: None,
            pipe: 64 << 10,
            stall: Rc::default(),
        }
    }

    fn dial(&self) -> impl Fn() -> Dialling + use<> {
        let (dials, to_test, max, goaway) =
            (self.dials.clone(), self.to_test.clone(), self.max_streams, self.goaway_after);
        let (pipe, stall) = (self.pipe, self.stall.clone());
        move || {
            dials.set(dials.get() + 1);
            let (near, far) = tokio::io::duplex(pipe);
            tokio::task::spawn_local(serve(far, to_test.clone(), max, goaway, stall.clone()));
            Box::pin(async move {
                tokio::task::yield_now().await;
                Ok(Transport { io: near, local: None, identity: B.parse().unwrap(), window: Some(window()) })
            })
        }
    }
}

async fn serve(
    io: DuplexStream,
    to_test: mpsc::UnboundedSender<Request_>,
    max_streams: u32,
    goaway_after: Option<usize>,
    stall: Rc<Notify>,
) {
    let mut connection =
        h2::server::Builder::new().max_concurrent_streams(max_streams).handshake::<_, Bytes>(io).await.unwrap();
    let mut streams = 0;
    loop {
        let request = tokio::select! {
            request = connection.accept() => request,
            () = stall.notified() => std::future::pending().await,
        };
        let Some(Ok(request)) = request else { return };
        let _ = to_test.send(request);
        streams += 1;
        if Some(streams) == goaway_after {
            connection.graceful_shutdown();
        }
    }
}

async fn accept(peers: &mut Peers) -> TunnelStream {
    let (request, mut respond) = peers.requests.recv().await.unwrap();
    let send = respond.send_response(Response::new(()), false).unwrap();
    TunnelStream::new(send, request.into_body(), None)
}

async fn open(
    tunnels: &Tunnels,
    peers: &mut Peers,
    key: &TunnelKey,
    credential: &Arc<Credential>,
) -> (TunnelStream, TunnelStream) {
    let dial = peers.dial();
    let head = head();
    let (near, far) = tokio::join!(tunnels.open(key, credential, &head, LIMIT, dial), accept(peers));
    (near.unwrap().stream, far)
}

fn credential() -> Arc<Credential> {
    Authority::new("root").credential(A)
}

#[tokio::test]
async fn one_tunnel_serves_many_streams_and_one_dial_many_waiters() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, mut peers, credential) = (tunnels(), Peers::new(), credential());
            let mut opening = Vec::new();
            for _ in 0..50 {
                let (tunnels, credential, dial) = (tunnels.clone(), credential.clone(), peers.dial());
                opening.push(tokio::task::spawn_local(async move {
                    tunnels.open(&key(1), &credential, &head(), LIMIT, dial).await
                }));
            }
            let mut far = Vec::new();
            for _ in 0..50 {
                far.push(accept(&mut peers).await);
            }
            let mut near = Vec::new();
            for task in opening {
                near.push(task.await.unwrap().unwrap());
            }
            assert_eq!((peers.dials.get(), tunnels.len()), (1, 1));
            // Another source workload never shares it, though everything else is equal.
            let _other = open(&tunnels, &mut peers, &key(2), &credential).await;
            assert_eq!((peers.dials.get(), tunnels.len()), (2, 2));
        })
        .await;
}

/// More connections between two workloads than all tunnels carry as a rule, up to what the peer bears.
#[tokio::test]
async fn the_last_tunnels_carry_more_before_anybody_is_refused() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, mut peers, credential) = (tunnels(), Peers::new(), credential());
            let (most, peers_most) = (tunnels.per_key, STREAMS_PER_TUNNEL + 2);
            peers.max_streams = u32::try_from(peers_most).unwrap();
            let mut held = Vec::new();
            for count in 0..most * peers_most {
                held.push(open(&tunnels, &mut peers, &key(1), &credential).await);
                let wanted = (count / STREAMS_PER_TUNNEL + 1).min(most);
                assert_eq!(tunnels.len(), wanted, "{count}");
            }
            let refused = tunnels.open(&key(1), &credential, &head(), LIMIT, peers.dial()).await.unwrap_err();
            assert!(matches!(refused, UpstreamError::Overflow { .. }), "{refused}");
            assert_eq!(tunnels.counts.of(Limit::TunnelsPerDestination), 1);
            held.pop();
            open(&tunnels, &mut peers, &key(1), &credential).await;
        })
        .await;
}

#[tokio::test]
async fn a_failed_dial_is_everybody_s_failure_and_the_next_dials_anew() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, credential) = (tunnels(), credential());
            let dials = Rc::new(Cell::new(0));
            let mut opening = Vec::new();
            for _ in 0..20 {
                let (tunnels, credential, dials) = (tunnels.clone(), credential.clone(), dials.clone());
                opening.push(tokio::task::spawn_local(async move {
                    let dial = || async {
                        dials.set(dials.get() + 1);
                        tokio::task::yield_now().await;
                        let to = key(1).to;
                        Err::<Transport<DuplexStream>, _>(UpstreamError::Timeout { to, stage: "TCP" })
                    };
                    tunnels.open(&key(1), &credential, &head(), LIMIT, dial).await
                }));
            }
            for task in opening {
                assert!(matches!(task.await.unwrap(), Err(UpstreamError::Timeout { stage: "TCP", .. })));
            }
            assert_eq!(dials.get(), 1);
            assert!(tunnels.slots.borrow().is_empty(), "nothing is kept for an unreachable destination");
            let mut peers = Peers::new();
            open(&tunnels, &mut peers, &key(1), &credential).await;
            assert_eq!(peers.dials.get(), 1);
        })
        .await;
}

#[tokio::test]
async fn a_full_tunnel_gets_a_sibling() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, mut peers, credential) = (tunnels(), Peers::new(), credential());
            peers.max_streams = 3;
            let mut held = Vec::new();
            for _ in 0..7 {
                held.push(open(&tunnels, &mut peers, &key(1), &credential).await);
            }
            assert_eq!(peers.dials.get(), 3);
            drop(held);
            tokio::task::yield_now().await;
            open(&tunnels, &mut peers, &key(1), &credential).await;
            assert_eq!(peers.dials.get(), 3, "places given back are used again");
        })
        .await;
}

#[tokio::test]
async fn after_goaway_new_streams_go_to_a_new_tunnel_and_old_ones_live_on() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, mut peers, credential) = (tunnels(), Peers::new(), credential());
            peers.goaway_after = Some(1);
            let (mut near, mut far) = open(&tunnels, &mut peers, &key(1), &credential).await;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            peers.goaway_after = None;
            let _second = open(&tunnels, &mut peers, &key(1), &credential).await;
            assert_eq!((peers.dials.get(), tunnels.len()), (2, 1));
            near.write_all(b"still here").await.unwrap();
            let mut got = [0; 10];
            far.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"still here");
        })
        .await;
}

#[tokio::test]
async fn a_new_certificate_means_a_new_tunnel() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, mut peers) = (tunnels(), Peers::new());
            let ca = Authority::new("root");
            let (old, new) = (ca.credential(A), ca.credential(A));
            let (mut near, mut far) = open(&tunnels, &mut peers, &key(1), &old).await;
            let _second = open(&tunnels, &mut peers, &key(1), &new).await;
            assert_eq!((peers.dials.get(), tunnels.len()), (2, 1));
            far.write_all(b"old but alive").await.unwrap();
            let mut got = [0; 13];
            near.read_exact(&mut got).await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn an_error_answer_is_an_error() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, mut peers, credential) = (tunnels(), Peers::new(), credential());
            let dial = peers.dial();
            let refuse = async {
                let (request, mut respond) = peers.requests.recv().await.unwrap();
                assert_eq!(request.method(), Method::CONNECT);
                assert_eq!(request.uri().authority().unwrap().as_str(), "10.0.0.2:80");
                let answer = Response::builder().status(503).body(()).unwrap();
                respond.send_response(answer, true).unwrap();
            };
            let head = head();
            let key = key(1);
            let (near, ()) = tokio::join!(tunnels.open(&key, &credential, &head, LIMIT, dial), refuse);
            assert!(matches!(near, Err(UpstreamError::Refused { status: 503, .. })));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_is_closed() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, mut peers, credential) = (tunnels(), Peers::new(), credential());
            let held = open(&tunnels, &mut peers, &key(1), &credential).await;
            tokio::time::sleep(IDLE * 3).await;
            assert_eq!(tunnels.len(), 1, "a stream without traffic still counts");
            drop(held);
            tokio::time::sleep(IDLE * 2).await;
            assert_eq!(tunnels.len(), 0);
            assert!(tunnels.slots.borrow().is_empty());
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_probe_is_dead() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, credential) = (tunnels(), credential());
            let (near, far) = tokio::io::duplex(64 << 10);
            let io = RefCell::new(Some(near));
            let dial = || async {
                Ok(Transport {
                    io: io.borrow_mut().take().unwrap(),
                    local: None,
                    identity: B.parse().unwrap(),
                    window: Some(window()),
                })
            };
            let (key, head) = (key(1), head());
            // Nobody reads `far`: CONNECT is never answered, and neither is a probe.
            let open = tunnels.open(&key, &credential, &head, Duration::from_secs(3600), dial);
            let error = open.await.unwrap_err();
            assert!(matches!(error, UpstreamError::Tunnel { .. }), "{error}");
            drop(far);
            assert!(tunnels.is_empty());
        })
        .await;
}

#[tokio::test]
async fn half_close_and_data_travel_in_both_directions() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, mut peers, credential) = (tunnels(), Peers::new(), credential());
            let (mut near, mut far) = open(&tunnels, &mut peers, &key(1), &credential).await;
            near.write_all(b"question").await.unwrap();
            near.shutdown().await.unwrap();
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"question");
            far.write_all(b"answer").await.unwrap();
            far.shutdown().await.unwrap();
            drop(far);
            got.clear();
            near.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"answer");
        })
        .await;
}

#[tokio::test]
async fn a_reset_is_connect_error_on_the_wire_and_a_reset_to_the_reader() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, mut peers, credential) = (tunnels(), Peers::new(), credential());
            let (mut near, mut far) = open(&tunnels, &mut peers, &key(1), &credential).await;
            far.write_all(b"before").await.unwrap();
            tokio::task::yield_now().await;
            crate::net::copy::Duplex::reset(&mut far);
            let mut got = [0; 6];
            near.read_exact(&mut got).await.unwrap();
            let error = near.read(&mut got).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            let reason = error.get_ref().and_then(|e| e.downcast_ref::<h2::Error>()).and_then(h2::Error::reason);
            assert_eq!(reason, Some(Reason::CONNECT_ERROR));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_queues_what_the_settings_say_behind_a_slow_socket() {
    LocalSet::new()
        .run_until(async {
            for (wanted, least, most) in [(16 << 10, 16 << 10, 48 << 10), (256 << 10, 65_535, 65_535)] {
                let limits = Limits { stream_buffer_bytes: wanted, ..Limits::default() };
                let (tunnels, credential) = (Tunnels::new(&limits, Arc::default()), credential());
                let mut peers = Peers { pipe: 1024, ..Peers::new() };
                let (mut near, _far) = open(&tunnels, &mut peers, &key(1), &credential).await;
                peers.stall.notify_one();
                let mut sent = 0;
                // The server's window, which is what HTTP/2 begins with, is the other bound.
                while let Ok(written) = timeout(LIMIT, near.write(&[0; 1024])).await {
                    sent += written.unwrap();
                }
                assert!((least..=most).contains(&sent), "{sent} bytes of {wanted}");
            }
        })
        .await;
}

#[tokio::test]
async fn a_slow_reader_holds_back_its_own_stream_and_no_other() {
    LocalSet::new()
        .run_until(async {
            let (tunnels, mut peers, credential) = (tunnels(), Peers::new(), credential());
            let (mut slow_near, mut slow_far) = open(&tunnels, &mut peers, &key(1), &credential).await;
            let (mut near, mut far) = open(&tunnels, &mut peers, &key(1), &credential).await;
            const TOTAL: usize = 12 << 20;
            let sent = Rc::new(Cell::new(0usize));
            let count = sent.clone();
            let writer = tokio::task::spawn_local(async move {
                let piece: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
                while count.get() < TOTAL {
                    slow_far.write_all(&piece).await.unwrap();
                    count.set(count.get() + piece.len());
                }
                slow_far.shutdown().await.unwrap();
            });
            let mut before = usize::MAX;
            while before != sent.get() {
                before = sent.get();
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
            }
            let limits = Limits::default();
            let bound = limits.stream_window_bytes as usize + limits.stream_buffer_bytes + (1 << 20);
            assert!(sent.get() < bound, "{} bytes on their way", sent.get());
            // The other stream of the same tunnel moves.
            far.write_all(b"not blocked").await.unwrap();
            let mut got = [0; 11];
            near.read_exact(&mut got).await.unwrap();
            // And what was held back arrives whole.
            let mut all = Vec::new();
            slow_near.read_to_end(&mut all).await.unwrap();
            assert_eq!(all.len(), TOTAL);
            assert!(all.iter().enumerate().all(|(i, byte)| *byte == i as u8));
            writer.await.unwrap();
        })
        .await;
}
