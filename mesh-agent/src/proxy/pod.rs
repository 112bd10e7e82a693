//! One enrolled workload as one worker knows it: everything its connections share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mesh_core::Snapshot;
use mesh_core::identity::SpiffeId;
use mesh_core::resource::cluster::Carries;
use mesh_core::resource::endpoint::Endpoint;
use slab::Slab;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, Place, Request};
use super::chosen::{Flow, Side};
use super::cluster::Target;
use super::known;
use super::plaintext::{Changes, Teller};
use super::report::Reports;
use super::secured::Terminator;
use super::worker::Worker;
use super::{authorize, neighbour};
use crate::kernel::Redirected;
use crate::live::{Current, Eye, Live};
use crate::net::share::Share;
use crate::settings::SameNode;
use crate::settings::probes::Probe;
use crate::shutdown;
use crate::telemetry::access_log::Log;
use crate::telemetry::{ConnLabels, HttpSeries, Peer, WorkerMetrics};
use crate::tls::Credential;
use crate::tls::secrets::Secrets;
use crate::tls::turns::Turns;
use crate::upstream::stream::Stream;
use crate::upstream::{CONNECT_TIMEOUT, Connected, Originator, Source, UpstreamError, Wish, own_frame};
use crate::workload::Workload;

#[cfg(test)]
pub(super) mod tests;

/// How long a connection waits for its workload's first configuration before it is reset.
const CONFIG_WAIT: Duration = Duration::from_secs(10);

/// Series of a workload's HTTP requests that are kept at hand on a worker.
const MAX_SERIES: usize = 256;

/// One enrolled workload on one worker.
pub(super) struct Pod {
    id: u32,
    /// `namespace/name`.
    pub(super) name: String,
    pub(super) identity: SpiffeId,
    pub(super) peer: Arc<Peer>,
    /// What others are told of it.
    pub(super) as_peer: Arc<Peer>,
    pub(super) credential: watch::Receiver<Option<Arc<Credential>>>,
    pub(super) live: Arc<Live>,
    eye: Eye,
    pub(super) metrics: WorkerMetrics,
    series: RefCell<HashMap<ConnLabels, Rc<HttpSeries>>>,
    pub(super) log: Log,
    pub(super) reports: Reports,
    /// Tells of plaintext refused.
    pub(super) teller: Teller,
    pub(super) inbound_changes: Changes,
    /// Who may come in.
    pub(super) door: authorize::Door,
    /// What the orchestrator asks from the node's addresses.
    probes: Vec<Probe>,
    node: Arc<[IpAddr]>,
    pub(super) shutdown: shutdown::Watch,
    /// The workload was withdrawn, or the worker ends: everything about it is dropped.
    pub(super) ended: CancellationToken,
    /// What it may have.
    pub(super) budget: Rc<Budget>,
    /// TLS that it is asked for.
    pub(super) handshakes: Turns,
    tasks: Tasks,
    worker: Weak<Worker>,
    /// Ends TLS that comes to its ports.
    pub(super) terminator: Terminator,
    net: Net,
}

/// Where its connections are made.
enum Net {
    /// In its network namespace.
    Real(Source),
    /// By a test.
    #[cfg(test)]
    Test(tests::Net),
}

impl Pod {
    pub(super) fn new(worker: &Rc<Worker>, workload: &Arc<Workload>, own_ports: &[u16]) -> Self {
        let context = &worker.context;
        let credential = context.identities.watch(&workload.identity);
        let frame = own_frame(workload);
        let budget = worker.budget(workload.id);
        let (limits, counts) = (&context.settings.limits, context.metrics.limits());
        let asking = Rc::new(Turns::new(limits, counts.clone()));
        let secrets = || Secrets::new(credential.clone(), workload.tls_files.clone());
        let source = Source {
            credential: credential.clone(),
            originator: Originator::new(secrets(), frame.clone(), context.metrics.bytes().clone(), asking.clone()),
            handshakes: asking,
            share: budget.share.clone(),
            workload: workload.clone(),
            sockets: context.sockets.clone(),
            tunnels: worker.tunnels.clone(),
            own_ports: own_ports.to_vec(),
            bytes: context.metrics.bytes().clone(),
        };
        Self {
            id: workload.id,
            name: workload.key(),
            identity: workload.identity.clone(),
            peer: workload.peer.clone(),
            as_peer: Arc::new(as_peer(&workload.peer, &workload.identity)),
            terminator: Terminator::new(secrets(), frame),
            credential,
            live: context.live.clone(),
            eye: Eye::new(context.live.clone(), workload.id),
            metrics: context.metrics.clone(),
            series: RefCell::default(),
            log: context.access_log.clone(),
            reports: worker.reports.clone(),
            teller: worker.teller.clone(),
            inbound_changes: Changes::default(),
            door: authorize::Door::new(
                context.settings.node_stream.then(|| authorize::Whose::of(workload)),
                worker.judge.clone(),
            ),
            probes: workload.probes.clone(),
            node: context.node.clone(),
            shutdown: context.shutdown.clone(),
            ended: CancellationToken::new(),
            budget,
            handshakes: Turns::new(limits, counts.clone()),
            tasks: Tasks::default(),
            worker: Rc::downgrade(worker),
            net: Net::Real(source),
        }
    }

