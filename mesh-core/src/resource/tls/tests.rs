//! Tables of secrets, files and names.

use super::*;
use crate::resource::StringMatch;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use matcher::string_matcher::MatchPattern;

fn pattern(pattern: MatchPattern) -> matcher::StringMatcher {
    matcher::StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

fn typed(kind: pb::subject_alt_name_matcher::SanType, text: MatchPattern) -> pb::SubjectAltNameMatcher {
    pb::SubjectAltNameMatcher { san_type: kind.into(), matcher: Some(pattern(text)), ..Default::default() }
}

fn secret(name: &str) -> pb::SdsSecretConfig {
    pb::SdsSecretConfig { name: name.into(), ..Default::default() }
}

fn from_file(name: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(data_source::Specifier::Filename(name.into())), ..Default::default() })
}

fn inline() -> Option<DataSource> {
    Some(DataSource { specifier: Some(data_source::Specifier::InlineString("x".into())), ..Default::default() })
}

fn validated(context: pb::CertificateValidationContext) -> pb::CommonTlsContext {
    let by = pb::common_tls_context::ValidationContextType::ValidationContext(context);
    pb::CommonTlsContext { validation_context_type: Some(by), ..Default::default() }
}

#[test]
fn names_are_of_a_kind() {
    use pb::subject_alt_name_matcher::SanType;
    let ip = AltName::Ip("10.0.0.1".parse().unwrap());
    for (kind, text, name, fits) in [
        (SanType::Uri, MatchPattern::Exact("spiffe://a/b".into()), AltName::Uri("spiffe://a/b"), true),
        (SanType::Uri, MatchPattern::Exact("spiffe://a/b".into()), AltName::Uri("spiffe://a/B"), false),
        (SanType::Uri, MatchPattern::Exact("spiffe://a/b".into()), AltName::Dns("spiffe://a/b"), false),
        (SanType::Uri, MatchPattern::Prefix("spiffe://a/".into()), AltName::Uri("spiffe://a/b"), true),
        (SanType::Uri, MatchPattern::Suffix("/b".into()), AltName::Uri("spiffe://a/c"), false),
        (SanType::Uri, MatchPattern::Contains("a/b".into()), AltName::Uri("spiffe://a/b/c"), true),
        (SanType::Dns, MatchPattern::Exact("a.example.com".into()), AltName::Dns("A.example.com"), true),
        (SanType::Dns, MatchPattern::Exact("a.example.com".into()), AltName::Dns("*.example.com"), true),
        (SanType::Dns, MatchPattern::Exact("b.a.example.com".into()), AltName::Dns("*.example.com"), false),
        (SanType::Dns, MatchPattern::Exact("example.com".into()), AltName::Dns("*.com"), false),
        (SanType::Dns, MatchPattern::Exact(".example.com".into()), AltName::Dns("*.example.com"), false),
        (SanType::Dns, MatchPattern::Suffix(".com".into()), AltName::Dns("a.example.com"), true),
        (SanType::Email, MatchPattern::Exact("a@b".into()), AltName::Email("a@b"), true),
        (SanType::IpAddress, MatchPattern::Exact("10.0.0.1".into()), ip, true),
        (SanType::IpAddress, MatchPattern::Exact("10.0.0.2".into()), ip, false),
    ] {
        let what = format!("{kind:?} {text:?} {name:?}");
        assert_eq!(SanMatch::typed(&typed(kind, text)).unwrap().matches(&name), fits, "{what}");
    }
    let any = SanMatch::untyped(&pattern(MatchPattern::Exact("a.b.c".into()))).unwrap();
    assert!(any.matches(&AltName::Dns("*.b.c")) && any.matches(&AltName::Uri("a.b.c")));
    assert!(SanMatch::typed(&typed(SanType::OtherName, MatchPattern::Exact("x".into()))).is_err());
    assert!(SanMatch::typed(&pb::SubjectAltNameMatcher::default()).is_err());
}

#[test]
fn a_host_is_who_its_certificate_names() {
    let ip = |text: &str| AltName::Ip(text.parse().unwrap());
    for (name, host, is) in [
        (AltName::Dns("a.example.com"), "a.example.com", true),
        (AltName::Dns("*.example.com"), "a.example.com", true),
        (AltName::Dns("*.example.com"), "example.com", false),
        (AltName::Uri("a.example.com"), "a.example.com", false),
        (ip("10.0.0.1"), "10.0.0.1", true),
        (ip("::1"), "0:0:0:0:0:0:0:1", true),
        (ip("10.0.0.1"), "10.0.0.2", false),
        (AltName::Dns("10.0.0.1"), "10.0.0.1", true),
    ] {
        assert_eq!(name.is_of_host(host), is, "{name:?} {host}");
    }
}

