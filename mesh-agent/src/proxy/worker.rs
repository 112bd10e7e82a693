//! A worker thread: accepts connections of its workloads and runs everything about them.
//!
//! In: commands and accepted sockets. Out: one task per connection, one per DNS socket. A worker much busier than another hands over what it
//! accepts, so that one hot pod can use every core. Never: blocks, or lets a failed accept spin.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::authorize::Judge;
use super::budget::Budget;
use super::plaintext::Teller;
use super::pod::Pod;
use super::report::Reports;
use super::residents::{Resident, Residents, own_ports};
use super::{Command, Context, Door, Ledgers, inbound, outbound, tcp, tunnel};
use crate::dns::Forwarder;
use crate::kernel::Listeners;
use crate::net::copy::Duplex;
use crate::settings::SameNode;
use crate::upstream::tunnel::Tunnels;
use crate::workload::Workload;

/// A worker hands a connection over when it has this many more than another one.
const IMBALANCE: usize = 16;
/// First pause after a failed accept (as a rule no free descriptors); it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause after failed accepts.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Withdrawn workloads remembered.
const MAX_WITHDRAWN: usize = 256;

/// The other workers, and how busy all are.
#[derive(Clone)]
pub(super) struct Siblings {
    pub(super) senders: Arc<[mpsc::Sender<Command>]>,
    pub(super) loads: Arc<[AtomicUsize]>,
    pub(super) residents: Arc<Residents>,
    pub(super) ledgers: Arc<Ledgers>,
}

/// Starts a worker's thread.
pub(super) fn spawn(
    index: usize,
    context: Context,
    commands: mpsc::Receiver<Command>,
    siblings: Siblings,
) -> std::io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let tunnels = Tunnels::new(&context.settings.limits, context.metrics.limits().clone());
        let worker = Rc::new(Worker {
            index,
            teller: Teller::new(context.refused.clone()),
            judge: Judge::new(context.judged.clone()),
            context,
            siblings,
            tunnels,
            reports: Reports::default(),
            pods: RefCell::default(),
            withdrawn: RefCell::default(),
        });
        // A task of its own: what the set itself runs is asked whenever any task has something to do.
        let run = async { tokio::task::spawn_local(worker.run(commands)).await };
        // Fails by a panic only; whoever joins the thread is to see it.
        if let Err(failed) = LocalSet::new().block_on(&runtime, run)
            && let Ok(panic) = failed.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    })
}

/// Everything one thread owns.
pub(super) struct Worker {
    index: usize,
    pub(super) context: Context,
    siblings: Siblings,
    pub(super) tunnels: Tunnels,
    pub(super) reports: Reports,
    pub(super) teller: Teller,
    pub(super) judge: Judge,
    pods: RefCell<HashMap<u32, Rc<Pod>>>,
    /// The last ones that went, so that a connection handed over late does not bring one back.
    withdrawn: RefCell<VecDeque<u32>>,
}

impl Worker {
    async fn run(self: Rc<Self>, mut commands: mpsc::Receiver<Command>) {
        let mut shutdown = self.context.shutdown.clone();
        let reporting = self.reports.clone();
        tokio::task::spawn_local(async move { reporting.run().await });
        tokio::task::spawn_local(self.clone().follow_configuration());
        loop {
            let command = tokio::select! {
                command = commands.recv() => command,
                () = shutdown.stopped() => None,
            };
            match command {
                Some(Command::Enrol { workload, listeners }) => self.enrol(workload, listeners),
                Some(Command::Withdraw { id }) => self.withdraw(id),
                Some(Command::Take { workload, own_ports, accepted, door, _guard }) => {
                    if self.withdrawn.borrow().contains(&workload.id) {
                        continue;
                    }
                    let pod = self.pod(&workload, &own_ports);
                    match TcpStream::from_std(accepted) {
                        Ok(stream) => self.clone().serve(pod, stream, door),
                        Err(error) => tracing::warn!(%error, "cannot take over a connection"),
                    }
                }
                None => break,
            }
        }
        let ids: Vec<u32> = self.pods.borrow().keys().copied().collect();
        ids.into_iter().for_each(|id| self.withdraw(id));
        // Tasks see the end of their pod in their next turn, and report what they carried.
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
        self.reports.flush();
    }

