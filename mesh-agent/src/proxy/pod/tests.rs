//! A pod whose connections a test makes: plain TCP on loopback, to wherever the test says.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;

use mesh_core::resource::cluster::Transport;

use super::*;
use crate::proxy::{Judged, Ledgers, Refused};
use crate::settings::limits::Limits as Bounds;
use crate::telemetry::{Limits, Metrics};
use crate::upstream::peer_exchange;
use crate::upstream::stream::Stream;

/// Where connections of a test's pod really go.
pub(crate) struct Net {
    pub(crate) original: Option<SocketAddr>,
    /// The endpoint that the kernel has chosen.
    pub(crate) chosen: Rc<Cell<Option<SocketAddr>>>,
    /// From the address that the configuration names to the one that is dialled; an address that is not here refuses.
    pub(crate) routes: Rc<RefCell<HashMap<SocketAddr, SocketAddr>>>,
    /// Connections made so far.
    pub(crate) dials: Rc<Cell<usize>>,
    pub(crate) originator: Originator,
    /// The pod of this node that HTTP goes to, wherever it wants to.
    pub(crate) neighbour: Rc<RefCell<Option<Rc<Pod>>>>,
}

impl Net {
    /// By TLS, where the target's cluster says so.
    pub(super) async fn to_target(&self, target: &Target, wish: Wish<'_>) -> Result<Connected, UpstreamError> {
        let transport = match &target.endpoint {
            Some(endpoint) => target.cluster.transport(endpoint),
            None => target.cluster.transport_of_any(),
        };
        let Transport::Tls(settings) = transport else { return self.connect(target.address).await };
        let tcp = async {
            let connected = self.connect(target.address).await?;
            match connected.stream {
                Stream::Tcp(tcp) => Ok(tcp),
                other => panic!("{other:?}"),
            }
        };
        let deadline = tokio::time::Instant::now() + target.cluster.connect_timeout;
        self.originator.connect(target.address, settings, wish, deadline, tcp).await
    }

    pub(super) async fn connect(&self, to: SocketAddr) -> Result<Connected, UpstreamError> {
        self.dials.set(self.dials.get() + 1);
        let failed = |source: io::Error| UpstreamError::Connect { to, source: Arc::new(source) };
        let real = self.routes.borrow().get(&to).copied();
        let real = real.ok_or_else(|| failed(io::ErrorKind::ConnectionRefused.into()))?;
        let stream = TcpStream::connect(real).await.map_err(failed)?;
        let local = stream.local_addr().ok();
        Ok(Connected { stream: Stream::Tcp(stream), local, remote: to, identity: None, peer: None })
    }
}

/// A pod, its network and what keeps both going.
pub(crate) struct TestPod {
    pub(crate) pod: Rc<Pod>,
    pub(crate) live: Arc<Live>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) routes: Rc<RefCell<HashMap<SocketAddr, SocketAddr>>>,
    pub(crate) dials: Rc<Cell<usize>>,
    pub(crate) chosen: Rc<Cell<Option<SocketAddr>>>,
    pub(crate) neighbour: Rc<RefCell<Option<Rc<Pod>>>>,
    pub(crate) trigger: shutdown::Trigger,
    _guard: shutdown::Guard,
}

impl TestPod {
    pub(crate) fn new(original: Option<SocketAddr>, credential: Option<Arc<Credential>>) -> Self {
        Self::probed(original, credential, Vec::new())
    }

    /// Policies are enforced: those of the workload `default/client` at 10.0.0.2.
    pub(crate) fn judged(credential: Option<Arc<Credential>>) -> Self {
        let mut test = Self::new(None, credential);
        let judged = Arc::new(Judged::default());
        let whose = authorize::Whose {
            addresses: vec![[10, 0, 0, 2].into()],
            namespace: "default".into(),
            name: "client".into(),
        };
        if let Some(pod) = Rc::get_mut(&mut test.pod) {
            pod.door = authorize::Door::new(Some(whose), authorize::Judge::new(judged.clone()));
        }
        test.metrics.add_source(move |out| Judged::write(&judged, out));
        test
    }

