//! Envoy's configuration.

use std::path::Path;

use super::{Behind, Role, display};

/// One worker that neither logs nor adds headers, nor limits requests to the origin.
pub(super) fn configuration(role: Role, port: u16, behind: Behind) -> String {
    let origin = role.origin(behind);
    let http2 = if role == Role::Calls {
        "
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}"
    } else {
        ""
    };
    format!(
        "static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          codec_type: AUTO
          generate_request_id: false
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes:
              - match: {{prefix: /}}
                route: {{cluster: origin, timeout: 0s}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
              dynamic_stats: false
  clusters:
  - name: origin
    type: STATIC
    connect_timeout: 10s
    circuit_breakers:
      thresholds: [{{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}}]{http2}
    load_assignment:
      cluster_name: origin
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {origin}}}}}}}
"
    )
}

pub(super) fn command(program: &Path, file: &Path) -> Vec<String> {
    let mut command = vec![display(program), "-c".to_owned(), display(file)];
    let options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"];
    command.extend(options.map(str::to_owned));
    command
}