    /// Lets open connections know of each new inbound listener, and of new policies.
    async fn follow_configuration(self: Rc<Self>) {
        let live = self.context.live.clone();
        let mut changes = live.changes();
        while changes.changed().await.is_ok() {
            for (id, pod) in &*self.pods.borrow() {
                pod.inbound_changes.look(live.workload(*id).as_deref());
                // So that one that serves nobody holds nothing old.
                let _ = pod.current();
                // Who waits for them looks by itself.
                let _ = pod.door.look(&live);
            }
        }
    }

    /// The workload as this worker knows it.
    fn pod(self: &Rc<Self>, workload: &Arc<Workload>, own_ports: &[u16]) -> Rc<Pod> {
        let mut pods = self.pods.borrow_mut();
        pods.entry(workload.id).or_insert_with(|| Rc::new(Pod::new(self, workload, own_ports))).clone()
    }

    /// The workload of the host that has a port, as this worker knows it.
    pub(super) fn resident(self: &Rc<Self>, port: u16) -> Option<Rc<Pod>> {
        self.known(self.siblings.residents.at(port)?)
    }

    /// The pod of this node that has an address, as this worker knows it, unless it wants to be reached by the wire.
    pub(super) fn neighbour(self: &Rc<Self>, address: IpAddr) -> Option<Rc<Pod>> {
        let resident = self.siblings.residents.with(address)?;
        if resident.workload.same_node == SameNode::Wire { None } else { self.known(resident) }
    }

    fn known(self: &Rc<Self>, resident: Resident) -> Option<Rc<Pod>> {
        let Resident { workload, own_ports } = resident;
        let gone = self.withdrawn.borrow().contains(&workload.id);
        (!gone).then(|| self.pod(&workload, &own_ports))
    }

    /// The one for which a tunnel's handshake is.
    pub(super) fn meant(self: &Rc<Self>, name: Option<&str>) -> Option<Rc<Pod>> {
        self.resident(self.siblings.residents.meant(name)?)
    }

    /// What a workload may have of this worker.
    pub(super) fn budget(&self, id: u32) -> Rc<Budget> {
        let Context { settings, metrics, .. } = &self.context;
        Budget::new(self.index, &self.siblings.ledgers, id, &settings.limits, metrics.limits().clone())
    }

    fn enrol(self: &Rc<Self>, workload: Arc<Workload>, listeners: Listeners) {
        let own_ports = own_ports(&listeners);
        let doors = [
            (Door::Outbound, listeners.outbound),
            (Door::Inbound, listeners.inbound),
            (Door::Tunnel, listeners.tunnel),
        ];
        let home = Rc::new(Home { pod: self.pod(&workload, &own_ports), workload, own_ports });
        let Context { sockets, dns, shutdown, .. } = &self.context;
        let (ended, workload) = (home.pod.ended.clone(), home.workload.clone());
        let most = self.context.settings.limits.dns_questions_per_workload;
        let forwarder = Forwarder::new(workload, sockets.clone(), dns.clone(), shutdown.clone(), ended, most);
        for socket in listeners.dns {
            tokio::task::spawn_local(forwarder.clone().serve(socket));
        }
        for (door, listeners) in doors {
            for listener in listeners {
                match TcpListener::from_std(listener) {
                    Ok(listener) => {
                        tokio::task::spawn_local(self.clone().accept(home.clone(), listener, door));
                    }
                    Err(error) => {
                        tracing::error!(workload = home.pod.name, ?door, %error, "cannot serve a listener");
                    }
                }
            }
        }
    }

