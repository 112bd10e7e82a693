//! Every kind of wrong workload of the host is named with file, line and path; and the docs say what such a one lacks.

use proptest::prelude::*;

use super::*;

const GOOD: &str = "
node: vm
controlPlane: {address: 'http://a:1'}
workloads:
- name: web
  namespace: shop
  cgroup: /system.slice/web.service
  ports: [8080, 8443]
- name: db
  namespace: shop
  cgroup: /system.slice/db.service
  ports: [5432]
- name: job
  namespace: shop
  cgroup: /shop.slice
";

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(Path::new("agent.yaml"), text)
}

#[test]
fn complete() {
    let settings = parse(GOOD).unwrap();
    let place = |i: usize| settings.workloads[i].host().unwrap();
    assert_eq!(place(0), HostPlace { cgroup: "/system.slice/web.service".into(), ports: vec![8080, 8443] });
    assert_eq!(place(2).ports, [0_u16; 0]);
}

#[test]
fn wrong_fields_are_named_with_what_to_do() {
    let cases = [
        (
            "  ports: [5432]",
            "  ports: [8080]",
            "agent.yaml:12: workloads[1].ports[0]: 8080 is a port of workloads[0] (shop/web) already: a port of the host is one workload's; take it out of one of them",
        ),
        ("5432", "15008", "agent.yaml:12: workloads[1].ports[0]: 15008 is where tunnels come in"),
        (
            "5432",
            "15020",
            "agent.yaml:12: workloads[1].ports[0]: 15020 is the agent's own (listen.metrics): give one of them another port",
        ),
        ("5432", "0", "agent.yaml:12: workloads[1].ports[0]: 0 is not a port"),
        ("5432", "70000", "agent.yaml:12: workloads[1].ports[0]: invalid value"),
        ("[8080, 8443]", "[8080, 8080]", "agent.yaml:8: workloads[0].ports[1]: 8080 stands here twice"),
        (
            "/system.slice/db.service",
            "/system.slice/web.service",
            "agent.yaml:7: workloads[0].cgroup: /system.slice/web.service is, or is below, /system.slice/web.service, the cgroup of workloads[1] (shop/db)",
        ),
        (
            "/system.slice/db.service",
            "/system.slice/web.service/inner",
            "agent.yaml:11: workloads[1].cgroup: /system.slice/web.service/inner is, or is below, /system.slice/web.service, the cgroup of workloads[0] (shop/web): a process is one workload's; give each a cgroup beside the other's",
        ),
        (
            "/shop.slice",
            "/system.slice",
            "agent.yaml:7: workloads[0].cgroup: /system.slice/web.service is, or is below, /system.slice, the cgroup of workloads[2] (shop/job)",
        ),
        (
            "/shop.slice",
            "/",
            "agent.yaml:15: workloads[2].cgroup: the root is everybody, the agent too: name the cgroup of one unit",
        ),
        (
            "/shop.slice",
            "shop.slice",
            "agent.yaml:15: workloads[2].cgroup: write it as /proc/PID/cgroup does, from the hierarchy's root on",
        ),
        ("/shop.slice", "/a/../b", "agent.yaml:15: workloads[2].cgroup: write it as"),
        ("/shop.slice", "/a/./b", "agent.yaml:15: workloads[2].cgroup: write it as"),
        ("/shop.slice", "/a//b", "agent.yaml:15: workloads[2].cgroup: write it as"),
        ("/shop.slice", "/a/", "agent.yaml:15: workloads[2].cgroup: write it as"),
        ("/shop.slice", "/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a", "agent.yaml:15: workloads[2].cgroup: at most 16 levels"),
        (
            "cgroup: /shop.slice",
            "netns: /run/netns/a\n  ports: [1]",
            "agent.yaml:16: workloads[2].ports: only a workload with a cgroup has ports",
        ),
        (
            "cgroup: /shop.slice",
            "cgroup: /shop.slice\n  pid: 7",
            "agent.yaml:13: workloads[2]: has a cgroup, so its network namespace is the agent's",
        ),
        (
            "cgroup: /shop.slice",
            "cgroup: /shop.slice\n  udp: deny",
            "agent.yaml:16: workloads[2].udp: UDP of a workload with a cgroup is not looked at: leave this out",
        ),
        (
            "cgroup: /shop.slice",
            "cgroup: /shop.slice\n  shortcuts: on",
            "agent.yaml:16: workloads[2].shortcuts: a workload with a cgroup has none",
        ),
        (
            "cgroup: /shop.slice",
            "cgroup: /shop.slice\n  probes: [{tcpSocket: {port: 1}}]",
            "agent.yaml:16: workloads[2].probes: what the node asks",
        ),
        (
            "  cgroup: /shop.slice\n",
            "",
            "agent.yaml:13: workloads[2]: needs netns (a path such as /run/netns/NAME), pid, or in the host's own",
        ),
    ];
    for (from, to, expected) in cases {
        assert!(GOOD.contains(from), "{from}");
        let message = parse(&GOOD.replacen(from, to, 1)).map(|_| ()).unwrap_err().to_string();
        assert!(message.starts_with(expected), "for {to:?}:\n got {message}\nwant {expected}");
    }
}

