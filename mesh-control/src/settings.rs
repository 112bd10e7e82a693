//! The control plane's settings.
//!
//! In: a YAML file. Out: [`Settings`], checked, or every problem with file, line and path. Unknown fields are errors.

use std::collections::HashSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::yaml::{self, FieldPath};

/// Longest life of a workload certificate that may be set: 90 days, in seconds.
pub const MAX_CERT_TTL: u64 = 90 * 24 * 3600;

/// Everything the control plane is told at start.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Directory with the mesh's objects in YAML, read recursively and watched.
    pub config_dir: PathBuf,
    /// Directory of the CA: `root-key.pem` and `root-cert.pem`, created at first start.
    pub ca_dir: PathBuf,
    /// SPIFFE trust domain of every identity.
    #[serde(default = "default_trust_domain")]
    pub trust_domain: String,
    /// Cluster id, as in Istio's metrics and workload metadata.
    #[serde(default = "default_cluster_id")]
    pub cluster_id: String,
    /// Namespace whose objects apply to every namespace, and that names the server's certificate.
    #[serde(default = "default_root_namespace")]
    pub root_namespace: String,
    /// DNS domain of Kubernetes service names.
    #[serde(default = "default_dns_domain")]
    pub dns_domain: String,
    /// Longest and default life of a workload certificate, in seconds: 1 to [`MAX_CERT_TTL`].
    #[serde(default = "default_cert_ttl")]
    pub cert_ttl: u64,
    /// Where to listen.
    #[serde(default)]
    pub listen: Listen,
    /// More DNS names or addresses for the server's certificate.
    #[serde(default)]
    pub server_names: Vec<String>,
    /// The nodes that may connect.
    #[serde(default)]
    pub nodes: Vec<NodeSettings>,
}

/// Where to listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listen {
    /// xDS and CA over TLS.
    pub xds: SocketAddr,
    /// xDS and CA without TLS; off unless set. Tokens travel in clear there: for tests only.
    pub plaintext: Option<SocketAddr>,
    /// `/healthz/ready`, `/metrics`, `/debug`.
    pub http: SocketAddr,
}

impl Default for Listen {
    fn default() -> Listen {
        Listen {
            xds: (Ipv4Addr::UNSPECIFIED, 15012).into(),
            plaintext: None,
            http: (Ipv4Addr::UNSPECIFIED, 15014).into(),
        }
    }
}

/// A node that may connect.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSettings {
    /// Its name, as in `spec.nodeName` of its pods.
    pub name: String,
    /// File with its bearer token; read again when it changes.
    pub token_file: PathBuf,
}

fn default_trust_domain() -> String {
    "cluster.local".to_owned()
}

fn default_cluster_id() -> String {
    "Kubernetes".to_owned()
}

fn default_root_namespace() -> String {
    "istio-system".to_owned()
}

fn default_dns_domain() -> String {
    "cluster.local".to_owned()
}

fn default_cert_ttl() -> u64 {
    24 * 3600
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("settings file {}: {source}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds something wrong; one line each.
    #[error("{}", Lines(.0))]
    Invalid(Vec<String>),
}

struct Lines<'a>(&'a [String]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Settings {
    /// Reads and checks a settings file. Relative paths in it are taken from the file's directory.
    pub fn load(file: &Path) -> Result<Settings, SettingsError> {
        let text =
            std::fs::read_to_string(file).map_err(|source| SettingsError::Read { file: file.to_owned(), source })?;
        let mut settings = Settings::parse(&text, &file.display().to_string())?;
        let base = file.parent().unwrap_or(Path::new(""));
        for path in [&mut settings.config_dir, &mut settings.ca_dir]
            .into_iter()
            .chain(settings.nodes.iter_mut().map(|node| &mut node.token_file))
        {
            *path = base.join(&*path);
        }
        Ok(settings)
    }

    /// Parses and checks settings; `file` is the name that problems carry.
    pub fn parse(text: &str, file: &str) -> Result<Settings, SettingsError> {
        let mut documents = yaml::documents(text).into_iter();
        let (Some(document), None) = (documents.next(), documents.next()) else {
            return Err(SettingsError::Invalid(vec![format!("{file}: exactly one YAML document is wanted")]));
        };
        let node = document
            .tree
            .map_err(|fault| SettingsError::Invalid(vec![format!("{file}:{}: {}", fault.line, fault.why)]))?;
        let reading = yaml::read::<Settings>(&node);
        let mut wrong: Vec<(FieldPath, String)> = Vec::new();
        for path in reading.unknown {
            wrong.push((path, "unknown field".to_owned()));
        }
        match &reading.value {
            Ok(settings) => settings.check(&mut wrong),
            Err(fault) => wrong.push((fault.path.clone(), fault.why.clone())),
        }
        match reading.value {
            Ok(settings) if wrong.is_empty() => Ok(settings),
            _ => Err(SettingsError::Invalid(
                wrong.iter().map(|(path, why)| format!("{file}:{}: {path}: {why}", node.line_of(path))).collect(),
            )),
        }
    }

    fn check(&self, wrong: &mut Vec<(FieldPath, String)>) {
        if !(1..=MAX_CERT_TTL).contains(&self.cert_ttl) {
            wrong.push((FieldPath::of("certTtl"), format!("must be 1 to {MAX_CERT_TTL} seconds")));
        }
        for (field, value) in [("trustDomain", &self.trust_domain), ("dnsDomain", &self.dns_domain)] {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
            if value.is_empty() || value.len() > 255 || !value.chars().all(fits) {
                wrong.push((
                    FieldPath::of(field),
                    format!("`{value}` is no domain of lowercase letters, digits, `.`, `-`, `_`"),
                ));
            }
        }
        let mut names = HashSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if node.name.is_empty() || !names.insert(node.name.as_str()) {
                let path = FieldPath::of("nodes").index(index).key("name");
                wrong.push((path, format!("`{}` is empty or stands twice", node.name)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn defaults_and_relative_paths() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("control.yaml");
        std::fs::write(&file, "configDir: mesh\ncaDir: /ca\nnodes:\n- {name: a, tokenFile: tokens/a}\n").unwrap();
        let settings = Settings::load(&file).unwrap();
        assert_eq!(settings.config_dir, dir.path().join("mesh"));
        assert_eq!(settings.ca_dir, Path::new("/ca"));
        assert_eq!(settings.nodes[0].token_file, dir.path().join("tokens/a"));
        assert_eq!(settings.listen.xds.port(), 15012);
        assert_eq!(settings.listen.plaintext, None);
        assert_eq!((settings.cert_ttl, settings.trust_domain.as_str()), (86_400, "cluster.local"));
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let text = "configDir: a\ncaDir: b\ncertTtl: 0\ntypo: 1\nnodes:\n- {name: x, tokenFile: t}\n- {name: x, tokenFile: t}\n";
        let error = Settings::parse(text, "c.yaml").unwrap_err().to_string();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), 3, "{error}");
        assert_eq!(lines[0], "c.yaml:4: typo: unknown field");
        assert!(lines[1].starts_with("c.yaml:3: certTtl: must be"), "{error}");
        assert!(lines[2].starts_with("c.yaml:7: nodes[1].name: `x`"), "{error}");
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = Settings::parse("configDir: a\n", "c.yaml").unwrap_err().to_string();
        assert!(error.contains("caDir"), "{error}");
    }
}
