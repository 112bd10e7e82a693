//! What a scrape shows: names, label order, sums, bounds.

use super::super::{Peer, Protocol, Reporter, Security};
use super::*;

fn peer(name: &str) -> Arc<Peer> {
    Arc::new(Peer {
        workload: format!("{name}-v1").into(),
        namespace: "default".into(),
        principal: format!("spiffe://cluster.local/ns/default/sa/{name}").into(),
        app: name.into(),
        version: "v1".into(),
        canonical_service: name.into(),
        canonical_revision: "v1".into(),
        cluster: "Kubernetes".into(),
    })
}

fn labels(protocol: Protocol) -> ConnLabels {
    ConnLabels {
        reporter: Reporter::Destination,
        source: peer("productpage"),
        destination: peer("reviews"),
        service_host: "reviews.default.svc.cluster.local".into(),
        service_name: "reviews".into(),
        service_namespace: "default".into(),
        protocol,
        security: Security::MutualTls,
    }
}

const MS: Duration = Duration::from_millis(1);

fn no_bytes() -> String {
    let mut out = Text::default();
    paths::write(&mut out, &[]);
    limits::write(&mut out, &[]);
    out.finish()
}

/// The order that Istio's own dashboards and tests know.
#[test]
fn http_page() {
    let metrics = Metrics::new(Limits::default());
    let worker = metrics.worker(0);
    worker.http(&labels(Protocol::Http)).record(200, Flags::NONE, 7 * MS, 100, 2000);
    let page = metrics.render(Instant::now());
    let base = "reporter=\"destination\",source_workload=\"productpage-v1\",source_canonical_service=\"productpage\",\
        source_canonical_revision=\"v1\",source_workload_namespace=\"default\",\
        source_principal=\"spiffe://cluster.local/ns/default/sa/productpage\",source_app=\"productpage\",\
        source_version=\"v1\",source_cluster=\"Kubernetes\",destination_workload=\"reviews-v1\",\
        destination_workload_namespace=\"default\",\
        destination_principal=\"spiffe://cluster.local/ns/default/sa/reviews\",destination_app=\"reviews\",\
        destination_version=\"v1\",destination_service=\"reviews.default.svc.cluster.local\",\
        destination_canonical_service=\"reviews\",destination_canonical_revision=\"v1\",\
        destination_service_name=\"reviews\",destination_service_namespace=\"default\",\
        destination_cluster=\"Kubernetes\",request_protocol=\"http\",response_code=\"200\",\
        grpc_response_status=\"\",response_flags=\"-\",connection_security_policy=\"mutual_tls\"";
    let histogram = |name: &str, help: &str, at_least: f64, sum: &str| {
        let mut text = format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
        let bounds =
            "0.5 1 5 10 25 50 100 250 500 1000 2500 5000 10000 30000 60000 300000 600000 1800000 3600000".split(' ');
        for bound in bounds {
            let count = u8::from(bound.parse::<f64>().unwrap() >= at_least);
            text += &format!("{name}_bucket{{{base},le=\"{bound}\"}} {count}\n");
        }
        text + &format!("{name}_bucket{{{base},le=\"+Inf\"}} 1\n{name}_sum{{{base}}} {sum}\n{name}_count{{{base}}} 1\n")
    };
    let expected = format!(
        "# HELP istio_build Istio component build info\n# TYPE istio_build gauge\n\
         istio_build{{component=\"proxy\",tag=\"{}\"}} 1\n\
         # HELP istio_requests_total Requests.\n# TYPE istio_requests_total counter\nistio_requests_total{{{base}}} 1\n\
         {}{}{}\
         # HELP mesh_agent_metric_overflows_total Lookups of label sets beyond the limit; they count in the series \
         whose labels are \"overflow\".\n# TYPE mesh_agent_metric_overflows_total counter\n\
         mesh_agent_metric_overflows_total 0\n{}",
        env!("CARGO_PKG_VERSION"),
        histogram("istio_request_duration_milliseconds", "Duration of requests in milliseconds.", 10.0, "7"),
        histogram("istio_request_bytes", "Size of requests in bytes.", 100.0, "100"),
        histogram("istio_response_bytes", "Size of responses in bytes.", 2500.0, "2000"),
        no_bytes(),
    );
    assert_eq!(page, expected);
}

