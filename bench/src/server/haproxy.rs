//! HAProxy's configuration.

use super::{Behind, Role};

/// No logs, no statistics, no header of its own but `Age`; idle connections to the origin are for every client, and stay
/// open however many there are: by default they are closed beyond a quarter of the possible files. Answers
/// leave at once and the kernel's events are edge-triggered: both together did best of what it has to tune;
/// `tune.sched.low-latency`, `tune.maxpollevents` and `tune.runqueue-depth` changed nothing that could be told from
/// noise.
pub(super) fn configuration(role: Role, port: u16, behind: Behind) -> String {
    let cache = match role {
        Role::Cache | Role::Http2Cache => {
            "    http-request cache-use objects\n    http-response cache-store objects\n"
        }
        Role::Pass | Role::Near | Role::Calls | Role::Shared => "",
    };
    let client = if matches!(role, Role::Http2Cache | Role::Calls) { " proto h2" } else { "" };
    let server = if role == Role::Calls { " proto h2" } else { "" };
    let origin = role.origin(behind);
    format!(
        "global
    nbthread 1
    maxconn 4096
    expose-experimental-directives
    tune.fd.edge-triggered on
    tune.pool-low-fd-ratio 90
    tune.pool-high-fd-ratio 95

defaults
    mode http
    option http-no-delay
    http-reuse always
    timeout connect 10s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 600s

cache objects
    total-max-size 64
    max-object-size 1048576
    max-age 3600

listen bench
    bind 127.0.0.1:{port}{client}
{cache}    server origin 127.0.0.1:{origin}{server}
"
    )
}
