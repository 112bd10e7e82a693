//! The channel to the control plane, shared by all streams of the node. In: settings, the files they name. Out: a
//! channel, and the headers that authenticate the node. Reads root and token anew whenever a connection was lost, so
//! that both can be replaced while the agent runs. Never logs a token.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::settings::ControlPlane;

/// How long TCP and TLS may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that does not answer a ping in this time is dead.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 windows: a full load of a large mesh is tens of megabytes.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A file that the settings name cannot be read.
    #[error("cannot read {what} {path}: {source}", path = path.display())]
    File {
        /// Which setting.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The token is not something that fits in a header.
    #[error("{path} does not hold a bearer token", path = .0.display())]
    Token(PathBuf),
    /// Address or certificate are not usable.
    #[error("control plane {address}: {source}")]
    Endpoint {
        /// As set.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Makes and keeps the channel.
pub struct ControlPlaneChannel {
    settings: ControlPlane,
    cluster_id: String,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    generation: u64,
    channel: Option<Channel>,
}

impl ControlPlaneChannel {
    /// Connects to nothing yet.
    pub fn new(settings: ControlPlane, cluster_id: &str) -> ControlPlaneChannel {
        ControlPlaneChannel { settings, cluster_id: cluster_id.to_owned(), current: Mutex::default() }
    }

    /// One that uses a channel which a test has made.
    #[cfg(test)]
    pub(super) fn with_channel(channel: Channel) -> ControlPlaneChannel {
        let settings =
            ControlPlane { address: "http://memory:1".into(), server_name: None, root_cert: None, token_file: None };
        let current = Mutex::new(Current { generation: 1, channel: Some(channel) });
        ControlPlaneChannel { settings, cluster_id: "Kubernetes".into(), current }
    }

    /// As set, for messages.
    pub fn address(&self) -> &str {
        &self.settings.address
    }

    /// The channel (connects at its first use) and its generation.
    pub fn get(&self) -> Result<(Channel, u64), ChannelError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match &current.channel {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.endpoint()?.connect_lazy();
                current.generation += 1;
                current.channel = Some(channel.clone());
                channel
            }
        };
        Ok((channel, current.generation))
    }

    /// A stream over the channel of `generation` failed: the next one gets a fresh channel. Further failures of the
    /// same generation change nothing, so that many streams that fall together share one new connection.
    pub fn lost(&self, generation: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.generation == generation {
            current.channel = None;
        }
    }

    /// Adds the headers that authenticate this node.
    pub fn authenticate(&self, headers: &mut MetadataMap) -> Result<(), ChannelError> {
        if let Ok(cluster) = self.cluster_id.parse::<MetadataValue<Ascii>>() {
            headers.insert("clusterid", cluster);
        }
        if let Some(path) = &self.settings.token_file {
            let token = std::fs::read_to_string(path).map_err(|source| ChannelError::File {
                what: "controlPlane.tokenFile",
                path: path.clone(),
                source,
            })?;
            let token = token.trim();
            let mut value: MetadataValue<Ascii> =
                format!("Bearer {token}").parse().map_err(|_| ChannelError::Token(path.clone()))?;
            if token.is_empty() {
                return Err(ChannelError::Token(path.clone()));
            }
            value.set_sensitive(true);
            headers.insert("authorization", value);
        }
        Ok(())
    }

    fn endpoint(&self) -> Result<Endpoint, ChannelError> {
        let address = &self.settings.address;
        let fail = |source| ChannelError::Endpoint { address: address.clone(), source };
        let mut endpoint = Endpoint::from_shared(address.clone())
            .map_err(fail)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        if let Some(path) = &self.settings.root_cert
            && address.starts_with("https")
        {
            let pem = std::fs::read(path).map_err(|source| ChannelError::File {
                what: "controlPlane.rootCert",
                path: path.clone(),
                source,
            })?;
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            if let Some(name) = &self.settings.server_name {
                tls = tls.domain_name(name.clone());
            }
            endpoint = endpoint.tls_config(tls).map_err(fail)?;
        }
        Ok(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(token: Option<PathBuf>, root: Option<PathBuf>) -> ControlPlaneChannel {
        let address = if root.is_some() { "https://127.0.0.1:1" } else { "http://127.0.0.1:1" };
        let settings = ControlPlane { address: address.into(), server_name: None, root_cert: root, token_file: token };
        ControlPlaneChannel::new(settings, "Kubernetes")
    }

    #[test]
    fn the_token_is_read_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let channel = channel(Some(path.clone()), None);
        let mut headers = MetadataMap::new();
        assert!(channel.authenticate(&mut headers).unwrap_err().to_string().contains("controlPlane.tokenFile"));
        for token in ["first\n", "second"] {
            std::fs::write(&path, token).unwrap();
            channel.authenticate(&mut headers).unwrap();
            let value = headers.get("authorization").unwrap();
            assert_eq!(value.to_str().unwrap(), format!("Bearer {}", token.trim()));
            assert!(value.is_sensitive());
        }
        assert_eq!(headers.get("clusterid").unwrap(), "Kubernetes");
        for token in ["", " \n", "a\nb"] {
            std::fs::write(&path, token).unwrap();
            assert!(matches!(channel.authenticate(&mut headers), Err(ChannelError::Token(_))), "{token:?}");
        }
    }

    #[tokio::test]
    async fn one_new_channel_for_many_losses() {
        let channel = channel(None, None);
        let (_, first) = channel.get().unwrap();
        assert_eq!(channel.get().unwrap().1, first);
        channel.lost(first);
        let (_, second) = channel.get().unwrap();
        assert_ne!(second, first);
        channel.lost(first);
        assert_eq!(channel.get().unwrap().1, second);
    }

    #[tokio::test]
    async fn a_missing_root_is_named() {
        let error = channel(None, Some("/nonexistent/root.pem".into())).get().unwrap_err();
        assert!(error.to_string().starts_with("cannot read controlPlane.rootCert /nonexistent/root.pem: "), "{error}");
    }
}
