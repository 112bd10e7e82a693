//! Istio's AuthorizationPolicy.
//!
//! In: its `spec`. Out: [`AuthorizationPolicy`]. Checked here: what needs no other object, and what of it cannot be
//! enforced. Nothing is ever ignored that would make a policy let more in.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::fields::{Selector, check_labels};
use super::{Findings, Labels};
use crate::yaml::FieldPath;

/// Values of one condition.
pub type Values = Option<Vec<String>>;

/// `spec`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicy {
    /// Workloads it is for; absent or empty = all of the namespace (of the root namespace: of the mesh).
    pub selector: Option<Selector>,
    /// A gateway or service it is for, instead of a selector.
    pub target_ref: Option<TargetRef>,
    /// The same, several.
    pub target_refs: Vec<TargetRef>,
    /// What it does with what it matches.
    pub action: Action,
    /// Who decides, with `CUSTOM`.
    pub provider: Option<Provider>,
    /// One is enough; none matches nothing.
    pub rules: Vec<Rule>,
}

/// `targetRef`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

/// `provider`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Provider {
    /// Its name in the mesh's settings.
    pub name: String,
}

/// `action`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// It may come in.
    #[default]
    Allow,
    /// It may not.
    Deny,
    /// It is told.
    Audit,
    /// Somebody else decides.
    Custom,
}

/// One of `rules`: all three parts have to hold, an absent one holds always.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Clients; one is enough.
    pub from: Option<Vec<From>>,
    /// Operations; one is enough.
    pub to: Option<Vec<To>>,
    /// Conditions; all of them.
    pub when: Option<Vec<Condition>>,
}

/// One of `from`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct From {
    /// The client.
    pub source: Option<Source>,
}

/// One of `to`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct To {
    /// The operation.
    pub operation: Option<Operation>,
}

/// `source`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's own")]
pub struct Source {
    pub principals: Values,
    pub not_principals: Values,
    pub request_principals: Values,
    pub not_request_principals: Values,
    pub namespaces: Values,
    pub not_namespaces: Values,
    pub service_accounts: Values,
    pub not_service_accounts: Values,
    pub ip_blocks: Values,
    pub not_ip_blocks: Values,
    pub remote_ip_blocks: Values,
    pub not_remote_ip_blocks: Values,
    pub trust_domains: Values,
    pub not_trust_domains: Values,
}

/// `operation`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's own")]
pub struct Operation {
    pub hosts: Values,
    pub not_hosts: Values,
    pub ports: Values,
    pub not_ports: Values,
    pub methods: Values,
    pub not_methods: Values,
    pub paths: Values,
    pub not_paths: Values,
}

/// One of `when`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// An attribute.
    pub key: String,
    /// One is enough.
    pub values: Values,
    /// None of them.
    pub not_values: Values,
}

/// What a condition's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Text with `*` at one end.
    Text,
    /// `account` or `namespace/account`.
    Account,
    /// An address or a range.
    Range,
    /// A port.
    Port,
    /// An attribute of a request, which nothing enforces.
    Request,
}

type Field<'s> = (&'static str, Form, &'s Values);

impl Source {
    fn fields(&self) -> [Field<'_>; 14] {
        [
            ("principals", Form::Text, &self.principals),
            ("notPrincipals", Form::Text, &self.not_principals),
            ("requestPrincipals", Form::Request, &self.request_principals),
            ("notRequestPrincipals", Form::Request, &self.not_request_principals),
            ("namespaces", Form::Text, &self.namespaces),
            ("notNamespaces", Form::Text, &self.not_namespaces),
            ("serviceAccounts", Form::Account, &self.service_accounts),
            ("notServiceAccounts", Form::Account, &self.not_service_accounts),
            ("ipBlocks", Form::Range, &self.ip_blocks),
            ("notIpBlocks", Form::Range, &self.not_ip_blocks),
            ("remoteIpBlocks", Form::Request, &self.remote_ip_blocks),
            ("notRemoteIpBlocks", Form::Request, &self.not_remote_ip_blocks),
            ("trustDomains", Form::Request, &self.trust_domains),
            ("notTrustDomains", Form::Request, &self.not_trust_domains),
        ]
    }
}

