//! What the control plane publishes: resources as they travel in xDS, by kind and name, for one proxy.
//!
//! In: encoded Envoy messages. Out: [`Resource`]s whose version is a hash of their content. No I/O.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::google::protobuf::Any;
use mesh_core::resource::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use prost::Message as _;

use crate::directory::Directory;

/// The kinds of resources, in the order in which they are pushed: what is referred to goes before what refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    Endpoint,
    /// `envoy.config.listener.v3.Listener`.
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`.
    Route,
    /// `istio.security.Authorization`, for nodes.
    Authorization,
    /// `istio.workload.Address`, for nodes.
    Address,
}

impl Kind {
    /// All of them, in push order; the index is that of `metrics::TYPES`.
    pub const ALL: [Kind; 6] =
        [Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Route, Kind::Authorization, Kind::Address];

    /// Index in [`Kind::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Kind::Authorization => AUTHORIZATION_TYPE,
            Kind::Address => ADDRESS_TYPE,
        }
    }

    /// The kind of a type URL.
    pub fn of(type_url: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// Endpoints and routes may be subscribed to only by name; the others as a whole too.
    pub fn has_wildcard(self) -> bool {
        !matches!(self, Kind::Endpoint | Kind::Route)
    }

    /// Whether a client that names what is not there is told so, as one that asks who has an address.
    pub fn tells_unknown(self) -> bool {
        self == Kind::Address
    }

    /// What a client gets for a name that nothing is known of: an empty resource, as istiod sends it, so that its
    /// cluster or listener does not wait for ever. `None` for kinds that are reported as removed instead.
    pub fn absent(self, name: &str) -> Option<Resource> {
        let value = match self {
            Kind::Endpoint => {
                ClusterLoadAssignment { cluster_name: name.to_owned(), ..Default::default() }.encode_to_vec()
            }
            Kind::Route => RouteConfiguration { name: name.to_owned(), ..Default::default() }.encode_to_vec(),
            Kind::Cluster | Kind::Listener | Kind::Authorization | Kind::Address => return None,
        };
        Some(Resource::new(self, value))
    }
}

/// One encoded resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Hash of the content.
    pub version: u64,
    /// The message.
    pub body: Any,
    /// Other names it may be asked for by.
    pub aliases: Vec<String>,
}

impl Resource {
    /// From an encoded message of this kind.
    pub fn new(kind: Kind, value: Vec<u8>) -> Resource {
        let mut hasher = DefaultHasher::new();
        hasher.write(&value);
        let body = Any { type_url: kind.type_url().to_owned(), value };
        Resource { version: hasher.finish(), body, aliases: Vec::new() }
    }
}

/// Resources of one kind, by name.
pub type Resources = BTreeMap<Arc<str>, Arc<Resource>>;

/// All resources of one kind for one proxy.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// What others are told, too. As long as it stays what it is, over versions of the mesh, it is the same in memory.
    pub shared: Arc<Resources>,
    /// What is this proxy's only; it counts where both have a name.
    pub own: Arc<Resources>,
}

impl Offer {
    /// What everybody is told.
    pub fn shared(shared: Arc<Resources>) -> Offer {
        Offer { shared, own: Arc::default() }
    }

    /// The resource of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.own.get(name).or_else(|| self.shared.get(name))
    }

    /// Every resource, with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Resource>)> {
        self.shared.iter().filter(|(name, _)| !self.own.contains_key(*name)).chain(&*self.own)
    }

    /// Whether nothing has changed since another one. It may be told as changed where it is not.
    pub fn is_same(&self, other: &Offer) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared) && differences(&self.own, &other.own).next().is_none()
    }

    /// Names of which this one says something else than another one, in no order, some of them twice. It may name more.
    pub fn differences<'o>(&'o self, other: &'o Offer) -> impl Iterator<Item = &'o Arc<str>> {
        differences(&self.shared, &other.shared).chain(differences(&self.own, &other.own))
    }
}

/// Names that only one of them has, or that both have in different versions, in order.
fn differences<'r>(one: &'r Arc<Resources>, other: &'r Arc<Resources>) -> impl Iterator<Item = &'r Arc<str>> {
    let same = Arc::ptr_eq(one, other);
    let mut one = one.iter().filter(move |_| !same).peekable();
    let mut other = other.iter().filter(move |_| !same).peekable();
    std::iter::from_fn(move || {
        loop {
            let order = match (one.peek(), other.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => by_name(a, b),
            };
            let left = if order.is_le() { one.next() } else { None };
            let right = if order.is_ge() { other.next() } else { None };
            match (left, right) {
                (Some((_, a)), Some((_, b))) if Arc::ptr_eq(a, b) || a.version == b.version => {}
                (left, right) => return left.or(right).map(|(name, _)| name),
            }
        }
    })
}

/// Order of names, quick for one that is the same in memory.
pub(crate) fn by_name(one: &Arc<str>, other: &Arc<str>) -> Ordering {
    if Arc::ptr_eq(one, other) { Ordering::Equal } else { one.cmp(other) }
}

/// Whom a stream is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Proxy {
    /// A workload.
    Workload {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// The node that opened it.
    Node,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proxy::Workload { namespace, name } => write!(f, "{namespace}/{name}"),
            Proxy::Node => f.write_str("the node"),
        }
    }
}

/// Finds what a proxy is to have of a kind.
pub type Lookup = Box<dyn Fn(&Proxy, Kind) -> Offer + Send + Sync>;

/// The configuration in force, from one reading of the objects: immutable, replaced as a whole.
pub struct Published {
    /// Which workloads each node runs.
    pub directory: Arc<Directory>,
    /// What a proxy is to have of a kind.
    pub resources: Lookup,
}
