//! Probes of the orchestrator, in the words of a Kubernetes container (`httpGet`, `tcpSocket`, `grpc`). In: the settings.
//! Out: [`Probe`]s. A port by name, a command and HTTPS, whose path nobody can see, are refused.

use serde::Deserialize;

/// Probes of one workload: three of each of its containers, as a rule.
pub const MAX_PROBES: usize = 64;

/// What the node may send to a workload in the open although plaintext may not come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `GET` of this path, query included.
    Http {
        /// The application's port.
        port: u16,
        /// As it stands in the request line.
        path: String,
    },
    /// A connection that says nothing.
    Tcp {
        /// The application's port.
        port: u16,
    },
    /// gRPC's health check (`grpc.health.v1.Health/Check`).
    Grpc {
        /// The application's port.
        port: u16,
    },
}

impl Probe {
    /// The application's port.
    pub fn port(&self) -> u16 {
        match self {
            Probe::Http { port, .. } | Probe::Tcp { port } | Probe::Grpc { port } => *port,
        }
    }

    /// The port, if the probe is of TCP.
    pub fn tcp_port(&self) -> Option<u16> {
        if let Probe::Tcp { port } = self { Some(*port) } else { None }
    }
}

/// A probe as it is written: one of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeSettings {
    /// A request.
    #[serde(default)]
    pub http_get: Option<HttpGet>,
    /// A connection.
    #[serde(default)]
    pub tcp_socket: Option<TcpSocket>,
    /// A health check.
    #[serde(default)]
    pub grpc: Option<Grpc>,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGet {
    /// Port number.
    pub port: u16,
    /// Path, with the query if there is one.
    #[serde(default = "root")]
    pub path: String,
    /// `HTTP`.
    #[serde(default = "http")]
    pub scheme: String,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSocket {
    /// Port number.
    pub port: u16,
}

/// A health check.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grpc {
    /// Port number.
    pub port: u16,
    /// Name of the service that is asked about; any may be.
    #[serde(default)]
    pub service: String,
}

fn root() -> String {
    "/".into()
}

fn http() -> String {
    "HTTP".into()
}

impl ProbeSettings {
    /// The probe, or the field that is wrong, from here on, and why.
    pub fn get(&self) -> Result<Probe, (&'static str, String)> {
        let probe = match (&self.http_get, &self.tcp_socket, &self.grpc) {
            (Some(HttpGet { port, path, scheme }), None, None) => {
                if scheme != "HTTP" {
                    let why = "the agent does not see the path of a request over TLS; use HTTP or tcpSocket";
                    return Err((".httpGet.scheme", why.into()));
                }
                let fits = |path: &str| path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok();
                if !fits(path) {
                    return Err((".httpGet.path", format!("\"{path}\" is not the path of a request: write /PATH")));
                }
                Probe::Http { port: *port, path: path.clone() }
            }
            (None, Some(TcpSocket { port }), None) => Probe::Tcp { port: *port },
            (None, None, Some(Grpc { port, .. })) => Probe::Grpc { port: *port },
            _ => return Err(("", "needs exactly one of httpGet, tcpSocket and grpc".into())),
        };
        if probe.port() == 0 {
            return Err(("", "0 is not a port".into()));
        }
        Ok(probe)
    }
}
