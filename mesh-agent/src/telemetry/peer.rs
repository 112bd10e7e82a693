//! One side of a connection as metrics name it, and its form as W3C `baggage`, by which agents tell each other who
//! they speak for. In: a header or a workload. Out: labels. The principal never comes from baggage: only a verified
//! certificate sets it.

use std::cell::RefCell;
use std::sync::Arc;

/// Longest baggage value accepted, in bytes; a longer one is ignored (it would become a metric label).
const MAX_VALUE: usize = 256;

/// A workload as source or destination of traffic. An empty field is shown as `unknown`
/// (`canonical_revision`: `latest`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Workload name: the Deployment's or the like, else the pod's.
    pub workload: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// SPIFFE identity from the verified certificate, `spiffe://…`.
    pub principal: Arc<str>,
    /// Label `app`.
    pub app: Arc<str>,
    /// Label `version`.
    pub version: Arc<str>,
    /// Istio's canonical service name.
    pub canonical_service: Arc<str>,
    /// Istio's canonical revision.
    pub canonical_revision: Arc<str>,
    /// Cluster id.
    pub cluster: Arc<str>,
}

impl Default for Peer {
    fn default() -> Peer {
        let empty: Arc<str> = Arc::from("");
        Peer {
            workload: empty.clone(),
            namespace: empty.clone(),
            principal: empty.clone(),
            app: empty.clone(),
            version: empty.clone(),
            canonical_service: empty.clone(),
            canonical_revision: empty.clone(),
            cluster: empty,
        }
    }
}

impl Peer {
    /// A peer of which nothing is known.
    pub fn unknown() -> Peer {
        Peer::default()
    }

    /// The same peer with the identity of its verified certificate.
    pub fn with_principal(mut self, principal: impl Into<Arc<str>>) -> Peer {
        self.principal = principal.into();
        self
    }

    /// As a `baggage` header (W3C Baggage; the keys are those of Istio's proxies). Empty fields are left out.
    pub fn to_baggage(&self) -> String {
        let mut out = String::with_capacity(192);
        for (key, value) in [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            ("k8s.deployment.name", &self.workload),
            ("service.name", &self.canonical_service),
            ("service.version", &self.canonical_revision),
            ("app.name", &self.app),
            ("app.version", &self.version),
        ] {
            if !value.is_empty() {
                if !out.is_empty() {
                    out.push(',');
                }
                out.push_str(key);
                out.push('=');
                percent_encode(value, &mut out);
            }
        }
        out
    }

    /// Reads a `baggage` header. Unknown keys, properties, and malformed or oversized members are ignored: baggage
    /// only names, it proves nothing.
    pub fn from_baggage(header: &str) -> Peer {
        let mut peer = Peer::default();
        for member in header.split(',') {
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = member.split_once('=') else { continue };
            let field = match key.trim() {
                "k8s.cluster.name" => &mut peer.cluster,
                "k8s.namespace.name" => &mut peer.namespace,
                "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.job.name" | "k8s.pod.name" => &mut peer.workload,
                "service.name" => &mut peer.canonical_service,
                "service.version" => &mut peer.canonical_revision,
                "app.name" => &mut peer.app,
                "app.version" => &mut peer.version,
                _ => continue,
            };
            if let Some(value) = percent_decode(value.trim()) {
                *field = value.into();
            }
        }
        peer
    }
}

/// What the other end of a tunnel has said last of a peer. It says the same for each connection, and all of them share it.
#[derive(Debug, Default)]
pub struct LastSaid(RefCell<Option<(Box<str>, Arc<Peer>)>>);

impl LastSaid {
    /// The peer that a `baggage` header names, by `make` if that is not the last one.
    pub fn peer(&self, header: &str, make: impl FnOnce(&str) -> Peer) -> Arc<Peer> {
        let mut last = self.0.borrow_mut();
        match &*last {
            Some((said, peer)) if **said == *header => peer.clone(),
            _ => last.insert((header.into(), Arc::new(make(header)))).1.clone(),
        }
    }
}

/// Keeps W3C baggage octets, encodes the rest and `%`.
fn percent_encode(value: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in value.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%' | b'=') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

fn percent_decode(value: &str) -> Option<String> {
    if value.len() > MAX_VALUE {
        return None;
    }
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A peer with all its names.
    pub fn reviews() -> Peer {
        Peer {
            workload: "reviews-v1".into(),
            namespace: "shop".into(),
            principal: "".into(),
            app: "reviews".into(),
            version: "v1, β".into(),
            canonical_service: "reviews".into(),
            canonical_revision: "v1".into(),
            cluster: "Kubernetes".into(),
        }
    }

    #[test]
    fn who_says_the_same_again_is_the_same_peer_and_nobody_else_is() {
        let said = LastSaid::default();
        let told = |header: &str| said.peer(header, Peer::from_baggage);
        let first = told("app.name=a");
        assert!(Arc::ptr_eq(&first, &told("app.name=a")));
        assert_eq!((&*told("app.name=b").app, &*told("").app, &*told("app.name=a").app), ("b", "", "a"));
    }

    #[test]
    fn baggage_round_trip() {
        let header = reviews().to_baggage();
        assert_eq!(
            header,
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=reviews-v1,\
             service.name=reviews,service.version=v1,app.name=reviews,app.version=v1%2C%20%CE%B2"
        );
        assert_eq!(Peer::from_baggage(&header), reviews());
    }

    #[test]
    fn baggage_ignores_what_it_does_not_know() {
        let peer =
            Peer::from_baggage("k8s.namespace.name = shop ;p=1, x=y,,=,service.name=%zz,app.name=%C3,app.version=%4");
        assert_eq!(peer, Peer { namespace: "shop".into(), ..Peer::default() });
        let long = format!("service.name={}", "a".repeat(MAX_VALUE + 1));
        assert_eq!(Peer::from_baggage(&long), Peer::default());
    }

    #[test]
    fn principal_never_travels() {
        let peer = reviews().with_principal("spiffe://cluster.local/ns/shop/sa/reviews");
        assert!(!peer.to_baggage().contains("spiffe"));
    }
}
