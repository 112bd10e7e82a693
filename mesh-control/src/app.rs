//! Puts the control plane together: directory → mesh → streams, the CA, the ports.
//!
//! In: settings. Out: a running control plane that tells where it listens and stops when told.

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::auth::NodeAuth;
use crate::ca::{Ca, CaService, RootError};
use crate::directory::Directory;
use crate::http::{self, Pages};
use crate::metrics::Metrics;
use crate::model::{Builder, Mesh, MeshOptions};
use crate::problem::Problems;
use crate::resource::{Offer, Proxy, Published};
use crate::server::{self, ServerCertificate};
use crate::settings::Settings;
use crate::source::{Loaded, Loader, watch as watch_directory};
use crate::translate::{Checked, Translation, vet};
use crate::xds::Xds;

/// Why the control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration directory is not there.
    #[error("configDir {}: {source}; create it, it may be empty", path.display())]
    ConfigDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The CA cannot be used.
    #[error(transparent)]
    Ca(#[from] RootError),
    /// There is no certificate for the own port.
    #[error(transparent)]
    Certificate(#[from] server::CertificateError),
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A port cannot be bound.
    #[error("cannot listen on {address} ({field} in the settings): {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Its field in the settings.
        field: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A running control plane.
pub struct App {
    /// Where xDS and CA listen with TLS.
    pub xds: SocketAddr,
    /// Where they listen without, if at all.
    pub plaintext: Option<SocketAddr>,
    /// Where the HTTP port is.
    pub http: SocketAddr,
    /// The CA's root in PEM.
    pub root_pem: String,
    /// The counters.
    pub metrics: Metrics,
    /// The problems in force.
    pub problems: Problems,
    reload: Arc<Notify>,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

/// Where versions of the mesh are made.
struct Publisher {
    loader: Loader,
    last: Loaded,
    options: MeshOptions,
    builder: Builder,
    checked: Checked,
    problems: Problems,
    metrics: Metrics,
}

impl App {
    /// Starts everything; returns when the ports are open and the configuration was read once.
    pub async fn start(settings: Settings) -> Result<App, StartError> {
        std::fs::read_dir(&settings.config_dir)
            .map_err(|source| StartError::ConfigDir { path: settings.config_dir.clone(), source })?;
        let ca = Ca::open(&settings.ca_dir, &settings.trust_domain, SystemTime::now())?;
        let certificate = ServerCertificate::new(ca.clone(), server_names(&settings))?;
        let tls = Arc::new(server::tls_config(Arc::new(certificate))?);

        let (metrics, problems, checked) = (Metrics::default(), Problems::default(), Checked::default());
        let mut changes = watch_directory(&settings.config_dir);
        let mut publisher = Publisher {
            loader: Loader::new(&settings.config_dir, vet),
            last: Loaded::default(),
            options: MeshOptions::from(&settings),
            builder: Builder::default(),
            checked: checked.clone(),
            problems: problems.clone(),
            metrics: metrics.clone(),
        };
        let first = Arc::new(publisher.publish(None).unwrap_or_else(|| publisher.empty()));
        let (outputs, inputs) = outputs(first);

        let auth = NodeAuth::new(&settings.nodes);
        let max_ttl = Duration::from_secs(settings.cert_ttl);
        let routes = || {
            let ca = CaService::new(ca.clone(), auth.clone(), inputs.directory.clone(), max_ttl, metrics.clone());
            let ads = Xds::new(auth.clone(), inputs.published.clone(), metrics.clone());
            Routes::new(ca.into_server()).add_service(ads.into_server())
        };
        let shutdown = CancellationToken::new();
        let mut tasks = Vec::new();

        let (listener, xds) = listen(settings.listen.xds, "listen.xds").await?;
        tasks.push(tokio::spawn(grpc(listener, Some(tls), routes(), shutdown.clone())));
        let mut plaintext = None;
        if let Some(address) = settings.listen.plaintext {
            let (listener, address) = listen(address, "listen.plaintext").await?;
            tracing::warn!(%address, "xDS and CA are served without TLS here: tokens travel in clear");
            tasks.push(tokio::spawn(grpc(listener, None, routes(), shutdown.clone())));
            plaintext = Some(address);
        }
        let (listener, http) = listen(settings.listen.http, "listen.http").await?;
        let pages = Pages {
            problems: problems.clone(),
            checked,
            metrics: metrics.clone(),
            translation: inputs.translation.clone(),
            root_not_after: ca.not_after(),
        };
        tasks.push(tokio::spawn(http::serve(listener, pages, shutdown.clone())));

        let reload = Arc::new(Notify::new());
        let (again, stop) = (reload.clone(), shutdown.clone());
        tasks.push(tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = changes.next() => {}
                    () = again.notified() => {}
                }
                publisher = step(publisher, &outputs).await;
            }
        }));
        tracing::info!(%xds, ?plaintext, %http, directory = %settings.config_dir.display(), "the control plane is up");
        let root_pem = ca.root_pem().to_owned();
        Ok(App { xds, plaintext, http, root_pem, metrics, problems, reload, shutdown, tasks })
    }

    /// Reads the configuration again now.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Closes ports and streams, and waits until they are closed.
    pub async fn stop(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            // A task that panicked has been reported already.
            let _ = task.await;
        }
    }
}

