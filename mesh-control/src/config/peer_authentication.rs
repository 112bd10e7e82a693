//! Istio's PeerAuthentication.
//!
//! In: its `spec`. Out: [`PeerAuthentication`]. Checked here: what needs no other object.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::fields::{Selector, check_labels};
use super::{Findings, Labels};
use crate::yaml::FieldPath;

/// `spec`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthentication {
    /// Workloads of the namespace it is for; absent or empty = all of them.
    pub selector: Option<Selector>,
    /// For every port.
    pub mtls: Option<MutualTls>,
    /// For single ports of the workload, by number; only beside a selector.
    pub port_level_mtls: Option<BTreeMap<String, MutualTls>>,
}

/// `mtls`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    /// What is asked of a client.
    pub mode: Mode,
}

/// What is asked of a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// As the level above says.
    #[default]
    Unset,
    /// Plaintext; nobody uses a tunnel.
    Disable,
    /// Mutual TLS or plaintext.
    Permissive,
    /// Mutual TLS.
    Strict,
}

impl PeerAuthentication {
    /// The labels it selects by; `None` when it is for the whole namespace or mesh.
    pub fn labels(&self) -> Option<&Labels> {
        self.selector.as_ref().map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty())
    }

    /// Its mode for all ports.
    pub fn mode(&self) -> Mode {
        self.mtls.as_ref().map_or(Mode::Unset, |mtls| mtls.mode)
    }

    /// Its modes for single ports, by number.
    pub fn ports(&self) -> impl Iterator<Item = (u16, Mode)> {
        self.port_level_mtls.iter().flatten().filter_map(|(port, mtls)| Some((number(port)?, mtls.mode)))
    }

    pub(super) fn check(&self, findings: &mut Findings) {
        let spec = FieldPath::of("spec");
        check_labels(&spec.key("selector").key("matchLabels"), self.labels(), findings);
        let Some(ports) = &self.port_level_mtls else { return };
        let path = spec.key("portLevelMtls");
        if ports.is_empty() {
            findings.error(path.clone(), "at least one port is needed");
        } else if self.labels().is_none() {
            findings.error(path.clone(), "needs a selector: ports are those of single workloads");
        }
        for port in ports.keys().filter(|port| number(port).is_none()) {
            findings.error(path.key(port), format!("`{port}` is no port number from 1 to 65535"));
        }
        let mut seen = std::collections::BTreeSet::new();
        for port in ports.keys().filter(|port| number(port).is_some_and(|number| !seen.insert(number))) {
            findings.error(path.key(port), "this port stands twice");
        }
    }
}

fn number(port: &str) -> Option<u16> {
    port.parse().ok().filter(|port| *port > 0)
}
