//! Larder on a cluster: each test says in its name what holds, and shows it in a namespace of its own.

mod e2e {
    mod admitting;
    mod bounding;
    mod capturing;
    mod changing;
    mod choosing;
    mod commanding;
    mod common;
    mod companions;
    mod confining;
    mod covering;
    mod examples_full_path;
    mod examples_read_through;
    mod examples_records;
    mod examples_shop;
    mod examples_two_level;
    mod history;
    mod injecting;
    mod invalidations;
    mod meshing;
    mod namespaced;
    mod operating;
    mod owners;
    mod purging;
    mod readme;
    mod redirecting;
    mod refusing;
    mod restarting;
    mod rights;
    mod rolling;
    mod serving;
    mod telemetry;
    mod telling;
    mod tiers;
    mod undoing;
    mod upgrading;
    mod ways;
    mod whole_cluster;
    mod workloads;
}
