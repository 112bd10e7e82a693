//! Headers with a meaning of their own. In: a name, in any case. Out: which one it is. No I/O.

/// A header that this crate or its user asks for by meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Known {
    Connection,
    ContentLength,
    ContentType,
    Date,
    Expect,
    GrpcStatus,
    Host,
    Http2Settings,
    KeepAlive,
    ProxyConnection,
    Server,
    Te,
    TransferEncoding,
    Upgrade,
    UserAgent,
    XForwardedClientCert,
    XForwardedFor,
    XForwardedProto,
    XRequestId,
    /// Any other.
    Other,
}

/// Headers with a meaning that a head may have: those that have ever been in it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen(u32);

impl Seen {
    /// [`Known::is_hop_by_hop`].
    pub(crate) const HOP_BY_HOP: Self = Self(
        Known::Connection.bit()
            | Known::Http2Settings.bit()
            | Known::KeepAlive.bit()
            | Known::ProxyConnection.bit()
            | Known::Te.bit()
            | Known::TransferEncoding.bit()
            | Known::Upgrade.bit(),
    );

    pub(crate) fn add(&mut self, known: Known) {
        self.0 |= known.bit();
    }

    pub(crate) fn has(self, known: Known) -> bool {
        self.0 & known.bit() != 0
    }

    pub(crate) fn has_any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

impl Known {
    const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Which one a name is.
    pub fn of(name: &[u8]) -> Self {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        match name.len() {
            2 if is("te") => Self::Te,
            4 if is("host") => Self::Host,
            4 if is("date") => Self::Date,
            6 if is("server") => Self::Server,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            10 if is("connection") => Self::Connection,
            10 if is("user-agent") => Self::UserAgent,
            10 if is("keep-alive") => Self::KeepAlive,
            11 if is("grpc-status") => Self::GrpcStatus,
            12 if is("content-type") => Self::ContentType,
            12 if is("x-request-id") => Self::XRequestId,
            14 if is("content-length") => Self::ContentLength,
            14 if is("http2-settings") => Self::Http2Settings,
            15 if is("x-forwarded-for") => Self::XForwardedFor,
            16 if is("proxy-connection") => Self::ProxyConnection,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("x-forwarded-proto") => Self::XForwardedProto,
            23 if is("x-forwarded-client-cert") => Self::XForwardedClientCert,
            _ => Self::Other,
        }
    }

    /// Its name, lower case; empty for [`Known::Other`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::ContentLength => "content-length",
            Self::ContentType => "content-type",
            Self::Date => "date",
            Self::Expect => "expect",
            Self::GrpcStatus => "grpc-status",
            Self::Host => "host",
            Self::Http2Settings => "http2-settings",
            Self::KeepAlive => "keep-alive",
            Self::ProxyConnection => "proxy-connection",
            Self::Server => "server",
            Self::Te => "te",
            Self::TransferEncoding => "transfer-encoding",
            Self::Upgrade => "upgrade",
            Self::UserAgent => "user-agent",
            Self::XForwardedClientCert => "x-forwarded-client-cert",
            Self::XForwardedFor => "x-forwarded-for",
            Self::XForwardedProto => "x-forwarded-proto",
            Self::XRequestId => "x-request-id",
            Self::Other => "",
        }
    }

    /// Whether it is for the next hop only (RFC 9110, 7.6.1).
    pub fn is_hop_by_hop(self) -> bool {
        Seen::HOP_BY_HOP.has(self)
    }
}

/// Beginnings of names that the mesh sets or relies on.
const PROTECTED_FAMILIES: [&str; 4] = ["x-forwarded-", "x-envoy-", "x-istio-", "x-b3-"];

/// Other names that the mesh, or the server behind it, relies on.
const PROTECTED: [&str; 16] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "content-range",
    "transfer-encoding",
    "x-request-id",
    "authorization",
    "cookie",
    "forwarded",
    "via",
    "server",
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
];

/// Whether a header stays although `Connection` names it, and may not come as a trailer: otherwise a client could take away
/// what the mesh has said of it, or what decides where a message ends.
pub fn is_protected(name: &[u8]) -> bool {
    let begins =
        |family: &&str| name.get(..family.len()).is_some_and(|start| start.eq_ignore_ascii_case(family.as_bytes()));
    PROTECTED.iter().any(|other| name.eq_ignore_ascii_case(other.as_bytes())) || PROTECTED_FAMILIES.iter().any(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_their_own_meaning() {
        for known in [
            Known::Connection,
            Known::ContentLength,
            Known::ContentType,
            Known::Date,
            Known::Expect,
            Known::GrpcStatus,
            Known::Host,
            Known::Http2Settings,
            Known::KeepAlive,
            Known::ProxyConnection,
            Known::Server,
            Known::Te,
            Known::TransferEncoding,
            Known::Upgrade,
            Known::UserAgent,
            Known::XForwardedClientCert,
            Known::XForwardedFor,
            Known::XForwardedProto,
            Known::XRequestId,
            Known::Other,
        ] {
            assert_eq!(Known::of(known.name().as_bytes()), known);
        }
    }
}