#[test]
fn tcp_page() {
    let metrics = Metrics::new(Limits::default());
    let unknown = ConnLabels {
        reporter: Reporter::Source,
        source: Arc::new(Peer::unknown()),
        destination: Arc::new(Peer::unknown()),
        service_host: "".into(),
        service_name: "PassthroughCluster".into(),
        service_namespace: "".into(),
        protocol: Protocol::Tcp,
        security: Security::Unknown,
    };
    let series = metrics.worker(1).tcp(&unknown, Flags::NONE);
    series.opened();
    series.sent(10);
    series.received(3);
    series.closed();
    let page = metrics.render(Instant::now());
    let base = "reporter=\"source\",source_workload=\"unknown\",source_canonical_service=\"unknown\",\
        source_canonical_revision=\"latest\",source_workload_namespace=\"unknown\",source_principal=\"unknown\",\
        source_app=\"unknown\",source_version=\"unknown\",source_cluster=\"unknown\",destination_workload=\"unknown\",\
        destination_workload_namespace=\"unknown\",destination_principal=\"unknown\",destination_app=\"unknown\",\
        destination_version=\"unknown\",destination_service=\"unknown\",destination_canonical_service=\"unknown\",\
        destination_canonical_revision=\"latest\",destination_service_name=\"PassthroughCluster\",\
        destination_service_namespace=\"unknown\",destination_cluster=\"unknown\",request_protocol=\"tcp\",\
        response_flags=\"-\",connection_security_policy=\"unknown\"";
    for (name, value) in [
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_sent_bytes_total", 10),
        ("istio_tcp_received_bytes_total", 3),
    ] {
        let sample = format!("# TYPE {name} counter\n{name}{{{base}}} {value}\n");
        assert!(page.contains(&sample), "{name}:\n{page}");
    }
}

fn value(page: &str, start: &str) -> Vec<u64> {
    let samples = page.lines().filter(|line| line.starts_with(start));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn workers_are_summed() {
    let metrics = Metrics::new(Limits::default());
    let threads: Vec<_> = (0..4)
        .map(|index| {
            let worker = metrics.worker(index);
            std::thread::spawn(move || {
                for _ in 0..1000 {
                    let series = worker.http(&labels(Protocol::Http));
                    series.record(200, Flags::NONE, MS, 1, 1);
                    series.record(503, Flags::UF, MS, 1, 1);
                    series.record(200, Flags::NONE, MS, 1, 1);
                }
            })
        })
        .collect();
    // Scrapes meanwhile disturb nobody.
    for _ in 0..10 {
        metrics.render(Instant::now());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let page = metrics.render(Instant::now());
    let mut counts = value(&page, "istio_requests_total{");
    counts.sort_unstable();
    assert_eq!(counts, [4000, 8000]);
    assert_eq!(value(&page, "istio_request_duration_milliseconds_count{").iter().sum::<u64>(), 12000);
}

#[test]
fn too_many_label_sets_share_one_series() {
    let metrics = Metrics::new(Limits { series: 2, ..Limits::default() });
    let worker = metrics.worker(0);
    let series = worker.http(&labels(Protocol::Http));
    for code in 200..210 {
        series.record(code, Flags::NONE, MS, 1, 1);
    }
    let page = metrics.render(Instant::now());
    assert_eq!(value(&page, "istio_requests_total{").len(), 3);
    assert_eq!(value(&page, "istio_requests_total{reporter=\"overflow\""), [8]);
    assert_eq!(value(&page, "mesh_agent_metric_overflows_total"), [8]);
    assert!(page.contains("response_code=\"overflow\",grpc_response_status=\"overflow\""));
}

#[test]
fn idle_series_expire_but_not_held_ones() {
    let metrics = Metrics::new(Limits { idle: Duration::from_secs(60), ..Limits::default() });
    let worker = metrics.worker(0);
    let held = worker.tcp(&labels(Protocol::Tcp), Flags::NONE);
    held.opened();
    worker.http(&labels(Protocol::Http)).record_grpc(200, 0, Flags::NONE, MS, 1, 1);
    let start = Instant::now();
    let count =
        |page: &str| (value(page, "istio_requests_total{").len(), value(page, "istio_tcp_sent_bytes_total{").len());
    assert_eq!(count(&metrics.render(start)), (1, 1));
    assert_eq!(count(&metrics.render(start + Duration::from_secs(59))), (1, 1));
    assert_eq!(count(&metrics.render(start + Duration::from_secs(61))), (0, 1));
    drop(held);
    assert_eq!(count(&metrics.render(start + Duration::from_secs(62))), (0, 0));
}

#[test]
fn modules_add_their_own() {
    let metrics = Metrics::new(Limits::default());
    metrics.add_source(|out| out.single("mesh_agent_x", Kind::Gauge, "X.", 3));
    assert!(
        metrics.render(Instant::now()).ends_with("# HELP mesh_agent_x X.\n# TYPE mesh_agent_x gauge\nmesh_agent_x 3\n")
    );
}
