//! What exists in the APIs beyond what is implemented: kinds and fields by name.
//!
//! In: names. Out: whether they are implemented, come later, have no effect by design, or do not exist. A field that is in
//! none of the tables is a mistake in the file.

use super::Kind;

/// What becomes of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handling {
    /// It is read.
    Read(Kind),
    /// It exists and means nothing to the mesh.
    NoEffect,
    /// It would mean something, and will.
    Later,
}

/// What becomes of an API version and kind; `None` = no such kind.
pub(super) fn kind(api_version: &str, kind: &str) -> Option<Handling> {
    use Handling::{Later, NoEffect, Read};
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let istio = matches!(version, "v1" | "v1beta1" | "v1alpha3");
    match (group, kind) {
        ("", "Service") if version == "v1" => Some(Read(Kind::Service)),
        ("", "Pod") if version == "v1" => Some(Read(Kind::Pod)),
        ("", "Node") if version == "v1" => Some(Read(Kind::Node)),
        ("discovery.k8s.io", "EndpointSlice") if version == "v1" => Some(Read(Kind::EndpointSlice)),
        ("networking.istio.io", "VirtualService") if istio => Some(Read(Kind::VirtualService)),
        ("networking.istio.io", "DestinationRule") if istio => Some(Read(Kind::DestinationRule)),
        ("networking.istio.io", "ServiceEntry") if istio => Some(Read(Kind::ServiceEntry)),
        ("networking.istio.io", "WorkloadEntry") if istio => Some(Read(Kind::WorkloadEntry)),
        ("networking.istio.io", "Gateway" | "Sidecar" | "EnvoyFilter" | "WorkloadGroup" | "ProxyConfig") => Some(Later),
        ("security.istio.io", "PeerAuthentication") if matches!(version, "v1" | "v1beta1") => {
            Some(Read(Kind::PeerAuthentication))
        }
        ("security.istio.io", "AuthorizationPolicy") if matches!(version, "v1" | "v1beta1") => {
            Some(Read(Kind::AuthorizationPolicy))
        }
        ("security.istio.io", "RequestAuthentication") => Some(Later),
        ("telemetry.istio.io", "Telemetry") | ("extensions.istio.io", "WasmPlugin") => Some(Later),
        ("gateway.networking.k8s.io", _) => Some(Later),
        (
            "",
            "Namespace"
            | "ServiceAccount"
            | "ConfigMap"
            | "Secret"
            | "Endpoints"
            | "PersistentVolume"
            | "PersistentVolumeClaim"
            | "ReplicationController"
            | "LimitRange"
            | "ResourceQuota"
            | "Event",
        ) => Some(NoEffect),
        (
            "apps"
            | "batch"
            | "rbac.authorization.k8s.io"
            | "policy"
            | "autoscaling"
            | "apiextensions.k8s.io"
            | "admissionregistration.k8s.io"
            | "scheduling.k8s.io"
            | "storage.k8s.io"
            | "networking.k8s.io"
            | "coordination.k8s.io"
            | "node.k8s.io",
            _,
        ) => Some(NoEffect),
        _ => None,
    }
}

/// Fields of every object that mean nothing here.
const OBJECT: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "metadata.uid",
    "metadata.resourceVersion",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.finalizers",
    "metadata.generateName",
    "metadata.selfLink",
    "metadata.deletionGracePeriodSeconds",
    "metadata.ownerReferences[].apiVersion",
    "metadata.ownerReferences[].uid",
    "metadata.ownerReferences[].blockOwnerDeletion",
];

/// Fields that exist and have no effect on a mesh without doubt.
fn without_effect(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service => &[
            "status",
            "spec.ports[].nodePort",
            "spec.ipFamilies",
            "spec.ipFamilyPolicy",
            "spec.externalIPs",
            "spec.externalTrafficPolicy",
            "spec.healthCheckNodePort",
            "spec.allocateLoadBalancerNodePorts",
            "spec.loadBalancerClass",
            "spec.loadBalancerIP",
            "spec.loadBalancerSourceRanges",
        ],
        Kind::EndpointSlice => &[
            "endpoints[].conditions.serving",
            "endpoints[].conditions.terminating",
            "endpoints[].hostname",
            "endpoints[].hints",
            "endpoints[].zone",
            "endpoints[].deprecatedTopology",
            "endpoints[].targetRef.uid",
            "endpoints[].targetRef.apiVersion",
            "endpoints[].targetRef.resourceVersion",
            "endpoints[].targetRef.fieldPath",
            "ports[].appProtocol",
        ],
        Kind::Pod => POD,
        Kind::Node => &["spec", "status"],
        Kind::VirtualService
        | Kind::DestinationRule
        | Kind::ServiceEntry
        | Kind::WorkloadEntry
        | Kind::PeerAuthentication
        | Kind::AuthorizationPolicy => &["status"],
    }
}

