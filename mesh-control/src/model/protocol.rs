//! The protocol of a port, as Istio tells it: `appProtocol`, else the port's name, else well-known numbers, else detected.
//!
//! In: the declarations. Out: a [`Protocol`].

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// gRPC-Web over HTTP/1.1.
    GrpcWeb,
    /// TLS with HTTP inside.
    Https,
    /// TLS.
    Tls,
    /// Bytes.
    Tcp,
    /// Not declared: detected by the first bytes.
    Auto,
}

impl Protocol {
    /// Whether requests are routed one by one.
    pub fn is_http(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }

    /// Whether the server wants HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc)
    }

    /// Whether the client begins with a TLS hello that names the host.
    pub fn is_tls(self) -> bool {
        matches!(self, Protocol::Https | Protocol::Tls)
    }

    /// Protocol of a port; an `appProtocol` that is not known counts as absent.
    pub fn of_port(app_protocol: Option<&str>, name: &str, number: u16) -> Protocol {
        app_protocol.and_then(named).or_else(|| prefixed(name)).unwrap_or(match number {
            // The server speaks first there; waiting for the client would only delay it.
            25 | 53 | 3306 | 27017 => Protocol::Tcp,
            _ => Protocol::Auto,
        })
    }
}

/// A protocol by its name in `appProtocol` or a ServiceEntry.
pub fn named(name: &str) -> Option<Protocol> {
    Some(match name.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => Protocol::Http,
        "http2" | "kubernetes.io/h2c" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "grpc-web" => Protocol::GrpcWeb,
        "https" | "kubernetes.io/wss" => Protocol::Https,
        "tls" => Protocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => Protocol::Tcp,
        _ => return None,
    })
}

fn prefixed(name: &str) -> Option<Protocol> {
    let lower = name.to_ascii_lowercase();
    if lower == "grpc-web" || lower.starts_with("grpc-web-") {
        return Some(Protocol::GrpcWeb);
    }
    named(lower.split('-').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_in_their_order() {
        for (app, name, number, expected) in [
            (None, "http", 9080, Protocol::Http),
            (None, "http-web", 9080, Protocol::Http),
            (None, "HTTP-Web", 9080, Protocol::Http),
            (None, "httpweb", 9080, Protocol::Auto),
            (None, "grpc-web", 1, Protocol::GrpcWeb),
            (None, "grpc-web-x", 1, Protocol::GrpcWeb),
            (None, "grpc-x", 1, Protocol::Grpc),
            (None, "redis", 6379, Protocol::Tcp),
            (None, "tcp-x", 80, Protocol::Tcp),
            (None, "", 3306, Protocol::Tcp),
            (None, "", 80, Protocol::Auto),
            (Some("http"), "tcp", 80, Protocol::Http),
            (Some("kubernetes.io/h2c"), "x", 80, Protocol::Http2),
            (Some("example.com/own"), "http", 80, Protocol::Http),
        ] {
            assert_eq!(Protocol::of_port(app, name, number), expected, "{app:?} {name} {number}");
        }
    }
}
