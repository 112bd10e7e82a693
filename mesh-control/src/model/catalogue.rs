//! All services, and who serves them.
//!
//! In: the objects in force, and the workloads. Out: services by host, and what each workload serves. A service is made anew
//! only if its object, its slices or any workload has changed, and stays the same in memory if it comes out as it was.

use std::collections::HashMap;
use std::sync::Arc;

use super::inline::{self, Inline};
use super::service::Service;
use super::workload::Workloads;
use super::{Membership, MeshOptions, entries, kubernetes};
use crate::config::{Body, Key, Object};
use crate::problem::{Problem, Severity};
use crate::source::Objects;
use crate::yaml::FieldPath;

/// Services by host; within one namespace a host belongs to its oldest service.
pub(super) type ByHost = HashMap<Arc<str>, Vec<Arc<Service>>>;
/// What workloads serve, by their namespace and name.
pub(super) type Memberships = HashMap<(Arc<str>, Arc<str>), Arc<[Membership]>>;

/// What services are made of.
pub(super) struct Sources<'s> {
    pub options: &'s MeshOptions,
    pub objects: &'s Objects,
    pub workloads: &'s Workloads,
    /// They are the same as the last time.
    pub same_workloads: bool,
}

/// All services.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    /// Oldest first.
    pub services: Arc<Vec<Arc<Service>>>,
    pub by_host: Arc<ByHost>,
    /// Endpoints that stand in ServiceEntries.
    pub inline: Arc<Vec<Arc<Inline>>>,
    pub memberships: Arc<Memberships>,
    made: HashMap<Key, Made>,
    problems: Vec<Problem>,
}

/// What an object gave, and of what it was made.
#[derive(Debug)]
struct Made {
    object: Arc<Object>,
    slices: Vec<Arc<Object>>,
    services: Vec<Arc<Service>>,
    inline: Vec<Arc<Inline>>,
    problems: Vec<Problem>,
}

impl Catalogue {
    /// What was found wrong when they were made.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().chain(self.made.values().flat_map(|made| &made.problems))
    }

    /// The services of these sources.
    pub(super) fn next(mut self, from: &Sources<'_>) -> Catalogue {
        let is_source = |object: &&Arc<Object>| matches!(object.body, Body::Service(_) | Body::ServiceEntry(_));
        let mut objects: Vec<&Arc<Object>> = from.objects.values().filter(is_source).collect();
        objects.sort_by(|a, b| a.age().cmp(&b.age()));
        let mut problems = Vec::new();
        let mut slices = kubernetes::slices_by_service(from.objects, &mut problems);
        let (mut services, mut inline) = (Vec::with_capacity(objects.len()), Vec::new());
        let mut all = HashMap::with_capacity(objects.len());
        for object in objects {
            let slices = match object.body {
                Body::Service(_) => slices.remove(&(&*object.key.namespace, &*object.key.name)).unwrap_or_default(),
                _ => Vec::new(),
            };
            let made = match self.made.remove(&object.key) {
                Some(made) if from.same_workloads && made.is_of(object, &slices) => made,
                former => Made::new(from, object, slices, former),
            };
            services.extend(made.services.iter().cloned());
            inline.extend(made.inline.iter().cloned());
            all.insert(object.key.clone(), made);
        }
        let by_host = index_hosts(&mut services, from.objects, &mut problems);
        let memberships = memberships(&services, &self.memberships);
        Catalogue {
            services: Arc::new(services),
            by_host: Arc::new(by_host),
            inline: Arc::new(inline),
            memberships: Arc::new(memberships),
            made: all,
            problems,
        }
    }
}

impl Made {
    fn new(from: &Sources<'_>, object: &Arc<Object>, slices: Vec<&Arc<Object>>, former: Option<Made>) -> Made {
        let Sources { options, workloads, .. } = from;
        let mut problems = Vec::new();
        let services: Vec<Service> = match &object.body {
            Body::Service(spec) => {
                kubernetes::service(options, object, spec, &slices, workloads, &mut problems).into_iter().collect()
            }
            Body::ServiceEntry(spec) => entries::services(options, object, spec, workloads, &mut problems),
            _ => Vec::new(),
        };
        let inline = match &object.body {
            Body::ServiceEntry(spec) => inline::endpoints(options, object, spec),
            _ => Vec::new(),
        };
        let (former_services, former_inline) = former.map(|made| (made.services, made.inline)).unwrap_or_default();
        Made {
            object: object.clone(),
            slices: slices.into_iter().cloned().collect(),
            services: kept(services, former_services),
            inline: kept(inline, former_inline),
            problems,
        }
    }

    /// Whether it was made of these very objects.
    fn is_of(&self, object: &Arc<Object>, slices: &[&Arc<Object>]) -> bool {
        Arc::ptr_eq(&self.object, object)
            && self.slices.len() == slices.len()
            && self.slices.iter().zip(slices).all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

/// What is as it was stays the same in memory.
fn kept<T: PartialEq>(now: Vec<T>, former: Vec<Arc<T>>) -> Vec<Arc<T>> {
    let mut former = former.into_iter();
    now.into_iter().map(|one| former.next().filter(|there| **there == one).unwrap_or_else(|| Arc::new(one))).collect()
}

/// Within one namespace a host belongs to its oldest service.
fn index_hosts(services: &mut Vec<Arc<Service>>, objects: &Objects, problems: &mut Vec<Problem>) -> ByHost {
    let mut by_host: ByHost = HashMap::with_capacity(services.len());
    services.retain(|service| {
        let same = by_host.entry(service.host.clone()).or_default();
        if let Some(first) = same.iter().find(|other| other.namespace == service.namespace) {
            if let Some(object) = objects.get(&service.origin) {
                let why = format!("host `{}` already belongs to {}; it is left out here", service.host, first.origin);
                problems.push(object.problem(Severity::Warning, &FieldPath::of("spec.hosts"), why));
            }
            return false;
        }
        same.push(service.clone());
        true
    });
    by_host
}

/// Lists that are as they were stay the same in memory.
fn memberships(services: &[Arc<Service>], before: &Memberships) -> Memberships {
    let mut all: HashMap<(Arc<str>, Arc<str>), Vec<Membership>> = HashMap::with_capacity(before.len());
    for service in services {
        for (index, port) in service.ports.iter().enumerate() {
            for endpoint in &port.endpoints {
                let Some(workload) = &endpoint.workload else { continue };
                let list = all.entry((workload.namespace.clone(), workload.name.clone())).or_default();
                // What is known of this service stands at the end.
                let mut known = list.iter().rev().take_while(|one| Arc::ptr_eq(&one.service, service));
                if !known.any(|one| one.port == index && one.target_port == endpoint.port) {
                    list.push(Membership { service: service.clone(), port: index, target_port: endpoint.port });
                }
            }
        }
    }
    let kept = all.into_iter().map(|(key, list)| {
        let same = before.get(&key).filter(|there| there.len() == list.len() && there.iter().zip(&list).all(same));
        let list = same.cloned().unwrap_or_else(|| list.into());
        (key, list)
    });
    kept.collect()
}

fn same((one, other): (&Membership, &Membership)) -> bool {
    Arc::ptr_eq(&one.service, &other.service) && one.port == other.port && one.target_port == other.target_port
}
