//! Taking over workloads from the agent that runs, and handing them over to the next one. In: listening sockets of the
//! other agent. Out: the same workloads served by this one, with certificates and configuration from the first moment.
//! Never: takes over a workload that this agent could not serve as well as the other one does.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::{Running, Workloads, lock};
use crate::handover::{Estate, PREPARE_LIMIT, Pod};
use crate::kernel::{KernelError, Listeners};
use crate::settings::WorkloadSettings;
use crate::workload::Workload;
use crate::xds::StatusCell;

/// Why a workload cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// The control plane has not told what the other agent knows.
    #[error("workload {workload}: no certificate and configuration within {} s ({why}); is the control plane reachable?", PREPARE_LIMIT.as_secs())]
    NotReady {
        /// Which.
        workload: String,
        /// The stream's last error, if any.
        why: String,
    },
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A descriptor.
    #[error("workload {workload}: cannot copy its listeners: {source}")]
    Listeners {
        /// Which.
        workload: String,
        /// Why.
        source: io::Error,
    },
}

/// A workload between the two agents.
struct Heir {
    settings: WorkloadSettings,
    workload: Arc<Workload>,
    xds: StatusCell,
    stream: JoinHandle<()>,
    listeners: Listeners,
    /// The other agent has certificate and configuration.
    ready: bool,
}

impl Workloads {
    /// Takes the workloads among `pods` over that the settings list too. When this fails, nothing has changed for the
    /// other agent; afterwards both accept their connections.
    pub async fn inherit(&mut self, pods: Vec<Pod>, wanted: &[WorkloadSettings]) -> Result<(), InheritError> {
        let wanted: HashMap<String, &WorkloadSettings> = wanted.iter().map(|one| (one.key(), one)).collect();
        let mut heirs = Vec::new();
        for pod in pods {
            let Some(settings) = wanted.get(&pod.workload) else { continue };
            heirs.extend(self.heir(pod, settings));
        }
        let limit = Instant::now() + PREPARE_LIMIT;
        for heir in heirs.iter().filter(|heir| heir.ready) {
            let workload = &heir.workload;
            let mut credential = self.parts.identities.watch(&workload.identity);
            let ready = async {
                self.parts.live.ready(workload.id).await;
                // The sender lives as long as the workload.
                let _ = credential.wait_for(Option::is_some).await;
            };
            timeout_at(limit, ready).await.map_err(|_| InheritError::NotReady {
                workload: workload.key(),
                why: heir.xds.get().last_error.unwrap_or_else(|| "no answer".into()),
            })?;
        }
        let (mut served, mut accepting) = (Vec::new(), Vec::new());
        {
            let mut kernel = lock(&self.parts.kernel);
            let mut prepared = Vec::new();
            for heir in heirs {
                let Heir { settings, workload, xds, stream, listeners, .. } = heir;
                let copies = listeners
                    .try_clone()
                    .map_err(|source| InheritError::Listeners { workload: workload.key(), source })?;
                prepared.push(kernel.prepare(&workload, Some(listeners))?);
                served.push(Running { settings, workload, xds, stream, listeners: copies });
            }
            kernel.attach()?;
            for prepared in prepared {
                accepting.push(kernel.commit(prepared)?);
            }
        }
        for (running, listeners) in served.into_iter().zip(accepting) {
            self.parts.workers.enrol(running.workload.clone(), listeners).await;
            tracing::info!(workload = running.workload.key(), "taken over");
            if let Some(process) = running.workload.netns.process() {
                self.processes.insert(running.settings.key(), process);
            }
            self.running.insert(running.settings.key(), running);
        }
        Ok(())
    }

    /// `None` for a workload that is another one by now: it is let go by the one agent and enrolled by the other.
    fn heir(&mut self, pod: Pod, settings: &WorkloadSettings) -> Option<Heir> {
        let why = match self.open(&pod.workload, settings) {
            Ok(netns) if netns.cookie() == pod.netns => match self.describe(settings, Arc::new(netns)) {
                Ok(workload) => {
                    let (xds, stream) = self.begin(&workload);
                    let (settings, listeners, ready) = (settings.clone(), pod.listeners, pod.ready);
                    return Some(Heir { settings, workload, xds, stream, listeners, ready });
                }
                Err(error) => error.to_string(),
            },
            Ok(_) => "its network namespace is another one by now".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(workload = pod.workload, why, "not taken over, but enrolled anew");
        None
    }

    /// What there is for a successor.
    pub fn estate(&self, pages: &[TcpListener; 3]) -> io::Result<Estate> {
        let [admin, metrics, ready] = pages;
        let pods = self.running.iter().map(|(key, running)| {
            let workload = &running.workload;
            Ok(Pod {
                workload: key.clone(),
                netns: workload.netns.cookie(),
                ready: self.parts.live.workload(workload.id).is_some()
                    && self.parts.identities.current(&workload.identity).is_some(),
                listeners: running.listeners.try_clone()?,
            })
        });
        Ok(Estate {
            lock: lock(&self.parts.kernel).lock()?,
            pages: [admin.try_clone()?, metrics.try_clone()?, ready.try_clone()?],
            pods: pods.collect::<io::Result<_>>()?,
        })
    }

    /// A successor did not come to it: puts right what it may have changed.
    pub fn reassert(&mut self) {
        lock(&self.parts.kernel).reassert();
    }

    /// A successor has taken over: from here on this agent changes nothing in the kernel and keeps no listener.
    pub fn leave(&mut self) {
        self.waiting.clear();
        lock(&self.parts.kernel).leave();
        self.running.values_mut().for_each(|running| running.listeners = Listeners::default());
    }
}
