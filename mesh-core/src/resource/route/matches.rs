//! Conditions of a route: path, headers, query parameters.
//!
//! In: `RouteMatch`; then heads of requests. Out: a [`RouteMatch`] of our own; then yes or no. All
//! conditions must hold. Conditions on metadata or TLS of the client are refused.

use envoy_types::pb::envoy::config::route::v3 as pb;

use crate::resource::StringMatch;
use crate::resource::fault::{At, Fault, each};
use crate::resource::route::{HeaderMatch, PathMatch, QueryMatch, RequestHead, RouteMatch, ValueMatch};
use crate::resource::text::{Text, full_regex};
use crate::resource::wire::refuse;

const MILLION: u64 = 1_000_000;

impl RouteMatch {
    /// Whether a request takes the route.
    pub fn matches(&self, request: &RequestHead<'_>) -> bool {
        self.path.matches(request, self.case_sensitive)
            && self.headers.iter().all(|header| header.matches(request))
            && self.query.iter().all(|query| query.matches(request))
            && (!self.grpc || is_grpc(request))
    }

    pub(crate) fn parse(message: &pb::RouteMatch) -> Result<Self, Fault> {
        refuse!(message; cookies, tls_context, dynamic_metadata, filter_state);
        if let Some(fraction) = &message.runtime_fraction {
            let percent = fraction.default_value.as_ref();
            if percent.map(per_million) != Some(MILLION) {
                return Err(Fault::field("runtime_fraction", "only 100 % is supported"));
            }
        }
        Ok(RouteMatch {
            path: PathMatch::parse(message.path_specifier.as_ref())?,
            case_sensitive: message.case_sensitive.as_ref().is_none_or(|v| v.value),
            headers: each("headers", &message.headers, HeaderMatch::parse)?,
            query: each("query_parameters", &message.query_parameters, QueryMatch::parse)?,
            grpc: message.grpc.is_some(),
        })
    }
}

/// A fractional percentage as parts per million, at most a million.
fn per_million(percent: &envoy_types::pb::envoy::r#type::v3::FractionalPercent) -> u64 {
    use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
    let unit = match percent.denominator() {
        DenominatorType::Hundred => 10_000,
        DenominatorType::TenThousand => 100,
        DenominatorType::Million => 1,
    };
    (u64::from(percent.numerator) * unit).min(MILLION)
}