    /// A place for one more connection, given back when dropped.
    pub(super) fn admit(&self) -> Option<Place> {
        self.budget.admit()
    }

    /// A place for one more request of HTTP/2, given back when dropped.
    pub(super) fn admit_request(&self) -> Option<Request> {
        self.budget.request()
    }

    /// What its connections share out among themselves.
    pub(super) fn share(&self) -> &Rc<Share> {
        &self.budget.share
    }

    /// Where HTTP requests with these labels count. Connections with the same share it.
    pub(super) fn series(&self, labels: ConnLabels) -> Rc<HttpSeries> {
        let mut kept = self.series.borrow_mut();
        if let Some(series) = kept.get(&labels) {
            return series.clone();
        }
        if kept.len() >= MAX_SERIES {
            // Whoever counts in one holds it.
            kept.clear();
        }
        let series = Rc::new(self.metrics.http(&labels));
        kept.insert(labels, series.clone());
        series
    }

    #[cfg(test)]
    pub(super) fn series_kept(&self) -> usize {
        self.series.borrow().len()
    }

    /// Runs a task that ends with the workload at the latest. Nothing is asked for that while it runs.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.ended.is_cancelled() {
            return;
        }
        let key = self.tasks.borrow_mut().insert(None);
        let held = Held { tasks: self.tasks.clone(), key };
        // An async block would have room for the task twice.
        let running = tokio::task::spawn_local(task.map(move |()| drop(held)));
        if let Some(place) = self.tasks.borrow_mut().get_mut(key) {
            *place = Some(running.abort_handle());
        }
    }

    /// The workload was withdrawn, or the worker ends.
    pub(super) fn end(&self) {
        self.ended.cancel();
        self.tasks.borrow().iter().filter_map(|(_, task)| task.as_ref()).for_each(AbortHandle::abort);
    }

    /// The configuration in force now, with what was found in it before.
    pub(super) fn current(&self) -> Option<Rc<Current>> {
        self.eye.current()
    }

    /// The configuration in force now.
    pub(super) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.current().map(|current| current.snapshot.clone())
    }

    /// The configuration in force. A connection that comes before the first one waits for it, but not for ever.
    pub(super) async fn config(&self) -> Option<Arc<Snapshot>> {
        match self.snapshot() {
            Some(snapshot) => Some(snapshot),
            None => timeout(CONFIG_WAIT, self.live.ready(self.id)).await.ok(),
        }
    }

    /// Where a connection caught on its way out wanted to go; `None` if it was not caught but dialled us by hand.
    pub(super) fn redirected(&self, accepted: &TcpStream) -> io::Result<Option<Redirected>> {
        match &self.net {
            Net::Real(source) => source.sockets.redirected(accepted.as_fd()),
            #[cfg(test)]
            Net::Test(net) => Ok(net.original.map(|to| Redirected { to, chosen: net.chosen.get(), shortcut: None })),
        }
    }

    /// The stream of a connection caught on its way out, with the shortcut that it has.
    pub(super) fn stream_from(&self, accepted: TcpStream, shortcut: Option<u64>) -> Stream {
        match &self.net {
            Net::Real(source) => Stream::with_app(accepted, &source.sockets, shortcut),
            #[cfg(test)]
            Net::Test(_) => Stream::Tcp(accepted),
        }
    }

    /// A client's address as others know it. The application connects to us over loopback, whatever its destination is.
    pub(super) fn shown(&self, client: SocketAddr, destination: SocketAddr) -> SocketAddr {
        let same_family = |ip: &&IpAddr| ip.is_ipv4() == destination.ip().to_canonical().is_ipv4();
        match &self.net {
            Net::Real(source) if client.ip().to_canonical().is_loopback() => {
                let own = source.workload.addresses.iter().find(same_family);
                own.map_or(client, |own| SocketAddr::new(*own, client.port()))
            }
            _ => client,
        }
    }

    /// Whether somebody outside may ask for a connection to this address: the workload's own, and not the agent's.
    pub(super) fn serves(&self, to: SocketAddr) -> bool {
        match &self.net {
            Net::Real(source) => source.workload.has(to) && !source.is_own_listener(to),
            #[cfg(test)]
            Net::Test(net) => net.routes.borrow().contains_key(&to),
        }
    }

    /// Whether it shares its addresses, and the port for tunnels, with others.
    pub(super) fn is_of_host(&self) -> bool {
        match &self.net {
            Net::Real(source) => source.workload.host.is_some(),
            #[cfg(test)]
            Net::Test(_) => false,
        }
    }

    /// What the orchestrator may ask at this port, if the client is the node.
    pub(super) fn probes(&self, client: SocketAddr, destination: SocketAddr) -> Vec<Probe> {
        if !self.node.contains(&client.ip()) {
            return Vec::new();
        }
        self.probes.iter().filter(|probe| probe.port() == destination.port()).cloned().collect()
    }

    /// Whether a connection to this address would come back to the agent itself.
    pub(super) fn is_own_listener(&self, to: SocketAddr) -> bool {
        match &self.net {
            Net::Real(source) => source.is_own_listener(to),
            #[cfg(test)]
            Net::Test(_) => false,
        }
    }

    /// The workload of the mesh at an address, as an endpoint with a tunnel.
    pub(super) fn known(&self, to: SocketAddr) -> Option<Arc<Endpoint>> {
        known::endpoint(&*self.live.ambient()?, to, self.identity.trust_domain())
    }

    /// Connects to what was chosen, on behalf of the flow's client.
    pub(super) async fn connect(
        &self,
        flow: &Flow,
        target: &Target,
        carries: Carries,
    ) -> Result<Connected, UpstreamError> {
        let connected = self.dial(flow, target, Wish { carries, host: target.host.as_deref() }).await;
        if let Err(UpstreamError::PeerExchange { .. }) = &connected {
            self.teller.count_peer_exchange();
        }
        connected
    }

    async fn dial(&self, flow: &Flow, target: &Target, wish: Wish<'_>) -> Result<Connected, UpstreamError> {
        match (&self.net, flow.side, &target.endpoint) {
            (_, Side::Inbound, _) => self.connect_app(flow, target.cluster.connect_timeout).await,
            (Net::Real(source), Side::Outbound, Some(endpoint)) => {
                if let Some((neighbour, address)) = self.neighbour(target) {
                    let limit = target.cluster.connect_timeout;
                    return Box::pin(neighbour::connect(self, neighbour, address, flow, limit)).await;
                }
                source.to_endpoint(&target.cluster, endpoint, flow.client, wish).await
            }
            (Net::Real(source), Side::Outbound, None) => source.to_address(&target.cluster, target.address, wish).await,
            #[cfg(test)]
            (Net::Test(net), Side::Outbound, _) => net.to_target(target, wish).await,
        }
    }

    /// The workload of this node that a target is, and at which address, if the connection may stay within the agent.
    pub(super) fn neighbour(&self, target: &Target) -> Option<(Rc<Pod>, SocketAddr)> {
        let (source, endpoint) = match &self.net {
            Net::Real(source) => (source, target.endpoint.as_deref()?),
            #[cfg(test)]
            Net::Test(net) => return net.neighbour.borrow().clone().map(|pod| (pod, target.address)),
        };
        if source.workload.same_node == SameNode::Wire || source.workload.host.is_some() {
            return None;
        }
        let other = self.worker.upgrade()?.neighbour(endpoint.address.ip())?;
        source.tunnels_to(&target.cluster, endpoint, &other.identity).then_some((other, endpoint.address))
    }

    /// One of its clients as a destination of this family sees it.
    pub(super) fn as_seen(&self, client: SocketAddr, to: SocketAddr) -> SocketAddr {
        let own = match &self.net {
            Net::Real(source) => source.workload.addresses.iter().find(|ip| ip.is_ipv4() == to.is_ipv4()),
            #[cfg(test)]
            Net::Test(_) => None,
        };
        own.map_or(client, |own| SocketAddr::new(*own, client.port()))
    }

    /// Connects to the workload's application, which sees the flow's client.
    pub(super) async fn dial_app(&self, flow: &Flow) -> Result<Connected, UpstreamError> {
        self.connect_app(flow, CONNECT_TIMEOUT).await
    }

    async fn connect_app(&self, flow: &Flow, limit: Duration) -> Result<Connected, UpstreamError> {
        match &self.net {
            Net::Real(source) => source.to_app(flow.destination, flow.client, limit).await,
            #[cfg(test)]
            Net::Test(net) => net.connect(flow.destination).await,
        }
    }
}

/// What ends with a workload.
type Tasks = Rc<RefCell<Slab<Option<AbortHandle>>>>;

/// A task's place among them.
struct Held {
    tasks: Tasks,
    key: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tasks.borrow_mut().try_remove(self.key);
    }
}

/// A workload as others are told of it.
fn as_peer(peer: &Peer, identity: &SpiffeId) -> Peer {
    let mut peer = peer.clone().with_principal(identity.as_str());
    peer.namespace = identity.namespace().into();
    peer
}
