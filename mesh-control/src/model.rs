//! The mesh as it is meant: services with their endpoints, workloads with their identities, and the rules of traffic.
//!
//! In: the objects in force. Out: a [`Mesh`], immutable, and every reference that leads nowhere; the next one costs what has
//! changed. Pure: no clock, no files.

pub mod authentication;
pub mod authorization;
pub mod inline;
pub mod protocol;
pub mod rules;
pub mod service;
pub mod visibility;
pub mod workload;

mod build;
mod catalogue;
mod entries;
mod kubernetes;
mod references;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use crate::directory::Directory;
use crate::problem::Problem;
use crate::settings::Settings;
use crate::source::Objects;

use authentication::Authentication;
use authorization::Authorizations;
use catalogue::{ByHost, Memberships};
use inline::Inline;
use rules::Rules;
use service::Service;
use workload::{Workload, Workloads};

pub use build::Builder;

/// What the mesh as a whole is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshOptions {
    /// SPIFFE trust domain.
    pub trust_domain: Arc<str>,
    /// Cluster id.
    pub cluster_id: Arc<str>,
    /// Namespace whose rules apply to every namespace.
    pub root_namespace: Arc<str>,
    /// DNS domain of Kubernetes service names.
    pub dns_domain: Arc<str>,
}

impl From<&Settings> for MeshOptions {
    fn from(settings: &Settings) -> MeshOptions {
        MeshOptions {
            trust_domain: settings.trust_domain.as_str().into(),
            cluster_id: settings.cluster_id.as_str().into(),
            root_namespace: settings.root_namespace.as_str().into(),
            dns_domain: settings.dns_domain.as_str().into(),
        }
    }
}

impl MeshOptions {
    /// The full host of a name used in a namespace: a name without dot is a Kubernetes service of that namespace.
    pub fn full_host(&self, host: &str, namespace: &str) -> String {
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.contains('.') || host == "*" {
            host.to_ascii_lowercase()
        } else {
            format!("{}.{namespace}.svc.{}", host.to_ascii_lowercase(), self.dns_domain)
        }
    }
}

/// The mesh. Its parts are the same in memory as in the mesh before, as far as they are made of the same objects.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// What it was told as a whole.
    pub options: MeshOptions,
    /// Services, oldest first.
    pub services: Arc<Vec<Arc<Service>>>,
    by_host: Arc<ByHost>,
    /// Workloads.
    pub workloads: Arc<Workloads>,
    /// Rules of traffic.
    pub rules: Arc<Rules>,
    /// Who may come in, by what they prove.
    pub authentication: Arc<Authentication>,
    /// Who may come in, by who they are.
    pub authorizations: Arc<Authorizations>,
    /// Who runs where.
    pub directory: Arc<Directory>,
    /// Endpoints that stand in ServiceEntries, oldest first.
    pub inline: Arc<Vec<Arc<Inline>>>,
    /// Services by workload.
    memberships: Arc<Memberships>,
}

/// A service port that a workload serves.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The service.
    pub service: Arc<Service>,
    /// Index of the port in the service.
    pub port: usize,
    /// The workload's port.
    pub target_port: u16,
}

impl Mesh {
    /// Puts the mesh together; problems are references that lead nowhere.
    pub fn build(options: MeshOptions, objects: &Objects) -> (Mesh, Vec<Problem>) {
        Builder::default().build(&options, objects)
    }

    /// The service of a full host as a namespace sees it: its own before others.
    pub fn service(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        let candidates = self.by_host.get(host)?;
        let own = candidates.iter().find(|service| &*service.namespace == namespace);
        own.or_else(|| candidates.iter().find(|service| service.visibility.includes(namespace)))
    }

    /// Every service that a namespace sees, oldest first, one per host.
    pub fn visible<'m>(&'m self, namespace: &'m str) -> impl Iterator<Item = &'m Arc<Service>> {
        self.services.iter().filter(move |service| {
            self.service(&service.host, namespace).is_some_and(|seen| Arc::ptr_eq(seen, service))
        })
    }

    /// What a workload serves, by namespace and name.
    pub fn memberships(&self, workload: &Workload) -> Option<&Arc<[Membership]>> {
        self.memberships.get(&(workload.namespace.clone(), workload.name.clone()))
    }

    /// How many endpoints there are, counted per service port.
    pub fn endpoint_count(&self) -> usize {
        self.services.iter().flat_map(|service| &service.ports).map(|port| port.endpoints.len()).sum()
    }
}
