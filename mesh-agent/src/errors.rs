//! Envoy's response flags: the short codes by which metrics and access logs say why a request or connection ended as
//! it did. In: a module's error. Out: the flag and, for HTTP, the status that a client sees. No I/O.

use std::fmt;

/// A set of response flags. Empty prints as `-`, several are joined by commas, in Envoy's order.
///
/// Names and meaning: Envoy's access log documentation (`%RESPONSE_FLAGS%`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $status:expr;)*) => {
        impl Flags {
            $($(#[$doc])* pub const $name: Flags = Flags(1 << $bit);)*
            const NAMES: &'static [(Flags, &'static str, Option<u16>)] =
                &[$((Flags::$name, stringify!($name), $status),)*];
        }
    };
}

flags! {
    /// No healthy upstream endpoint in the cluster.
    UH = 0, Some(503);
    /// Upstream connection failed (refused, timed out, TLS or tunnel refused).
    UF = 1, Some(503);
    /// Upstream overflow: a circuit breaker is open.
    UO = 2, Some(503);
    /// No route, or no filter chain matched.
    NR = 3, Some(404);
    /// Retry limit or maximum connect attempts reached.
    URX = 4, Some(503);
    /// The route names a cluster that does not exist.
    NC = 5, Some(503);
    /// Request or connection exceeded its maximum duration.
    DT = 6, Some(504);
    /// Downstream connection terminated.
    DC = 7, None;
    /// Upstream request timeout.
    UT = 8, Some(504);
    /// Connection reset by this side.
    LR = 9, Some(503);
    /// Upstream reset the connection or stream.
    UR = 10, Some(503);
    /// Upstream connection terminated before the response was complete.
    UC = 11, Some(503);
    /// Stream idle timeout.
    SI = 12, Some(504);
    /// Downstream protocol error.
    DPE = 13, Some(400);
    /// Upstream protocol error.
    UPE = 14, Some(502);
    /// Rejected because the agent is overloaded.
    OM = 15, Some(503);
    /// Denied by external authorization.
    UAEX = 16, Some(403);
    /// Rate limited.
    RL = 17, Some(429);
    /// A fault was injected: abort.
    FI = 18, None;
    /// A fault was injected: delay.
    DI = 19, None;
    /// Name resolution of the upstream failed.
    DF = 20, Some(503);
    /// Downstream reset the stream.
    DR = 21, None;
    /// Denied by an AuthorizationPolicy; ztunnel's name for it, since Envoy has none.
    DENY = 22, Some(403);
}

impl Flags {
    /// No flag: the request or connection ended as intended.
    pub const NONE: Flags = Flags(0);

    /// Whether no flag is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every flag of `other` is set.
    pub fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The HTTP status that Envoy answers for the first of these flags that has one.
    pub fn status(self) -> Option<u16> {
        self.names().find_map(|&(_, _, status)| status)
    }

    fn names(self) -> impl Iterator<Item = &'static (Flags, &'static str, Option<u16>)> {
        Self::NAMES.iter().filter(move |(flag, _, _)| self.contains(*flag))
    }
}

impl std::ops::BitOr for Flags {
    type Output = Flags;
    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Flags) {
        self.0 |= other.0;
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (i, (_, name, _)) in self.names().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn print_as_envoy_does() {
        assert_eq!(Flags::NONE.to_string(), "-");
        assert_eq!(Flags::UF.to_string(), "UF");
        assert_eq!((Flags::URX | Flags::UF).to_string(), "UF,URX");
    }

    #[test]
    fn map_to_one_status() {
        assert_eq!(Flags::NR.status(), Some(404));
        assert_eq!((Flags::DC | Flags::UT).status(), Some(504));
        assert_eq!(Flags::DC.status(), None);
        assert_eq!(Flags::NONE.status(), None);
    }
}
