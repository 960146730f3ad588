//! nginx's configuration.

use std::path::Path;

use super::{Behind, Role, display};

/// One worker, no logs, the cache on tmpfs with its files kept open, and bodies read rather than sent by `sendfile`,
/// which is slower for small ones. Connections to the origin stay open, and the cache's size is kept.
pub(super) fn configuration(role: Role, port: u16, behind: Behind, folder: &Path) -> String {
    let folder = display(folder);
    // Started as root, a worker would become somebody who may not enter the folder.
    let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
    let http2 = if matches!(role, Role::Http2Cache | Role::Calls) { " http2" } else { "" };
    let pass = if role == Role::Calls {
        "grpc_pass grpc://origin;".to_owned()
    } else {
        let cache = matches!(role, Role::Cache | Role::Http2Cache);
        let cache = if cache { "\n            proxy_cache objects;" } else { "" };
        format!(
            "proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";{cache}"
        )
    };
    let origin = role.origin(behind);
    format!(
        "{user}
daemon off;
worker_processes 1;
error_log stderr error;
pid {folder}/pid;
events {{
    worker_connections 4096;
    multi_accept on;
}}
http {{
    access_log off;
    sendfile off;
    tcp_nodelay on;
    server_tokens off;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    open_file_cache max=1000 inactive=600s;
    open_file_cache_valid 600s;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache keys_zone=objects:16m inactive=1h max_size=64m use_temp_path=off manager_files=10000;
    upstream origin {{
        server 127.0.0.1:{origin};
        keepalive 2048;
        keepalive_requests 1000000000;
        keepalive_time 1d;
        keepalive_timeout 600s;
    }}
    server {{
        listen 127.0.0.1:{port}{http2} backlog=4096;
        location / {{
            {pass}
        }}
    }}
}}
"
    )
}
