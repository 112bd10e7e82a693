//! Puts the mesh together, and the next one at the cost of what has changed.
//!
//! In: the objects in force. Out: a [`Mesh`], and every reference that leads nowhere. What is made of the very same objects as
//! the last time is the very same in memory; a property test holds every mesh equal to one that is made anew. Pure.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::authentication::Authentication;
use super::authorization::Authorizations;
use super::catalogue::{Catalogue, Sources};
use super::rules::Rules;
use super::workload::Workloads;
use super::{Mesh, MeshOptions, references};
use crate::config::{Kind, Object};
use crate::directory::{Directory, Resident};
use crate::problem::Problem;
use crate::source::Objects;

/// Makes meshes, one after the other.
#[derive(Debug, Default)]
pub struct Builder {
    former: Option<Former>,
}

/// What was made last, and of what.
#[derive(Debug, Default)]
struct Former {
    options: Option<MeshOptions>,
    objects: Objects,
    authentication: Part<Authentication>,
    workloads: Part<Workloads>,
    catalogue: Catalogue,
    rules: Part<Rules>,
    authorizations: Part<Authorizations>,
    directory: Arc<Directory>,
}

/// A part of the mesh, with what was found wrong when it was made.
#[derive(Debug, Default)]
struct Part<T> {
    value: Arc<T>,
    problems: Vec<Problem>,
}

impl<T> Part<T> {
    /// As it is, or made anew.
    fn renew(self, anew: bool, make: impl FnOnce(&T, &mut Vec<Problem>) -> T) -> Part<T> {
        if !anew {
            return self;
        }
        let mut problems = Vec::new();
        let value = make(&self.value, &mut problems);
        Part { value: Arc::new(value), problems }
    }
}

impl Builder {
    /// The mesh of these objects.
    pub fn build(&mut self, options: &MeshOptions, objects: &Objects) -> (Mesh, Vec<Problem>) {
        let former = self.former.take().filter(|former| former.options.as_ref() == Some(options)).unwrap_or_default();
        let now = former.next(options, objects);
        let mesh = Mesh {
            options: options.clone(),
            services: now.catalogue.services.clone(),
            by_host: now.catalogue.by_host.clone(),
            workloads: now.workloads.value.clone(),
            rules: now.rules.value.clone(),
            authentication: now.authentication.value.clone(),
            authorizations: now.authorizations.value.clone(),
            directory: now.directory.clone(),
            inline: now.catalogue.inline.clone(),
            memberships: now.catalogue.memberships.clone(),
        };
        let parts = [&now.authentication.problems, &now.workloads.problems, &now.rules.problems];
        let mut problems: Vec<Problem> = parts.into_iter().flatten().cloned().collect();
        problems.extend(now.catalogue.problems().cloned());
        // Whatever changes, a reference may lead nowhere now.
        references::check(&mesh, objects, &mut problems);
        self.former = Some(now);
        (mesh, problems)
    }
}

impl Former {
    fn next(self, options: &MeshOptions, objects: &Objects) -> Former {
        let changed = changed(&self.objects, objects);
        let any = |kinds: &[Kind]| kinds.iter().any(|kind| changed.contains(kind));
        let authentication = self
            .authentication
            .renew(any(&[Kind::PeerAuthentication]), |_, problems| Authentication::build(options, objects, problems));
        let whoever = any(&[Kind::Pod, Kind::Node, Kind::WorkloadEntry, Kind::PeerAuthentication]);
        let before = self.workloads.value.clone();
        let mut workloads = self.workloads.renew(whoever, |before, problems| {
            Workloads::build(options, objects, &authentication.value, before, problems)
        });
        let same_workloads = workloads.value.same(&before);
        if same_workloads {
            workloads.value = before;
        }
        let catalogue = if !same_workloads || any(&[Kind::Service, Kind::ServiceEntry, Kind::EndpointSlice]) {
            self.catalogue.next(&Sources { options, objects, workloads: &workloads.value, same_workloads })
        } else {
            self.catalogue
        };
        let rules = any(&[Kind::VirtualService, Kind::DestinationRule]);
        let rules = self.rules.renew(rules, |before, problems| Rules::build(options, objects, before, problems));
        let authorizations =
            self.authorizations.renew(any(&[Kind::AuthorizationPolicy]), |_, _| Authorizations::build(objects));
        let directory = if same_workloads { self.directory } else { Arc::new(directory(&workloads.value)) };
        Former {
            options: Some(options.clone()),
            objects: objects.clone(),
            authentication,
            workloads,
            catalogue,
            rules,
            authorizations,
            directory,
        }
    }
}

/// Kinds of which an object came, went, or is another one.
fn changed(before: &Objects, now: &Objects) -> BTreeSet<Kind> {
    let mut kinds = BTreeSet::new();
    let (mut before, mut now) = (before.iter().peekable(), now.iter().peekable());
    loop {
        let order = match (before.peek(), now.peek()) {
            (None, None) => return kinds,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((_, one)), Some((_, other))) if Arc::ptr_eq(one, other) => Ordering::Equal,
            (Some((key, _)), Some((other, _))) => key.cmp(other),
        };
        let gone = if order.is_le() { before.next() } else { None };
        let come = if order.is_ge() { now.next() } else { None };
        let object = |entry: Option<(_, &'_ Arc<Object>)>| entry.map(|(_, object)| object.clone());
        match (object(gone), object(come)) {
            (Some(one), Some(other)) if Arc::ptr_eq(&one, &other) => {}
            (gone, come) => kinds.extend(gone.into_iter().chain(come).map(|object| object.key.kind)),
        }
    }
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