    fn withdraw(&self, id: u32) {
        if let Some(pod) = self.pods.borrow_mut().remove(&id) {
            pod.end();
        }
        self.tunnels.forget(id);
        let mut withdrawn = self.withdrawn.borrow_mut();
        withdrawn.truncate(MAX_WITHDRAWN - 1);
        withdrawn.push_front(id);
    }

    /// Accepts until the workload is withdrawn or the agent drains.
    async fn accept(self: Rc<Self>, home: Rc<Home>, listener: TcpListener, door: Door) {
        let mut shutdown = self.context.shutdown.clone();
        let mut pause = MIN_PAUSE;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = home.pod.ended.cancelled() => return,
                () = shutdown.draining() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    pause = MIN_PAUSE;
                    self.place(&home, stream, door);
                }
                Err(error) => {
                    tracing::warn!(workload = home.pod.name, ?door, %error, "accept failed");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }

    /// Serves a connection here, or has a worker do it that is much less busy.
    fn place(self: &Rc<Self>, home: &Home, stream: TcpStream, door: Door) {
        let load =
            |index: usize| self.siblings.loads.get(index).map_or(usize::MAX, |load| load.load(Ordering::Relaxed));
        let idlest = (0..self.siblings.loads.len()).min_by_key(|index| load(*index)).unwrap_or(self.index);
        if idlest == self.index || load(self.index) < load(idlest).saturating_add(IMBALANCE) {
            return self.clone().serve(home.pod.clone(), stream, door);
        }
        // Room is taken first: the socket can be moved only once.
        let Some(Ok(place)) = self.siblings.senders.get(idlest).map(|sender| sender.try_reserve()) else {
            return self.clone().serve(home.pod.clone(), stream, door);
        };
        match stream.into_std() {
            Ok(accepted) => place.send(Command::Take {
                _guard: self.context.shutdown.guard(),
                workload: home.workload.clone(),
                own_ports: home.own_ports.clone(),
                accepted,
                door,
            }),
            Err(error) => tracing::warn!(%error, "cannot hand over a connection"),
        }
    }

    fn serve(self: Rc<Self>, pod: Rc<Pod>, mut stream: TcpStream, door: Door) {
        let Some(place) = pod.admit() else {
            pod.teller.tell_full(&pod.name);
            let flow = match door {
                Door::Outbound => outbound::flow(&pod, &stream),
                Door::Inbound => inbound::flow(&pod, &stream),
                Door::Tunnel => None,
            };
            stream.reset();
            if let Some(flow) = flow {
                tcp::report_refusal(&pod, &flow, &tcp::Failure::full(), None);
            }
            return;
        };
        let busy = Busy::new(&self);
        let guard = self.context.shutdown.guard();
        let held = (place, busy, guard);
        let done = move |()| drop(held);
        match door {
            Door::Outbound => pod.spawn(outbound::serve(pod.clone(), stream).map(done)),
            Door::Inbound => pod.spawn(inbound::serve(pod.clone(), stream).map(done)),
            // A tunnel to the host is whose its handshake says, not the listener's.
            Door::Tunnel if pod.is_of_host() => {
                tokio::task::spawn_local(tunnel::serve_host(self, stream).map(done));
            }
            Door::Tunnel => pod.spawn(tunnel::serve(pod.clone(), stream).map(done)),
        }
    }
}

/// A workload whose listeners this worker has.
struct Home {
    pod: Rc<Pod>,
    workload: Arc<Workload>,
    own_ports: Vec<u16>,
}

/// Counts a connection in its worker's load.
struct Busy(Rc<Worker>);

impl Busy {
    fn new(worker: &Rc<Worker>) -> Self {
        if let Some(load) = worker.siblings.loads.get(worker.index) {
            load.fetch_add(1, Ordering::Relaxed);
        }
        Self(worker.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(load) = self.0.siblings.loads.get(self.0.index) {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
