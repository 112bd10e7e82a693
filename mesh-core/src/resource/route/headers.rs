//! Changes to headers (`request_headers_to_add`, `…_to_remove` and their response twins).
//!
//! In: the lists of one level. Out: [`HeaderOps`], which a codec applies in order. Values with
//! Envoy's command operators (`%…%`) are refused rather than sent as they stand.

use envoy_types::pb::envoy::config::core::v3 as core;
use http::{HeaderName, HeaderValue};

use crate::resource::fault::{At, Fault};
use crate::resource::wire::refuse;

/// Ordered changes to headers; at each level removals come before additions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderOps {
    ops: Vec<HeaderOp>,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderOp {
    /// One more value.
    Append(HeaderName, HeaderValue),
    /// Only when absent.
    AddIfAbsent(HeaderName, HeaderValue),
    /// In place of all values.
    Set(HeaderName, HeaderValue),
    /// In place of all values, only when present.
    SetIfPresent(HeaderName, HeaderValue),
    /// Gone.
    Remove(HeaderName),
}

impl HeaderOps {
    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The changes in order.
    pub fn iter(&self) -> impl Iterator<Item = &HeaderOp> {
        self.ops.iter()
    }

    /// Reads one level: `field` is `request_headers` or `response_headers`.
    pub(crate) fn parse(field: &str, add: &[core::HeaderValueOption], remove: &[String]) -> Result<Self, Fault> {
        let mut ops = Vec::with_capacity(add.len() + remove.len());
        for (i, name) in remove.iter().enumerate() {
            let name = header_name(name).at_index(&format!("{field}_to_remove"), i)?;
            ops.push(HeaderOp::Remove(name));
        }
        for (i, option) in add.iter().enumerate() {
            let op = parse_add(option).at_index(&format!("{field}_to_add"), i)?;
            ops.extend(op);
        }
        Ok(HeaderOps { ops })
    }

    /// One level after another.
    pub(crate) fn concat<'a>(levels: impl IntoIterator<Item = &'a HeaderOps>) -> Self {
        levels.into_iter().flat_map(HeaderOps::iter).cloned().collect()
    }
}

impl FromIterator<HeaderOp> for HeaderOps {
    fn from_iter<I: IntoIterator<Item = HeaderOp>>(ops: I) -> Self {
        HeaderOps { ops: ops.into_iter().collect() }
    }
}

/// A header that may be changed: pseudo headers and `host` are not, they have their own rewrites.
fn header_name(name: &str) -> Result<HeaderName, Fault> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(Fault::new(format!("{name:?} cannot be changed as a header")));
    }
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| Fault::new(format!("{name:?} is not a header name")))
}

fn parse_add(option: &core::HeaderValueOption) -> Result<Option<HeaderOp>, Fault> {
    use core::header_value_option::HeaderAppendAction as Append;
    let header = option.header.as_ref().ok_or_else(|| Fault::field("header", "missing"))?;
    refuse!(header; raw_value);
    let name = header_name(&header.key).at("header.key")?;
    let value = header_value(&header.value).at("header.value")?;
    // Envoy adds no empty header unless told to.
    if value.is_empty() && !option.keep_empty_value {
        return Ok(None);
    }
    let action = match &option.append {
        Some(append) if append.value => Append::AppendIfExistsOrAdd,
        Some(_) => Append::OverwriteIfExistsOrAdd,
        None => Append::try_from(option.append_action).map_err(|_| Fault::field("append_action", "unknown value"))?,
    };
    Ok(Some(match action {
        Append::AppendIfExistsOrAdd => HeaderOp::Append(name, value),
        Append::AddIfAbsent => HeaderOp::AddIfAbsent(name, value),
        Append::OverwriteIfExistsOrAdd => HeaderOp::Set(name, value),
        Append::OverwriteIfExists => HeaderOp::SetIfPresent(name, value),
    }))
}

/// A literal value: `%%` stands for a percent sign, any other `%` starts a command operator.
pub(crate) fn header_value(text: &str) -> Result<HeaderValue, Fault> {
    let literal = text.replace("%%", "\0");
    if literal.contains('%') {
        return Err(Fault::new(format!("command operators are not supported: {text:?} (write %% for a percent sign)")));
    }
    HeaderValue::from_str(&literal.replace('\0', "%"))
        .map_err(|_| Fault::new(format!("{text:?} is not a header value")))
}