#[test]
fn secrets_say_where_they_are() {
    let files = |chain: &str, key: &str| CertificateSource::Files { chain: chain.into(), key: key.into() };
    for (name, source) in [
        ("default", Some(CertificateSource::Workload)),
        ("file-cert:/a/c.pem~/a/k.pem", Some(files("/a/c.pem", "/a/k.pem"))),
        ("file-cert:/a/c.pem", None),
        ("file-cert:~/k", None),
        ("kubernetes://shop", None),
        ("", None),
    ] {
        let message =
            pb::CommonTlsContext { tls_certificate_sds_secret_configs: vec![secret(name)], ..Default::default() };
        assert_eq!(CommonTls::parse(Some(&message)).ok().and_then(|tls| tls.certificate), source, "{name}");
    }
    for (name, source) in [
        ("ROOTCA", Some(RootsSource::Workload)),
        ("file-root:system", Some(RootsSource::System)),
        ("file-root:/ca.pem", Some(RootsSource::File("/ca.pem".into()))),
        ("file-root:", None),
        ("kubernetes://shop-cacert", None),
    ] {
        let by = pb::common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(secret(name));
        let message = pb::CommonTlsContext { validation_context_type: Some(by), ..Default::default() };
        assert_eq!(CommonTls::parse(Some(&message)).ok().and_then(|tls| tls.roots), source, "{name}");
    }
}

#[test]
fn files_are_named_and_nothing_is_inline() {
    let pair = |chain, key| pb::CommonTlsContext {
        tls_certificates: vec![pb::TlsCertificate { certificate_chain: chain, private_key: key, ..Default::default() }],
        ..Default::default()
    };
    let both = CommonTls::parse(Some(&pair(from_file("/c"), from_file("/k")))).unwrap();
    assert_eq!(both.certificate, Some(CertificateSource::Files { chain: "/c".into(), key: "/k".into() }));
    for bad in [pair(from_file("/c"), None), pair(inline(), from_file("/k")), pair(from_file("/c"), inline())] {
        assert!(CommonTls::parse(Some(&bad)).is_err());
    }
    let ca = pb::CertificateValidationContext { trusted_ca: from_file("/ca"), ..Default::default() };
    assert_eq!(CommonTls::parse(Some(&validated(ca))).unwrap().roots, Some(RootsSource::File("/ca".into())));
    let system = pb::CertificateValidationContext { system_root_certs: Some(Default::default()), ..Default::default() };
    assert_eq!(CommonTls::parse(Some(&validated(system))).unwrap().roots, Some(RootsSource::System));
    // As Istio says insecureSkipVerify.
    assert_eq!(CommonTls::parse(Some(&validated(Default::default()))).unwrap().roots, None);
    let names_alone = pb::CertificateValidationContext {
        match_subject_alt_names: vec![pattern(MatchPattern::Exact("a".into()))],
        ..Default::default()
    };
    assert!(CommonTls::parse(Some(&validated(names_alone))).is_err());
}

#[test]
fn rules_for_names_are_all_kept() {
    let message = pb::CertificateValidationContext {
        trusted_ca: from_file("/ca"),
        match_subject_alt_names: vec![pattern(MatchPattern::Exact("a".into()))],
        match_typed_subject_alt_names: vec![typed(
            pb::subject_alt_name_matcher::SanType::Uri,
            MatchPattern::Prefix("b".into()),
        )],
        ..Default::default()
    };
    let sans = CommonTls::parse(Some(&validated(message))).unwrap().sans;
    let kinds: Vec<_> = sans.iter().map(|san| san.kind).collect();
    assert_eq!(kinds, [None, Some(SanKind::Uri)]);
    assert!(matches!(sans[1].text, StringMatch::Prefix(_)));
}

#[test]
fn only_one_wish_for_a_version_has_an_effect() {
    use pb::tls_parameters::TlsProtocol;
    for (least, only) in [(TlsProtocol::TlsAuto, false), (TlsProtocol::TlSv12, false), (TlsProtocol::TlSv13, true)] {
        let params = pb::TlsParameters { tls_minimum_protocol_version: least.into(), ..Default::default() };
        let message = pb::CommonTlsContext { tls_params: Some(params), ..Default::default() };
        assert_eq!(CommonTls::parse(Some(&message)).unwrap().only_tls13, only, "{least:?}");
    }
}