impl Operation {
    fn fields(&self) -> [Field<'_>; 8] {
        [
            ("hosts", Form::Request, &self.hosts),
            ("notHosts", Form::Request, &self.not_hosts),
            ("ports", Form::Port, &self.ports),
            ("notPorts", Form::Port, &self.not_ports),
            ("methods", Form::Request, &self.methods),
            ("notMethods", Form::Request, &self.not_methods),
            ("paths", Form::Request, &self.paths),
            ("notPaths", Form::Request, &self.not_paths),
        ]
    }
}

impl Condition {
    /// What its values are; `None` for an attribute that does not exist.
    pub fn form(&self) -> Option<Form> {
        match self.key.as_str() {
            "source.ip" | "destination.ip" => Some(Form::Range),
            "source.namespace" | "source.principal" => Some(Form::Text),
            "source.serviceAccount" => Some(Form::Account),
            "destination.port" => Some(Form::Port),
            "remote.ip"
            | "source.trustDomain"
            | "connection.sni"
            | "request.auth.principal"
            | "request.auth.audiences"
            | "request.auth.presenter" => Some(Form::Request),
            key if ["request.headers[", "request.auth.claims["].iter().any(|start| key.starts_with(start)) => {
                key.ends_with(']').then_some(Form::Request)
            }
            key if key.starts_with("experimental.envoy.filters.") => Some(Form::Request),
            _ => None,
        }
    }
}

impl Rule {
    /// Whether a condition of it asks for attributes of requests.
    pub fn asks_for_requests(&self) -> bool {
        let sources = self.from.iter().flatten().filter_map(|from| from.source.as_ref());
        let operations = self.to.iter().flatten().filter_map(|to| to.operation.as_ref());
        let requests = |(_, form, values): Field<'_>| form == Form::Request && values.is_some();
        sources.flat_map(Source::fields).any(requests)
            || operations.flat_map(Operation::fields).any(requests)
            || self.when.iter().flatten().any(|condition| condition.form() == Some(Form::Request))
    }
}

impl AuthorizationPolicy {
    /// The labels it selects by; `None` when it is for the whole namespace or mesh.
    pub fn labels(&self) -> Option<&Labels> {
        self.selector.as_ref().map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty())
    }

    /// Whether the agents are told of it: they decide by connection, and only what may come in and what may not.
    pub fn is_enforced(&self) -> bool {
        let targeted = self.target_ref.is_some() || !self.target_refs.is_empty();
        !targeted && matches!(self.action, Action::Allow | Action::Deny)
    }

    pub(super) fn check(&self, findings: &mut Findings) {
        let spec = FieldPath::of("spec");
        check_labels(&spec.key("selector").key("matchLabels"), self.labels(), findings);
        let targets = [("targetRef", self.target_ref.is_some()), ("targetRefs", !self.target_refs.is_empty())];
        for (field, _) in targets.iter().filter(|(_, given)| *given) {
            if self.selector.is_some() {
                findings.error(spec.key(field), "stands beside a selector; a policy has either");
            }
            findings.warning(spec.key(field), "policies for gateways and services are not enforced yet");
        }
        match (self.action, &self.provider) {
            (Action::Custom, None) => findings.error(spec.key("provider"), "CUSTOM needs the name of a provider"),
            (Action::Custom, Some(_)) => {
                findings.warning(spec.key("action"), "CUSTOM is not enforced yet: nobody is asked, nothing is refused");
            }
            (Action::Audit, _) => findings.warning(spec.key("action"), "AUDIT has no effect yet"),
            (_, Some(_)) => findings.error(spec.key("provider"), "is only for action CUSTOM"),
            (_, None) => {}
        }
        if self.action == Action::Deny && self.rules.is_empty() {
            findings.warning(spec.key("rules"), "DENY without rules denies nothing");
        }
        for (index, rule) in self.rules.iter().enumerate() {
            let path = spec.key("rules").index(index);
            rule.check(&path, findings);
            if self.is_enforced() && rule.asks_for_requests() {
                let what = "asks for attributes of requests, which are not enforced yet";
                let so = match self.action {
                    Action::Deny => "the rule denies whatever its other conditions match",
                    _ => "the rule allows nothing",
                };
                findings.warning(path, format!("{what}: {so}"));
            }
        }
    }
}