/// Where a new version goes.
struct Outputs {
    directory: watch::Sender<Arc<Directory>>,
    translation: watch::Sender<Arc<Translation>>,
    published: watch::Sender<Arc<Published>>,
}

/// Where it is read.
struct Inputs {
    directory: watch::Receiver<Arc<Directory>>,
    translation: watch::Receiver<Arc<Translation>>,
    published: watch::Receiver<Arc<Published>>,
}

fn outputs(first: Arc<Translation>) -> (Outputs, Inputs) {
    let (directory, directory_input) = watch::channel(first.mesh().directory.clone());
    let (published, published_input) = watch::channel(published(&first));
    let (translation, translation_input) = watch::channel(first);
    let inputs = Inputs { directory: directory_input, translation: translation_input, published: published_input };
    (Outputs { directory, translation, published }, inputs)
}

fn published(translation: &Arc<Translation>) -> Arc<Published> {
    let directory = translation.mesh().directory.clone();
    let translation = translation.clone();
    let resources = Box::new(move |proxy: &Proxy, kind| match proxy {
        Proxy::Node => translation.of_nodes(kind),
        Proxy::Workload { namespace, name } => match translation.mesh().workloads.get(namespace, name) {
            Some(workload) => translation.resources(workload, kind),
            // Streams are only for workloads of the directory, which is made of the same mesh.
            None => Offer::default(),
        },
    });
    Arc::new(Published { directory, resources })
}

/// Reads and publishes on a thread where that may take its time.
async fn step(mut publisher: Publisher, outputs: &Outputs) -> Publisher {
    let former = outputs.translation.borrow().clone();
    let rebuilt = tokio::task::spawn_blocking(move || {
        let translation = publisher.publish(Some(&former));
        (publisher, translation)
    });
    match rebuilt.await {
        Ok((publisher, translation)) => {
            if let Some(translation) = translation.map(Arc::new) {
                // Identities first: who is told of a workload may ask for its certificate at once.
                outputs.directory.send_replace(translation.mesh().directory.clone());
                outputs.published.send_replace(published(&translation));
                outputs.translation.send_replace(translation);
            }
            publisher
        }
        Err(error) => {
            // A bug. Going on with an old configuration for ever would hide it.
            tracing::error!(%error, "reading the configuration failed; changes are no longer seen");
            match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            }
        }
    }
}

impl Publisher {
    /// A new version of the mesh, when anything changed since the one in force, if there is one.
    fn publish(&mut self, former: Option<&Translation>) -> Option<Translation> {
        let start = Instant::now();
        let loaded = self.loader.load();
        let read = start.elapsed();
        if former.is_some() && loaded.same(&self.last) {
            return None;
        }
        self.last = loaded.clone();
        let (mesh, mut problems) = self.builder.build(&self.options, &loaded.objects);
        problems.extend(loaded.problems);
        self.problems.replace(problems);
        let (services, endpoints) = (mesh.services.len(), mesh.endpoint_count());
        let built = start.elapsed();
        self.checked.start_over();
        let mesh = Arc::new(mesh);
        let mut translation = match former {
            Some(former) => Translation::after(former, mesh),
            None => Translation::new(mesh, self.checked.clone()),
        };
        translation.prepare();
        let took = start.elapsed();
        self.metrics.loaded(took, services, endpoints);
        tracing::info!(
            objects = loaded.objects.len(),
            services,
            endpoints,
            took_ms = took.as_millis() as u64,
            read_ms = read.as_millis() as u64,
            model_ms = (built - read).as_millis() as u64,
            "configuration read"
        );
        Some(translation)
    }

    fn empty(&self) -> Translation {
        let (mesh, _) = Mesh::build(self.options.clone(), &Default::default());
        Translation::new(Arc::new(mesh), self.checked.clone())
    }
}

async fn listen(address: SocketAddr, field: &'static str) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, field, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn grpc(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    routes: Routes,
    shutdown: CancellationToken,
) {
    if let Err(error) = server::serve(listener, tls, routes, shutdown).await {
        tracing::error!(%error, "a gRPC port failed");
    }
}

fn server_names(settings: &Settings) -> Vec<String> {
    let root = &settings.root_namespace;
    let mut names = vec![format!("istiod.{root}.svc"), format!("istiod.{root}.svc.{}", settings.dns_domain)];
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    names.extend(settings.server_names.iter().cloned());
    names
}