impl PathMatch {
    fn parse(message: Option<&pb::route_match::PathSpecifier>) -> Result<Self, Fault> {
        use pb::route_match::PathSpecifier as Path;
        match message {
            Some(Path::Prefix(prefix)) => Ok(Self::Prefix(prefix.as_str().into())),
            Some(Path::Path(path)) => Ok(Self::Exact(path.as_str().into())),
            Some(Path::PathSeparatedPrefix(prefix)) => {
                if !prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                    return Err(Fault::field(
                        "path_separated_prefix",
                        "must start with a slash, not end with one, and have no query",
                    ));
                }
                Ok(Self::SeparatedPrefix(prefix.as_str().into()))
            }
            Some(Path::SafeRegex(regex)) => full_regex(regex).map(Self::Regex).at("safe_regex"),
            Some(Path::ConnectMatcher(_)) => Ok(Self::Connect),
            Some(Path::PathMatchPolicy(_)) => Err(Fault::field("path_match_policy", "not supported")),
            None => Err(Fault::new("a match needs a path specifier")),
        }
    }

    fn matches(&self, request: &RequestHead<'_>, case_sensitive: bool) -> bool {
        let path = request.path_only();
        match self {
            Self::Connect => request.method == "CONNECT",
            // A CONNECT request has no path that could match.
            _ if request.path.is_empty() => false,
            Self::Exact(want) => equal(path, want, case_sensitive),
            Self::Prefix(want) => starts_with(path, want, case_sensitive),
            Self::SeparatedPrefix(want) => {
                starts_with(path, want, case_sensitive) && matches!(path.as_bytes().get(want.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

fn equal(path: &str, want: &str, case_sensitive: bool) -> bool {
    if case_sensitive { path == want } else { path.eq_ignore_ascii_case(want) }
}

fn starts_with(path: &str, want: &str, case_sensitive: bool) -> bool {
    path.as_bytes().get(..want.len()).is_some_and(|head| {
        if case_sensitive { head == want.as_bytes() } else { head.eq_ignore_ascii_case(want.as_bytes()) }
    })
}

impl HeaderMatch {
    fn parse(message: &pb::HeaderMatcher) -> Result<Self, Fault> {
        use pb::header_matcher::HeaderMatchSpecifier as By;
        if message.name.is_empty() {
            return Err(Fault::field("name", "missing"));
        }
        let literal = |value: &String| Text::new(value, false);
        let value = match &message.header_match_specifier {
            None => ValueMatch::Present(true),
            Some(By::PresentMatch(present)) => ValueMatch::Present(*present),
            Some(By::ExactMatch(v)) => ValueMatch::Text(StringMatch::Exact(literal(v))),
            Some(By::PrefixMatch(v)) => ValueMatch::Text(StringMatch::Prefix(literal(v))),
            Some(By::SuffixMatch(v)) => ValueMatch::Text(StringMatch::Suffix(literal(v))),
            Some(By::ContainsMatch(v)) => ValueMatch::Text(StringMatch::Contains(literal(v))),
            Some(By::SafeRegexMatch(regex)) => {
                ValueMatch::Text(StringMatch::Regex(full_regex(regex).at("safe_regex_match")?))
            }
            Some(By::StringMatch(matcher)) => ValueMatch::Text(StringMatch::parse(matcher).at("string_match")?),
            Some(By::RangeMatch(range)) => ValueMatch::Range { start: range.start, end: range.end },
        };
        Ok(HeaderMatch {
            name: message.name.to_ascii_lowercase().into(),
            value,
            invert: message.invert_match,
            missing_as_empty: message.treat_missing_header_as_empty,
        })
    }

    /// Envoy's rule: an absent header satisfies only a presence condition, inverted or not, unless
    /// it counts as empty.
    fn matches(&self, request: &RequestHead<'_>) -> bool {
        request.with_header(&self.name, |value| {
            let value = match value {
                None if self.missing_as_empty => Some(&b""[..]),
                value => value,
            };
            match (&self.value, value) {
                (ValueMatch::Present(want), value) => (value.is_some() == *want) != self.invert,
                (_, None) => false,
                (condition, Some(value)) => condition.holds(value) != self.invert,
            }
        })
    }
}

impl QueryMatch {
    fn parse(message: &pb::QueryParameterMatcher) -> Result<Self, Fault> {
        use pb::query_parameter_matcher::QueryParameterMatchSpecifier as By;
        if message.name.is_empty() {
            return Err(Fault::field("name", "missing"));
        }
        let value = match &message.query_parameter_match_specifier {
            None => ValueMatch::Present(true),
            Some(By::PresentMatch(present)) => ValueMatch::Present(*present),
            Some(By::StringMatch(matcher)) => ValueMatch::Text(StringMatch::parse(matcher).at("string_match")?),
        };
        Ok(QueryMatch { name: message.name.as_str().into(), value })
    }

    fn matches(&self, request: &RequestHead<'_>) -> bool {
        match (&self.value, request.query_parameter(&self.name)) {
            (ValueMatch::Present(want), value) => value.is_some() == *want,
            (_, None) => false,
            (condition, Some(value)) => condition.holds(value.as_bytes()),
        }
    }
}

impl ValueMatch {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(want) => *want,
            Self::Text(text) => text.matches(value),
            Self::Range { start, end } => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
        }
    }
}

/// gRPC by its content type, as Envoy tells it.
fn is_grpc(request: &RequestHead<'_>) -> bool {
    request.with_header("content-type", |value| {
        value
            .and_then(|value| value.strip_prefix(b"application/grpc"))
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
    })
}