impl Rule {
    fn check(&self, path: &FieldPath, findings: &mut Findings) {
        let parts = [
            ("from", self.from.as_ref().map(Vec::len)),
            ("to", self.to.as_ref().map(Vec::len)),
            ("when", self.when.as_ref().map(Vec::len)),
        ];
        for (part, _) in parts.iter().filter(|(_, length)| *length == Some(0)) {
            findings.error(path.key(part), "is empty: leave it out, or say what has to hold");
        }
        for (index, from) in self.from.iter().flatten().enumerate() {
            let path = path.key("from").index(index).key("source");
            match &from.source {
                None => findings.error(path, "is needed"),
                Some(source) => {
                    check_fields(&path, &source.fields(), findings);
                    let accounts = source.service_accounts.is_some() || source.not_service_accounts.is_some();
                    let others =
                        [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
                    if accounts && others.iter().any(|values| values.is_some()) {
                        findings.error(path.key("serviceAccounts"), "cannot stand beside principals or namespaces");
                    }
                }
            }
        }
        for (index, to) in self.to.iter().flatten().enumerate() {
            let path = path.key("to").index(index).key("operation");
            match &to.operation {
                None => findings.error(path, "is needed"),
                Some(operation) => check_fields(&path, &operation.fields(), findings),
            }
        }
        for (index, condition) in self.when.iter().flatten().enumerate() {
            let path = path.key("when").index(index);
            let Some(form) = condition.form() else {
                findings.error(path.key("key"), format!("there is no attribute `{}`", condition.key));
                continue;
            };
            check_fields(
                &path,
                &[("values", form, &condition.values), ("notValues", form, &condition.not_values)],
                findings,
            );
        }
    }
}

fn check_fields(path: &FieldPath, fields: &[Field<'_>], findings: &mut Findings) {
    if fields.iter().all(|(_, _, values)| values.is_none()) {
        findings.error(path.clone(), "needs at least one condition");
    }
    for (field, form, values) in fields {
        let path = path.key(field);
        let Some(values) = values else { continue };
        if values.is_empty() {
            findings.error(path.clone(), "is empty: leave it out, or say what has to hold");
        }
        for (index, value) in values.iter().enumerate() {
            let path = path.index(index);
            match form {
                _ if value.is_empty() => findings.error(path, "is empty"),
                Form::Text => check_text(path, value, findings),
                Form::Account if !is_account(value) => {
                    findings.error(path, format!("`{value}` is no service account: `NAME` or `NAMESPACE/NAME`"));
                }
                Form::Range if range(value).is_none() => {
                    findings.error(path, format!("`{value}` is no address and no range such as 10.0.0.0/8"));
                }
                Form::Port if port(value).is_none() => {
                    findings.error(path, format!("`{value}` is no port number from 1 to 65535"));
                }
                Form::Account | Form::Range | Form::Port | Form::Request => {}
            }
        }
    }
}

fn check_text(path: FieldPath, value: &str, findings: &mut Findings) {
    if value.starts_with("spiffe://") {
        findings.warning(path, "matches nobody: identities are compared without `spiffe://`");
    } else if value.len() > 1 && value.trim_start_matches('*').trim_end_matches('*').contains('*')
        || value.len() > 1 && value.starts_with('*') && value.ends_with('*')
    {
        findings.warning(path, "`*` stands for anything only as the whole value, or at one end of it");
    }
}

fn is_account(value: &str) -> bool {
    let name = |text: &str| !text.is_empty() && !text.contains(['/', '*']);
    match value.split_once('/') {
        Some((namespace, account)) => name(namespace) && name(account),
        None => name(value),
    }
}

/// An address or a range.
pub fn range(value: &str) -> Option<IpNet> {
    value.parse::<IpNet>().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))
}

/// A port.
pub fn port(value: &str) -> Option<u16> {
    value.parse().ok().filter(|port| *port > 0)
}
