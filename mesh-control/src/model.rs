//! The mesh as it is meant: services with their endpoints, workloads with their identities, and the rules of traffic.
//!
//! In: the objects in force. Out: a [`Mesh`], immutable, and every reference that leads nowhere. Pure: no clock, no files.

pub mod authentication;
pub mod authorization;
pub mod protocol;
pub mod rules;
pub mod service;
pub mod visibility;
pub mod workload;

mod entries;
mod kubernetes;
mod references;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::{Body, Object};
use crate::directory::{Directory, Resident};
use crate::problem::Problem;
use crate::settings::Settings;
use crate::source::Objects;

use authentication::Authentication;
use authorization::Authorizations;
use rules::Rules;
use service::Service;
use workload::{Workload, Workloads};

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

/// The mesh.
#[derive(Debug)]
pub struct Mesh {
    /// What it was told as a whole.
    pub options: MeshOptions,
    /// Services, oldest first.
    pub services: Vec<Arc<Service>>,
    by_host: HashMap<Arc<str>, Vec<Arc<Service>>>,
    /// Workloads.
    pub workloads: Workloads,
    /// Rules of traffic.
    pub rules: Rules,
    /// Who may come in, by what they prove.
    pub authentication: Authentication,
    /// Who may come in, by who they are.
    pub authorizations: Authorizations,
    /// Who runs where.
    pub directory: Arc<Directory>,
    /// Services by workload.
    memberships: HashMap<(Arc<str>, Arc<str>), Vec<Membership>>,
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
        let mut problems = Vec::new();
        let authentication = Authentication::build(&options, objects, &mut problems);
        let workloads = Workloads::build(&options, objects, &authentication, &mut problems);
        let mut sources: Vec<&Arc<Object>> =
            objects.values().filter(|object| matches!(object.body, Body::Service(_) | Body::ServiceEntry(_))).collect();
        sources.sort_by(|a, b| a.age().cmp(&b.age()));
        let slices = kubernetes::slices_by_service(objects, &mut problems);
        let mut services: Vec<Arc<Service>> = Vec::new();
        for object in sources {
            match &object.body {
                Body::Service(spec) => {
                    let service = kubernetes::service(&options, object, spec, &slices, &workloads, &mut problems);
                    services.extend(service.map(Arc::new));
                }
                Body::ServiceEntry(spec) => {
                    let entries = entries::services(&options, object, spec, &workloads, &mut problems);
                    services.extend(entries.into_iter().map(Arc::new));
                }
                _ => {}
            }
        }
        let by_host = index_hosts(&mut services, objects, &mut problems);
        let rules = Rules::build(&options, objects, &mut problems);
        let memberships = memberships(&services);
        let directory = Arc::new(directory(&workloads));
        let authorizations = Authorizations::build(objects);
        let mesh = Mesh {
            options,
            services,
            by_host,
            workloads,
            rules,
            authentication,
            authorizations,
            directory,
            memberships,
        };
        references::check(&mesh, objects, &mut problems);
        (mesh, problems)
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
    pub fn memberships(&self, workload: &Workload) -> &[Membership] {
        let key = (workload.namespace.clone(), workload.name.clone());
        self.memberships.get(&key).map_or(&[], Vec::as_slice)
    }

    /// How many endpoints there are, counted per service port.
    pub fn endpoint_count(&self) -> usize {
        self.services.iter().flat_map(|service| &service.ports).map(|port| port.endpoints.len()).sum()
    }
}

/// Within one namespace a host belongs to its oldest service.
fn index_hosts(
    services: &mut Vec<Arc<Service>>,
    objects: &Objects,
    problems: &mut Vec<Problem>,
) -> HashMap<Arc<str>, Vec<Arc<Service>>> {
    let mut by_host: HashMap<Arc<str>, Vec<Arc<Service>>> = HashMap::new();
    services.retain(|service| {
        let same = by_host.entry(service.host.clone()).or_default();
        if let Some(first) = same.iter().find(|other| other.namespace == service.namespace) {
            if let Some(object) = objects.get(&service.origin) {
                let why = format!("host `{}` already belongs to {}; it is left out here", service.host, first.origin);
                let path = crate::yaml::FieldPath::of("spec.hosts");
                problems.push(object.problem(crate::problem::Severity::Warning, &path, why));
            }
            return false;
        }
        same.push(service.clone());
        true
    });
    by_host
}

fn memberships(services: &[Arc<Service>]) -> HashMap<(Arc<str>, Arc<str>), Vec<Membership>> {
    let mut all: HashMap<(Arc<str>, Arc<str>), Vec<Membership>> = HashMap::new();
    for service in services {
        for (index, port) in service.ports.iter().enumerate() {
            for endpoint in &port.endpoints {
                let Some(workload) = &endpoint.workload else { continue };
                let list = all.entry((workload.namespace.clone(), workload.name.clone())).or_default();
                let known = list.iter().any(|one| {
                    one.port == index && one.target_port == endpoint.port && Arc::ptr_eq(&one.service, service)
                });
                if !known {
                    list.push(Membership { service: service.clone(), port: index, target_port: endpoint.port });
                }
            }
        }
    }
    all
}

/// A workload that is not in the mesh has no business with its CA or its configuration.
fn directory(workloads: &Workloads) -> Directory {
    let mut directory = Directory::default();
    for workload in workloads.all().iter().filter(|workload| workload.enrolled && workload.alive) {
        if let (Some(node), Some(identity)) = (&workload.node, &workload.identity) {
            let resident = Resident { node: node.clone(), identity: identity.clone() };
            directory.add(workload.namespace.clone(), workload.name.clone(), resident);
        }
    }
    directory
}
