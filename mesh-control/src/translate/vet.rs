//! Tries an object on its own: would mesh-core take what is made of it?
//!
//! In: an object that passed its own checks. Out: nothing, or the field and mesh-core's reason. So a VirtualService that only
//! the agents would refuse never gets into the route table that it shares with others.

use envoy_types::pb::envoy::config::cluster::v3 as cds;
use prost::Message;

use super::action::{self, Place, Targets};
use super::checked::parse;
use super::route::{table, virtual_host};
use super::{Client, authorization, cluster, policy};
use crate::config::authorization_policy::AuthorizationPolicy;
use crate::config::destination_rule::{ConsistentHash, DestinationRule};
use crate::config::virtual_service::{Destination, HttpRoute, VirtualService};
use crate::config::{Body, Labels, Object};
use crate::model::protocol::Protocol;
use crate::resource::Kind;
use crate::yaml::FieldPath;

/// Tries an object; the error is a field and a reason.
pub fn vet(object: &Object) -> Result<(), (FieldPath, String)> {
    match &object.body {
        Body::VirtualService(spec) => virtual_service(object, spec),
        Body::DestinationRule(spec) => destination_rule(spec),
        Body::AuthorizationPolicy(spec) => authorization_policy(object, spec),
        _ => Ok(()),
    }
}

/// Destinations as they stand, whether they exist or not.
struct AsWritten;

impl Targets for AsWritten {
    fn cluster(&self, destination: &Destination) -> String {
        let port = destination.port.map_or(80, |port| port.number.0);
        cluster::name(port, &destination.subset, &destination.host)
    }

    fn hash(&self, _: &Destination) -> Option<ConsistentHash> {
        None
    }
}

fn virtual_service(object: &Object, spec: &VirtualService) -> Result<(), (FieldPath, String)> {
    let labels = Labels::new();
    let client = Client { namespace: &object.key.namespace, labels: &labels };
    let place = Place { client: &client, listener_port: 80, host: "vetted", origin: &object.key };
    for (index, http) in spec.http.iter().enumerate() {
        let routes = action::routes(&alone(http), &place, &AsWritten);
        let name = "80".to_owned();
        let table = table(name.clone(), vec![virtual_host("vetted:80".to_owned(), vec!["*".to_owned()], routes)]);
        parse(Kind::Route, &name, &table.encode_to_vec()).map_err(|rejection| {
            let path = FieldPath::of("spec.http").index(index);
            (path, format!("the agents would refuse it: {}: {}", rejection.path, rejection.why))
        })?;
    }
    Ok(())
}

/// One route with conditions on clients taken away, so that every part of it is tried.
fn alone(http: &HttpRoute) -> VirtualService {
    let mut http = http.clone();
    for one in &mut http.matches {
        (one.port, one.source_labels, one.source_namespace) = (None, Labels::new(), String::new());
        one.gateways.clear();
    }
    VirtualService { http: vec![http], ..Default::default() }
}

fn authorization_policy(object: &Object, spec: &AuthorizationPolicy) -> Result<(), (FieldPath, String)> {
    let message = authorization::policy(object, spec, "");
    parse(Kind::Authorization, &authorization::key(&message), &message.encode_to_vec()).map_err(|rejection| {
        (FieldPath::of("spec.rules"), format!("the agents would refuse it: {}: {}", rejection.path, rejection.why))
    })
}

fn destination_rule(spec: &DestinationRule) -> Result<(), (FieldPath, String)> {
    let whole = (&spec.traffic_policy, FieldPath::of("spec.trafficPolicy"));
    let subsets = spec.subsets.iter().enumerate().map(|(index, subset)| {
        (&subset.traffic_policy, FieldPath::of("spec.subsets").index(index).key("trafficPolicy"))
    });
    for (traffic_policy, path) in std::iter::once(whole).chain(subsets) {
        let ports = traffic_policy.port_level_settings.iter().map(|port| port.port.number.0);
        for policy in std::iter::once(0).chain(ports).map(|port| traffic_policy.of_port(port)) {
            let mut message = cds::Cluster { name: "vetted".to_owned(), ..Default::default() };
            policy::apply(&policy, Protocol::Http, &mut message);
            // A hash is asked for by the routes to the service.
            let hash = policy.load_balancer.as_ref().and_then(|balancer| balancer.consistent_hash.as_ref());
            let route = action::default_route("vetted".to_owned(), "vetted".to_owned(), hash);
            let table =
                table("vetted".to_owned(), vec![virtual_host("vetted".to_owned(), vec!["*".to_owned()], vec![route])]);
            parse(Kind::Cluster, "vetted", &message.encode_to_vec())
                .and_then(|()| parse(Kind::Route, "vetted", &table.encode_to_vec()))
                .map_err(|rejection| {
                    (path.clone(), format!("the agents would refuse it: {}: {}", rejection.path, rejection.why))
                })?;
        }
    }
    Ok(())
}