const POD: &[&str] = &[
    "spec.activeDeadlineSeconds",
    "spec.affinity",
    "spec.automountServiceAccountToken",
    "spec.dnsConfig",
    "spec.dnsPolicy",
    "spec.enableServiceLinks",
    "spec.ephemeralContainers",
    "spec.hostAliases",
    "spec.hostIPC",
    "spec.hostPID",
    "spec.hostUsers",
    "spec.hostname",
    "spec.hostnameOverride",
    "spec.imagePullSecrets",
    "spec.initContainers",
    "spec.nodeSelector",
    "spec.os",
    "spec.overhead",
    "spec.preemptionPolicy",
    "spec.priority",
    "spec.priorityClassName",
    "spec.readinessGates",
    "spec.resourceClaims",
    "spec.resources",
    "spec.restartPolicy",
    "spec.runtimeClassName",
    "spec.schedulerName",
    "spec.schedulingGates",
    "spec.securityContext",
    "spec.serviceAccount",
    "spec.setHostnameAsFQDN",
    "spec.shareProcessNamespace",
    "spec.subdomain",
    "spec.terminationGracePeriodSeconds",
    "spec.tolerations",
    "spec.topologySpreadConstraints",
    "spec.volumes",
    "spec.containers[].args",
    "spec.containers[].command",
    "spec.containers[].env",
    "spec.containers[].envFrom",
    "spec.containers[].image",
    "spec.containers[].imagePullPolicy",
    "spec.containers[].lifecycle",
    "spec.containers[].livenessProbe",
    "spec.containers[].name",
    "spec.containers[].ports[].hostIP",
    "spec.containers[].ports[].hostPort",
    "spec.containers[].ports[].protocol",
    "spec.containers[].readinessProbe",
    "spec.containers[].resizePolicy",
    "spec.containers[].resources",
    "spec.containers[].restartPolicy",
    "spec.containers[].securityContext",
    "spec.containers[].startupProbe",
    "spec.containers[].stdin",
    "spec.containers[].stdinOnce",
    "spec.containers[].terminationMessagePath",
    "spec.containers[].terminationMessagePolicy",
    "spec.containers[].tty",
    "spec.containers[].volumeDevices",
    "spec.containers[].volumeMounts",
    "spec.containers[].workingDir",
    "status.conditions[].lastProbeTime",
    "status.conditions[].lastTransitionTime",
    "status.conditions[].message",
    "status.conditions[].reason",
    "status.conditions[].observedGeneration",
    "status.containerStatuses",
    "status.ephemeralContainerStatuses",
    "status.hostIP",
    "status.hostIPs",
    "status.initContainerStatuses",
    "status.message",
    "status.nominatedNodeName",
    "status.observedGeneration",
    "status.qosClass",
    "status.reason",
    "status.resize",
    "status.resourceClaimStatuses",
    "status.startTime",
];

/// Fields of the API that would have an effect and will.
fn later(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service => &[
            "spec.sessionAffinity",
            "spec.sessionAffinityConfig",
            "spec.internalTrafficPolicy",
            "spec.trafficDistribution",
        ],
        Kind::EndpointSlice | Kind::Pod | Kind::Node | Kind::PeerAuthentication | Kind::AuthorizationPolicy => &[],
        Kind::VirtualService => &[
            "spec.http[].delegate",
            "spec.http[].fault",
            "spec.http[].mirror",
            "spec.http[].mirrorPercent",
            "spec.http[].mirrorPercentage",
            "spec.http[].mirror_percent",
            "spec.http[].mirrors",
            "spec.http[].corsPolicy",
            "spec.http[].match[].statPrefix",
            "spec.http[].retries.retryRemoteLocalities",
            "spec.http[].redirect.prefixRewrite",
            "spec.tcp[].match[].destinationSubnets",
            "spec.tcp[].match[].sourceSubnet",
            "spec.tls[].match[].destinationSubnets",
        ],
        Kind::DestinationRule => &["spec.workloadSelector"],
        Kind::ServiceEntry | Kind::WorkloadEntry => &[],
    }
}

/// Fields of a traffic policy that come later, wherever the policy stands in a DestinationRule.
const POLICY_LATER: &[&str] = &[
    "tls",
    "tunnel",
    "proxyProtocol",
    "retryBudget",
    "loadBalancer.localityLbSetting",
    "loadBalancer.zoneAwareLbSetting",
    "loadBalancer.warmup",
    "loadBalancer.warmupDurationSecs",
    "loadBalancer.consistentHash.httpCookie.attributes",
    "connectionPool.tcp.tcpKeepalive",
    "connectionPool.tcp.maxConnectionDuration",
    "connectionPool.tcp.idleTimeout",
    "connectionPool.http.http2KeepAlive",
    "outlierDetection.outlierDetectionHttpErrorCodes",
    "outlierDetection.consecutiveErrors",
];
const POLICY_PREFIXES: &[&str] = &[
    "spec.trafficPolicy.portLevelSettings[].",
    "spec.trafficPolicy.",
    "spec.subsets[].trafficPolicy.portLevelSettings[].",
    "spec.subsets[].trafficPolicy.",
];

/// What an unread field is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// It has no effect by design.
    NoEffect,
    /// It will have an effect.
    Later,
    /// There is no such field.
    Unknown,
}

/// What an unread field is, by its path with `[]` for every index.
pub(super) fn unread(kind: Kind, pattern: &str) -> Unread {
    let policy_later = kind == Kind::DestinationRule
        && POLICY_PREFIXES
            .iter()
            .any(|prefix| pattern.strip_prefix(prefix).is_some_and(|field| POLICY_LATER.contains(&field)));
    if policy_later || later(kind).contains(&pattern) {
        Unread::Later
    } else if OBJECT.contains(&pattern) || without_effect(kind).contains(&pattern) {
        Unread::NoEffect
    } else {
        Unread::Unknown
    }
}
