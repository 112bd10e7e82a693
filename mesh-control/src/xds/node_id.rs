//! Node ids as Istio's proxies send them: `sidecar~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>`, or `ztunnel~…` for
//! a node as a whole.
//!
//! In: text from the network. Out: whom it claims to be, or why it says nothing of the kind.

use crate::resource::Proxy;

/// Longest node id in bytes: two names of 253 and what is around them.
const MAX: usize = 1024;

/// Reads a node id.
pub fn parse(id: &str) -> Result<Proxy, String> {
    let wanted = "want `sidecar~<ip>~<pod>.<namespace>~<domain>`, or `ztunnel~…` for the node";
    if id.len() > MAX {
        return Err(format!("the node id has {} bytes, more than {MAX}", id.len()));
    }
    let parts: Vec<&str> = id.split('~').collect();
    let [kind, _, workload, _] = parts.as_slice() else {
        return Err(format!("node id `{id}`: {wanted}"));
    };
    if *kind == "ztunnel" {
        return Ok(Proxy::Node);
    }
    if *kind != "sidecar" {
        return Err(format!("node id `{id}`: type `{kind}` is not served; {wanted}"));
    }
    // A pod's name may hold dots, a namespace's may not.
    match workload.rsplit_once('.') {
        Some((name, namespace)) if !name.is_empty() && !namespace.is_empty() => {
            Ok(Proxy::Workload { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(format!("node id `{id}`: `{workload}` is no `<pod>.<namespace>`; {wanted}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_namespace_stands_after_the_last_dot() {
        let proxy = parse("sidecar~10.0.0.1~web.v1.shop~shop.svc.cluster.local").unwrap();
        assert_eq!(proxy, Proxy::Workload { namespace: "shop".into(), name: "web.v1".into() });
    }

    #[test]
    fn a_node_speaks_for_itself() {
        assert_eq!(parse("ztunnel~10.0.0.1~ztunnel-x.istio-system~istio-system.svc.cluster.local"), Ok(Proxy::Node));
        assert!(parse("ztunnel").is_err());
    }

    #[test]
    fn anything_else_is_refused_with_the_wanted_form() {
        for id in ["", "sidecar", "router~1.2.3.4~a.b~c", "sidecar~1~a~c", "sidecar~1~.b~c", "sidecar~1~a.~c"] {
            assert!(parse(id).unwrap_err().contains("sidecar~<ip>"), "{id}");
        }
        assert!(parse(&"x".repeat(2000)).unwrap_err().contains("1024"));
    }
}
