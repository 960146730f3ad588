//! Locations of the programs, and the cores of servers and load, as they are on a command line.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::display;

/// Locations of the programs and their files.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder of this crate's programs.
    pub programs: PathBuf,
    /// The sidecar: the program, after what it runs under.
    pub larder: Vec<String>,
    /// Envoy, if it is there.
    pub envoy: Option<PathBuf>,
    /// A folder on tmpfs.
    pub scratch: PathBuf,
    /// The cores of the servers, such as `0-3,7`.
    pub cores: String,
    /// Number of threads with which the sidecar serves; all others have one.
    pub threads: usize,
}

/// Options of benchmarks with a core for the servers and one for the load.
#[derive(Args)]
pub struct Places {
    /// The sidecar [default: beside this program].
    #[arg(long, value_name = "FILE")]
    larder: Option<PathBuf>,

    /// A folder on tmpfs for configurations, logs and nginx's cache; its creator removes it.
    #[arg(long, value_name = "FOLDER")]
    scratch: PathBuf,

    /// The core of the servers.
    #[arg(long, default_value_t = 0)]
    pub server_core: usize,

    /// The core of the load, the origin and Redis.
    #[arg(long, default_value_t = 1)]
    pub load_core: usize,
}

impl Places {
    /// Returns the place of servers on their core.
    ///
    /// # Errors
    /// If there is no such folder, or if the load has the same core.
    pub fn of_servers(&self, envoy: Option<&Path>) -> Result<Place> {
        ensure!(
            self.server_core != self.load_core,
            "the load would take CPU from the servers on the same core"
        );
        let programs = env::current_exe()?.parent().context("a program is in a folder")?.to_owned();
        Ok(Place {
            larder: vec![display(self.larder.as_deref().unwrap_or(&programs.join("larder-sidecar")))],
            envoy: envoy.map(Path::to_owned),
            programs,
            scratch: self.scratch.canonicalize().context("--scratch")?,
            cores: self.server_core.to_string(),
            threads: 1,
        })
    }
}
