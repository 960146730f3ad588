//! Istio's injection with mTLS mode STRICT and rewritten probes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Args, Kind, PROBES, add_containers, envoy, http_probes, init_container, list, proxy_container};

const AGENT_PORT: u16 = 15020;

pub(super) fn inject(pod: &mut Value, kind: Kind, args: &Args) {
    let annotation =
        |name: &str| pod["metadata"]["annotations"][format!("traffic.sidecar.istio.io/{name}")].as_str();
    let excluded = annotation("excludeInboundPorts").map(|ports| format!(",{ports}")).unwrap_or_default();
    let arguments = json!([
        "istio-iptables",
        "-p",
        "15001",
        "-z",
        "15006",
        "-u",
        "1337",
        "-m",
        "REDIRECT",
        "-i",
        "*",
        "-x",
        "",
        "-b",
        annotation("includeInboundPorts").unwrap_or("*"),
        "-d",
        format!("15090,15021,15020{excluded}"),
    ]);
    let probes = http_probes(pod);
    let mut routes = vec![envoy::responds("/healthz/ready", 200)];
    routes.extend(probes.iter().map(|(path, (port, own))| {
        json!({"match": {"path": path}, "route": {"cluster": format!("probe-{port}"), "prefix_rewrite": own}})
    }));
    let inbound = envoy::mutual_tls(args, &envoy::http("inbound", &[envoy::all_to("inbound")]));
    let outbound = json!({"filters": [envoy::tcp("outbound")]});
    let agent = json!({"filters": [envoy::http("agent", &routes)]});
    let mut clusters = vec![
        envoy::original_destination("inbound", Some("127.0.0.6")),
        envoy::original_destination("outbound", None),
    ];
    let ports: BTreeSet<_> = probes.values().map(|(port, _)| *port).collect();
    clusters.extend(ports.into_iter().map(|port| envoy::local(&format!("probe-{port}"), port)));
    let configuration = envoy::configuration(
        &[
            envoy::listener("inbound", "0.0.0.0", 15006, &[inbound]),
            envoy::listener("outbound", "0.0.0.0", 15001, &[outbound]),
            envoy::listener("agent", "0.0.0.0", AGENT_PORT, &[agent]),
        ],
        &clusters,
    );
    let ready = json!({"path": "/healthz/ready", "port": AGENT_PORT});
    let mut proxy = proxy_container("istio-proxy", args, 1337, &ready, &configuration);
    proxy["ports"] = json!([{"name": "http-envoy-prom", "containerPort": 15090, "protocol": "TCP"}]);
    proxy["env"] = json!([{"name": "ISTIO_KUBE_APP_PROBERS", "value": json!(probes).to_string()}]);

    for key in ["containers", "initContainers"] {
        for container in list(pod, key) {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (field, short) in PROBES {
                let path = format!("/app-health/{name}/{short}");
                if probes.contains_key(&path) {
                    container[field]["httpGet"]["path"] = json!(path);
                    container[field]["httpGet"]["port"] = json!(AGENT_PORT);
                }
            }
        }
    }
    add_containers(pod, init_container("istio-init", args, &arguments), proxy, kind, false);
    pod["metadata"]["annotations"]["sidecar.istio.io/status"] = json!("{}");
    pod["metadata"]["labels"]["security.istio.io/tlsMode"] = json!("istio");
}