#[test]
fn the_agent_s_own_cgroup_is_named_with_its_line() {
    let own = |cgroup: &str| Settings::parse_in(Path::new("agent.yaml"), GOOD, Some(Path::new(cgroup)));
    own("/system.slice/mesh-agent.service").unwrap();
    own("/system.slice/web.service-2").unwrap();
    own("/").unwrap();
    for cgroup in ["/system.slice/web.service", "/system.slice/web.service/agent"] {
        let message = own(cgroup).map(|_| ()).unwrap_err().to_string();
        let expected =
            format!("agent.yaml:7: workloads[0].cgroup: the agent itself is in it ({cgroup}): name the cgroup");
        assert!(message.starts_with(&expected), "{message}");
    }
}

#[test]
fn there_are_bounds() {
    let mut text = "node: vm\ncontrolPlane: {address: 'http://a:1'}\nworkloads:\n".to_owned();
    for i in 0..=MAX_HOST_WORKLOADS {
        text += &format!("- {{name: w{i}, namespace: x, cgroup: /u{i}}}\n");
    }
    let message = parse(&text).map(|_| ()).unwrap_err().to_string();
    assert_eq!(message, "agent.yaml:3: workloads: at most 256 workloads with a cgroup");
    let ports: Vec<String> = (1..=MAX_HOST_PORTS + 1).map(|port| port.to_string()).collect();
    let text = format!(
        "node: vm\ncontrolPlane: {{address: 'http://a:1'}}\nworkloads:\n- {{name: a, namespace: x, cgroup: /a, ports: [{}]}}\n",
        ports.join(", ")
    );
    let message = parse(&text).map(|_| ()).unwrap_err().to_string();
    assert_eq!(message, "agent.yaml:3: workloads: at most 4096 ports of the host, of all workloads together");
}

#[test]
fn the_docs_say_what_is_unsupported() {
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/agent.md")).unwrap();
    let docs = docs.split_whitespace().collect::<Vec<_>>().join(" ");
    for line in UNSUPPORTED {
        assert!(docs.contains(line), "docs/agent.md does not say: {line}");
    }
}

proptest! {
    /// Whatever is taken, no process is two workloads', and every port is one's.
    #[test]
    fn what_is_taken_is_unambiguous(paths in proptest::collection::vec("(/[ab]{1,2}){1,3}", 1..5), ports in proptest::collection::vec(1_u16..9, 5)) {
        let mut text = "node: vm\ncontrolPlane: {address: 'http://a:1'}\nworkloads:\n".to_owned();
        for (i, (path, port)) in paths.iter().zip(&ports).enumerate() {
            text += &format!("- {{name: w{i}, namespace: x, cgroup: {path}, ports: [{port}]}}\n");
        }
        let used = &ports[..paths.len()];
        let clash = (0..paths.len()).any(|i| (0..paths.len()).any(|j| i != j
            && (used[i] == used[j] || paths[i] == paths[j] || paths[i].starts_with(&format!("{}/", paths[j])))));
        prop_assert_eq!(parse(&text).is_err(), clash);
    }
}
