//! The sidecar program against a real Redis and a real Postgres; `./dev test integration` starts both.

// Tests, and their harness, state an expectation by panicking.
#![allow(clippy::unwrap_used)]

mod integration {
    mod harness;

    mod abandoned;
    mod admin_api;
    mod applications;
    mod asking;
    mod bare;
    mod barriers;
    mod bus;
    mod checking;
    mod configuration;
    mod connections;
    mod contents;
    mod controls;
    mod cookies;
    mod coverage;
    mod destinations;
    mod documents;
    mod envelope;
    mod failsafe;
    mod faults;
    mod floods;
    mod half_closed;
    mod hanging;
    mod heads;
    mod http2;
    mod http2_hits;
    mod http_source;
    mod identities;
    mod interim;
    mod invalidating;
    mod last_known_good;
    mod late_writes;
    mod lifetimes;
    mod listening;
    mod memory;
    mod metrics;
    mod moving;
    mod negative;
    mod peers;
    mod poisoning;
    mod policies;
    mod postgres;
    mod postgres_source;
    mod prefixes;
    mod protocols;
    mod purge_requests;
    mod purging;
    mod ranges;
    mod reading_through;
    mod redis_away;
    mod redis_lookups;
    mod redis_records;
    mod redis_secrets;
    mod redis_topologies;
    mod refused;
    mod relaying;
    mod replicating;
    mod routes;
    mod sharing;
    mod slow_application;
    mod spellings;
    mod staleness;
    mod stampede;
    mod stored_errors;
    mod storing;
    mod streaming;
    mod tags;
    mod tailing;
    mod targets;
    mod told;
    mod triggers;
    mod upgrades;
    mod upstream_connections;
    mod upstream_http2;
    mod upstream_responses;
    mod validating;
    mod variants;
    mod versions;
    mod write_values;
    mod writes;
}