    /// What comes in by TLS may be settled by files in a directory.
    pub(crate) fn with_files(credential: Arc<Credential>, dir: &Path) -> Self {
        let mut test = Self::new(None, Some(credential));
        if let Some(pod) = Rc::get_mut(&mut test.pod) {
            let secrets = Secrets::new(pod.credential.clone(), Some(dir.to_owned()));
            pod.terminator = Terminator::new(secrets, peer_exchange::frame(&pod.peer, "client", "10.0.0.2"));
        }
        test
    }

    /// Every client of a test is the node.
    pub(crate) fn probed(
        original: Option<SocketAddr>,
        credential: Option<Arc<Credential>>,
        probes: Vec<Probe>,
    ) -> Self {
        Self::limited(original, credential, probes, Bounds::default())
    }

    /// As [`TestPod::probed`], with limits of its own.
    pub(crate) fn limited(
        original: Option<SocketAddr>,
        credential: Option<Arc<Credential>>,
        probes: Vec<Probe>,
        limits: Bounds,
    ) -> Self {
        let (trigger, shutdown, guard) = shutdown::channel();
        let (live, metrics) = (Arc::new(Live::default()), Metrics::new(Limits::default()));
        let refused = Arc::default();
        let (routes, dials, chosen, neighbour) = (Rc::default(), Rc::default(), Rc::default(), Rc::default());
        let peer = Peer { workload: "client-v1".into(), namespace: "default".into(), ..Peer::default() };
        let credential = watch::channel(credential).1;
        let frame = peer_exchange::frame(&peer, "client", "10.0.0.2");
        let secrets = || Secrets::new(credential.clone(), None);
        let worker_metrics = metrics.worker(0);
        let counts = worker_metrics.limits().clone();
        let asking = Rc::new(Turns::new(&limits, counts.clone()));
        let originator = Originator::new(secrets(), frame.clone(), worker_metrics.bytes().clone(), asking);
        let terminator = Terminator::new(secrets(), frame);
        let pod = Pod {
            id: 1,
            name: "default/client".into(),
            identity: "spiffe://cluster.local/ns/default/sa/client".parse().unwrap(),
            as_peer: Arc::new(peer.clone()),
            peer: Arc::new(peer),
            credential,
            terminator,
            live: live.clone(),
            eye: Eye::new(live.clone(), 1),
            metrics: worker_metrics,
            series: RefCell::default(),
            log: Log::off(),
            reports: Reports::default(),
            teller: Teller::new(Arc::clone(&refused)),
            inbound_changes: Changes::default(),
            door: authorize::Door::new(None, authorize::Judge::new(Arc::default())),
            probes,
            node: Arc::new([std::net::Ipv4Addr::LOCALHOST.into()]),
            shutdown,
            ended: CancellationToken::new(),
            budget: Budget::new(0, &Arc::new(Ledgers::new(1, 10_000)), 1, &limits, counts.clone()),
            handshakes: Turns::new(&limits, counts.clone()),
            tasks: Tasks::default(),
            worker: Weak::new(),
            net: super::Net::Test(Net {
                original,
                chosen: Rc::clone(&chosen),
                routes: Rc::clone(&routes),
                dials: Rc::clone(&dials),
                originator,
                neighbour: Rc::clone(&neighbour),
            }),
        };
        let counting = Arc::clone(&refused);
        metrics.add_source(move |out| Refused::write(&counting, out));
        Self { pod: Rc::new(pod), live, metrics, routes, dials, chosen, neighbour, trigger, _guard: guard }
    }
}

#[tokio::test]
async fn tasks_end_with_their_workload_and_leave_no_trace() {
    let set = tokio::task::LocalSet::new();
    set.run_until(async {
        let pod = TestPod::new(None, None).pod;
        let alive = Rc::new(());
        let held = || {
            let alive = alive.clone();
            async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            }
        };
        pod.spawn(held());
        pod.spawn(async {});
        pod.spawn(held());
        tokio::task::yield_now().await;
        assert_eq!((Rc::strong_count(&alive), pod.tasks.borrow().len()), (3, 2));
        pod.end();
        pod.spawn(held());
        tokio::task::yield_now().await;
        assert_eq!((Rc::strong_count(&alive), pod.tasks.borrow().len()), (1, 0));
    })
    .await;
}
