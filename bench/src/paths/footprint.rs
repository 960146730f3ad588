//! Memory of the servers' processes.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    cpu::Tree,
    load::{NUMBER, Report, Request},
    memory::resident,
    server::{Behind, Place, Role, Running, Server},
};

/// Time after which a server is at rest, and has given back what it does not need.
const AT_REST: Duration = Duration::from_secs(2);

/// Number of stored responses: fewer than L1 holds by default.
pub const STORED: u64 = 16_384;

/// Size of the bodies of stored responses, in bytes.
pub const BYTES: usize = 1 << 10;

/// Number of runs that may be needed until all are stored.
const RUNS: usize = 30;

/// Resident memory in bytes.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    /// Memory of all processes of a server that has had no request.
    pub idle: Vec<(Server, u64)>,
    /// Memory that each stored response adds to the sidecar.
    pub stored: Option<u64>,
}

/// Measures the memory of one server after the other, and of the sidecar with [`STORED`] responses, which `load` has it
/// store.
///
/// # Errors
/// If a server does not start, or does not serve.
pub fn measure(
    place: &Place,
    behind: Behind,
    wanted: &[Server],
    load: &dyn Fn(&Running, Request) -> Result<Report>,
) -> Result<Footprint> {
    let mut footprint = Footprint::default();
    let servers = Server::ALL.into_iter().filter(|server| !matches!(server, Server::Ceiling | Server::Relay));
    for server in servers.filter(|server| wanted.contains(server)) {
        let role = if server.takes(Role::Cache) { Role::Cache } else { Role::Pass };
        let running = server.start(role, place, behind, &[])?;
        let tree = Tree::of(running.process.id());
        let memory = || {
            thread::sleep(AT_REST);
            tree.ids().iter().map(|pid| resident(*pid, "VmRSS")).sum::<Result<u64>>()
        };
        footprint.idle.push((server, memory()?));
        if server == Server::Larder {
            load(&running, Request::get(format!("/{BYTES}")))?;
            let before = memory()?;
            let all = Request { numbers: STORED, ..Request::get(format!("/{BYTES}/{NUMBER}")) };
            // Each run begins with the first number.
            let is_full =
                (0..RUNS).any(|_| load(&running, all.clone()).is_ok_and(|report| report.requests > STORED));
            ensure!(is_full, "{RUNS} runs did not store {STORED} responses");
            footprint.stored = Some(memory()?.saturating_sub(before) / STORED);
        }
    }
    Ok(footprint)
}
