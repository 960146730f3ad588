//! Linkerd's injection with the default inbound policy `all-authenticated`, which lets probes pass without TLS.

use serde_json::{Value, json};

use super::{Args, Kind, add_containers, envoy, http_probes, init_container, proxy_container};

pub(super) fn inject(pod: &mut Value, kind: Kind, args: &Args) {
    let skipped = pod["metadata"]["annotations"]["config.linkerd.io/skip-inbound-ports"].as_str();
    let skipped_outbound = pod["metadata"]["annotations"]["config.linkerd.io/skip-outbound-ports"].as_str();
    let arguments = json!([
        "--incoming-proxy-port",
        "4143",
        "--outgoing-proxy-port",
        "4140",
        "--proxy-uid",
        "2102",
        "--inbound-ports-to-ignore",
        format!("4190,4191,{}", skipped.unwrap_or("4567,4568")),
        "--outbound-ports-to-ignore",
        skipped_outbound.unwrap_or("4567,4568"),
    ]);
    let mut routes: Vec<_> = http_probes(pod)
        .into_values()
        .map(|(_, path)| json!({"match": {"path": path}, "route": {"cluster": "inbound"}}))
        .collect();
    routes.push(envoy::responds("/", 403));
    let mut identified = envoy::all_to("inbound");
    identified["request_headers_to_add"] = json!([{"header": {"key": "l5d-client-id", "value": "client.mesh.serviceaccount.identity.linkerd.cluster.local"}}]);
    let inbound = [
        envoy::mutual_tls(args, &envoy::http("inbound", &[identified])),
        envoy::plain(&envoy::http("plain", &routes)),
    ];
    let outbound = json!({"filters": [envoy::tcp("outbound")]});
    let admin = json!({"filters": [envoy::http("admin", &[envoy::responds("/ready", 200)])]});
    let configuration = envoy::configuration(
        &[
            envoy::listener("inbound", "0.0.0.0", 4143, &inbound),
            envoy::listener("outbound", "127.0.0.1", 4140, &[outbound]),
            envoy::listener("admin", "0.0.0.0", 4191, &[admin]),
        ],
        &[envoy::original_destination("inbound", None), envoy::original_destination("outbound", None)],
    );
    let ready = json!({"path": "/ready", "port": 4191});
    let mut proxy = proxy_container("linkerd-proxy", args, 2102, &ready, &configuration);
    proxy["ports"] = json!([
        {"name": "linkerd-proxy", "containerPort": 4143},
        {"name": "linkerd-admin", "containerPort": 4191},
    ]);
    add_containers(pod, init_container("linkerd-init", args, &arguments), proxy, kind, true);
    pod["metadata"]["annotations"]["linkerd.io/proxy-version"] = json!("stand-in");
}
