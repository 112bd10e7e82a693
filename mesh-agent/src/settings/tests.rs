//! Every kind of wrong settings is named with file, line and path.

use super::*;

const GOOD: &str = r#"
node: n1
controlPlane:
  address: https://10.9.0.1:15012
  serverName: istiod.istio-system.svc
  rootCert: /etc/mesh/root.pem
  tokenFile: /etc/mesh/token
kernel: {pinPath: /sys/fs/bpf/mesh/n1, cgroup: /sys/fs/cgroup/n1}
workers: 2
accessLog: stdout
logFormat: json
listen:
  admin: 127.0.0.1:0
  metrics: "[::]:0"
limits: {connections: 5000, headBytes: 8192, streamWindowBytes: 65535}
workloads:
  - name: a
    namespace: default
    serviceAccount: sa-a
    labels: {app: a, version: "1"}
    netns: /run/netns/a
  - name: b
    namespace: default
    pid: 77
    workloadName: b-deployment
    udp: dns-only
    probes:
      - httpGet: {port: 8080, path: /healthz}
      - tcpSocket: {port: 9000}
      - grpc: {port: 50051, service: shop}
    existingConnections: close
    sameNode: wire
    shortcuts: on
"#;

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(Path::new("agent.yaml"), text)
}

fn error(text: &str) -> String {
    parse(text).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn complete() {
    let settings = parse(GOOD).unwrap();
    assert_eq!(settings.node, "n1");
    assert_eq!(&*settings.cluster_id, "Kubernetes");
    assert_eq!(&*settings.trust_domain, "cluster.local");
    assert_eq!(settings.worker_count(), 2);
    assert_eq!(settings.access_log, Some(AccessLogSink::Stdout));
    assert_eq!(settings.log_format, LogFormat::Json);
    assert_eq!(settings.listen.metrics.to_string(), "[::]:0");
    assert_eq!(settings.listen.ready.to_string(), "0.0.0.0:15021");
    let limits = Limits { connections: 5000, head_bytes: 8192, stream_window_bytes: 65_535, ..Limits::default() };
    assert_eq!(settings.limits, limits);
    assert_eq!(settings.workloads[0].labels["version"], "1");
    assert_eq!(settings.workloads[1].service_account, "default");
    assert_eq!((settings.workloads[0].udp, settings.workloads[1].udp), (Udp::Allow, Udp::DnsOnly));
    let shortcuts = settings.workloads.iter().map(|workload| workload.shortcuts);
    assert!(shortcuts.eq([Shortcuts::Auto, Shortcuts::On]));
    let existing = settings.workloads.iter().map(|workload| workload.existing_connections);
    assert!(existing.eq([ExistingConnections::Keep, ExistingConnections::Close]));
    let same_node = settings.workloads.iter().map(|workload| workload.same_node);
    assert!(same_node.eq([SameNode::Direct, SameNode::Wire]));
    assert_eq!(settings.workloads[1].key(), "default/b");
    let probes: Vec<_> = settings.workloads[1].probes.iter().map(|probe| probe.get().unwrap()).collect();
    let http = probes::Probe::Http { port: 8080, path: "/healthz".into() };
    assert_eq!(probes, [http, probes::Probe::Tcp { port: 9000 }, probes::Probe::Grpc { port: 50051 }]);
}

#[test]
fn wrong_fields_are_named() {
    let cases: &[(&str, &str, &str)] = &[
        ("workers: 2", "workers: two", "agent.yaml:9: workers: invalid type: string \"two\", expected usize"),
        ("workers: 2", "workers: -1", "agent.yaml:9: workers: invalid value: integer `-1`, expected usize"),
        ("workers: 2", "workers: 1000", "agent.yaml:9: workers: at most 256"),
        ("workers: 2", "wrkers: 2", "agent.yaml:9: wrkers: unknown field `wrkers`, expected one of"),
        ("node: n1", "nodes: n1", "agent.yaml:2: nodes: unknown field `nodes`, expected one of"),
        ("node: n1\n", "\n", "agent.yaml:3: .: missing field `node`"),
        ("node: n1", "node: ''", "agent.yaml:2: node: must not be empty"),
        ("node: n1", "1: n1", "agent.yaml:2: .: every key must be text"),
        ("logFormat: json", "logFormat: xml", "agent.yaml:11: logFormat: unknown variant `xml`"),
        ("127.0.0.1:0", "localhost", "agent.yaml:13: listen.admin: invalid socket address syntax"),
        ("https://10.9.0.1:15012", "10.9.0.1:15012", "agent.yaml:4: controlPlane.address: "),
        ("https://10.9.0.1:15012", "ftp://a:1", "agent.yaml:4: controlPlane.address: the scheme must be https"),
        ("https://10.9.0.1:15012", "https://istiod", "agent.yaml:4: controlPlane.address: write https://HOST:PORT"),
        ("  rootCert: /etc/mesh/root.pem\n", "", "agent.yaml:3: controlPlane: https needs rootCert"),
        ("  tokenFile:", "  token:", "agent.yaml:7: controlPlane.token: unknown field `token`"),
        ("version: \"1\"", "version: 1", "agent.yaml:20: workloads[0].labels.version: invalid type: integer `1`"),
        ("netns: /run", "pid: 3\n    netns: /run", "agent.yaml:17: workloads[0]: has both netns and pid"),
        ("    pid: 77\n", "", "agent.yaml:22: workloads[1]: needs netns"),
        ("    pid: 77\n", "    pid: 0\n", "agent.yaml:24: workloads[1].pid: 0 is not"),
        ("netns: /run/netns/a", "netns: a", "agent.yaml:21: workloads[0].netns: must be an absolute path"),
        ("- name: b", "- name: a", "agent.yaml:22: workloads[1]: default/a is listed twice (first as workloads[0])"),
        ("- name: b", "- name: B/x", "agent.yaml:22: workloads[1].name: \"B/x\" is not a Kubernetes name"),
        ("serviceAccount: sa-a", "serviceAccount: a~b", "agent.yaml:19: workloads[0].serviceAccount: "),
        ("dns-only", "none", "agent.yaml:26: workloads[1].udp: unknown variant `none`, expected one of `allow`"),
        (
            "shortcuts: on",
            "shortcuts: yes",
            "agent.yaml:33: workloads[1].shortcuts: unknown variant `yes`, expected one of `auto`",
        ),
        ("port: 9000", "port: 0", "agent.yaml:29: workloads[1].probes[1]: 0 is not a port"),
        ("port: 9000", "port: http", "agent.yaml:29: workloads[1].probes[1].tcpSocket.port: invalid type: string"),
        ("path: /healthz", "path: healthz", "agent.yaml:28: workloads[1].probes[0].httpGet.path: \"healthz\" is not"),
        ("path: /healthz", "scheme: HTTPS", "agent.yaml:28: workloads[1].probes[0].httpGet.scheme: the agent does not"),
        ("- tcpSocket: {port: 9000}", "- {}", "agent.yaml:29: workloads[1].probes[1]: needs exactly one of httpGet"),
        ("tcpSocket", "exec", "agent.yaml:29: workloads[1].probes[1].exec: unknown field `exec`"),
        ("accessLog: stdout", "accessLog: !x stdout", "agent.yaml:10: accessLog: YAML tags"),
        ("workers: 2", "trustDomain: A_B/c", "agent.yaml:9: trustDomain: trust domain \"A_B/c\" is not"),
        (
            "connections: 5000",
            "connection: 5000",
            "agent.yaml:15: limits.connection: unknown field `connection`, expected",
        ),
        ("connections: 5000", "connections: -1", "agent.yaml:15: limits.connections: invalid value: integer `-1`"),
        ("connections: 5000", "http2Streams: 0", "agent.yaml:15: limits.http2Streams: 0: write 1 to 65536"),
        ("8192", "8191", "agent.yaml:15: limits.headBytes: 8191: write 8192 to 1048576"),
        ("connections: 5000", "headLines: 257", "agent.yaml:15: limits.headLines: 257: write 1 to 256"),
        ("65535", "16777217", "agent.yaml:15: limits.streamWindowBytes: more than connectionWindowBytes (16777216)"),
        ("workers: 2", "drainSeconds: 9999", "agent.yaml:9: drainSeconds: at most 3600"),
    ];
    for (from, to, expected) in cases {
        assert!(GOOD.contains(from), "{from}");
        let message = error(&GOOD.replacen(from, to, 1));
        assert!(message.starts_with(expected), "for {to:?}:\n got {message}\nwant {expected}");
    }
}

#[test]
fn malformed_yaml_has_line_and_column() {
    let message = error("node: n1\ncontrolPlane: [\n");
    assert!(message.starts_with("agent.yaml:"), "{message}");
    assert!(message.contains("not valid YAML"), "{message}");
    let message = error("node: a\nnode: b\n");
    assert!(message.starts_with("agent.yaml:2:"), "{message}");
    assert_eq!(error(""), "agent.yaml:1: .: the file is empty");
    assert!(error("a: 1\n---\nb: 2\n").starts_with("agent.yaml:3: .: a second YAML document"));
}

#[test]
fn an_unreadable_file_is_named() {
    let message = Settings::load(Path::new("/nonexistent/agent.yaml")).unwrap_err().to_string();
    assert!(message.starts_with("/nonexistent/agent.yaml: cannot read the settings: "), "{message}");
}
