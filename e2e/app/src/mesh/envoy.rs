//! Envoy's configuration.

use serde_json::{Value, json};

use super::Args;

const V3: &str = "type.googleapis.com/envoy.extensions";

/// Returns the whole of a configuration.
pub(super) fn configuration(listeners: &[Value], clusters: &[Value]) -> Value {
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

/// Returns a listener whose connections may have been redirected to it.
pub(super) fn listener(name: &str, address: &str, port: u16, filter_chains: &[Value]) -> Value {
    json!({
        "name": name,
        "address": address_of(address, port),
        "listener_filters": [
            {"name": "original_dst", "typed_config": {"@type": format!("{V3}.filters.listener.original_dst.v3.OriginalDst")}},
            {"name": "tls_inspector", "typed_config": {"@type": format!("{V3}.filters.listener.tls_inspector.v3.TlsInspector")}},
        ],
        "filter_chains": filter_chains,
    })
}

/// Returns a filter chain for connections by mTLS.
pub(super) fn mutual_tls(args: &Args, filter: &Value) -> Value {
    let mut context = json!({
        "@type": format!("{V3}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
    });
    context["common_tls_context"] = tls(args);
    json!({
        "filter_chain_match": {"transport_protocol": "tls"},
        "transport_socket": {"name": "tls", "typed_config": context},
        "filters": [filter],
    })
}

/// Returns a filter chain for connections without TLS.
pub(super) fn plain(filter: &Value) -> Value {
    json!({"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": [filter]})
}

fn tls(args: &Args) -> Value {
    json!({
        "tls_certificates": [{
            "certificate_chain": {"inline_string": args.certificate},
            "private_key": {"inline_string": args.key},
        }],
        "validation_context": {"trusted_ca": {"inline_string": args.ca}},
    })
}

/// Returns a filter that passes requests on by routes. Like Istio's it tells the application who the client is.
pub(super) fn http(name: &str, routes: &[Value]) -> Value {
    json!({
        "name": "http",
        "typed_config": {
            "@type": format!("{V3}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": name,
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": {"subject": true, "uri": true},
            "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
            "http_filters": [{
                "name": "router",
                "typed_config": {"@type": format!("{V3}.filters.http.router.v3.Router")},
            }],
        },
    })
}

/// Returns a filter that passes connections on.
pub(super) fn tcp(cluster: &str) -> Value {
    json!({
        "name": "tcp",
        "typed_config": {
            "@type": format!("{V3}.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": cluster,
            "cluster": cluster,
        },
    })
}

/// Returns a route of everything to a cluster.
pub(super) fn all_to(cluster: &str) -> Value {
    json!({"match": {"prefix": "/"}, "route": {"cluster": cluster}})
}

/// Returns a route that responds by itself.
pub(super) fn responds(path: &str, status: u16) -> Value {
    json!({"match": {"prefix": path}, "direct_response": {"status": status}})
}

/// Returns a cluster that connects to the address that was asked for, from `source` if that is given.
pub(super) fn original_destination(name: &str, source: Option<&str>) -> Value {
    let mut cluster = json!({"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s"});
    if let Some(source) = source {
        cluster["upstream_bind_config"] = json!({"source_address": {"address": source, "port_value": 0}});
    }
    cluster
}

/// Returns a cluster of one port of the pod.
pub(super) fn local(name: &str, port: u64) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}},
        ]}]},
    })
}

fn address_of(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}
