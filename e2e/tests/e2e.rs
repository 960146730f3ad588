//! Larder on a cluster: each test says in its name what holds, and shows it in a namespace of its own.

mod e2e {
    mod capturing;
    mod changing;
    mod common;
    mod injecting;
    mod operating;
    mod purging;
    mod readme;
    mod refusing;
    mod rolling;
    mod serving;
    mod telemetry;
    mod tiers;
}
