//! The servers that are measured, each at its best honest configuration.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::process::{Process, free_ports};

mod envoy;
mod haproxy;
mod larder;
mod nginx;
mod place;

pub use place::{Place, Places};

/// A measured server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Server {
    /// The sidecar.
    Larder,
    /// HAProxy.
    Haproxy,
    /// nginx.
    Nginx,
    /// Envoy.
    Envoy,
    /// hyper and a map.
    Ceiling,
    /// Bytes that are moved and not looked at.
    Relay,
}

/// Task of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Caches what the origin's `Cache-Control` permits.
    Cache,
    /// Does the same, for clients that speak HTTP/2.
    Http2Cache,
    /// Passes every request on.
    Pass,
    /// Passes every request on to an origin on the servers' core.
    Near,
    /// Passes gRPC calls on.
    Calls,
    /// Finds responses in Redis.
    Shared,
}

/// Servers behind the measured ones, by their loopback ports.
#[derive(Clone, Copy, Debug)]
pub struct Behind {
    /// The origin.
    pub origin: u16,
    /// The origin on the servers' core.
    pub near: u16,
    /// The server of gRPC calls.
    pub calls: u16,
    /// Redis.
    pub redis: u16,
}

/// A server that listens.
pub struct Running {
    /// The server.
    pub server: Server,
    /// The process.
    pub process: Process,
    /// The port.
    pub port: u16,
}

impl Server {
    /// All servers, in the order of the table.
    pub const ALL: [Self; 6] =
        [Self::Larder, Self::Haproxy, Self::Nginx, Self::Envoy, Self::Ceiling, Self::Relay];

    /// Returns the name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Larder => "larder",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::Ceiling => "ceiling",
            Self::Relay => "relay",
        }
    }

    /// Returns true if hits are recognisable; nginx 1.22 sends no `Age`, and the ceiling has nothing but hits.
    pub fn says_hit(self) -> bool {
        matches!(self, Self::Larder | Self::Haproxy)
    }

    /// Returns true if the server can take the role.
    pub fn takes(self, role: Role) -> bool {
        match role {
            Role::Cache | Role::Http2Cache => !matches!(self, Self::Envoy | Self::Relay),
            Role::Pass | Role::Near => self != Self::Ceiling,
            Role::Calls => !matches!(self, Self::Ceiling | Self::Relay),
            Role::Shared => self == Self::Larder,
        }
    }

    /// Starts the server in a role. The ceiling has responses for `paths`.
    ///
    /// # Errors
    /// If it does not start to listen.
    pub fn start(self, role: Role, place: &Place, behind: Behind, paths: &[String]) -> Result<Running> {
        ensure!(self.takes(role), "{} has no role as {}", self.as_str(), role.as_str());
        let ports = free_ports(2)?;
        let (port, admin) = (ports[0], ports[1]);
        let name = format!("{}-{}-{}", self.as_str(), role.as_str(), place.threads);
        let folder = place.scratch.join(&name);
        fs::create_dir_all(&folder)?;
        let command = match self {
            Self::Larder => larder::command(role, place, (port, admin), behind, &folder)?,
            Self::Haproxy => {
                let file = folder.join("haproxy.cfg");
                write(&file, &haproxy::configuration(role, port, behind))?;
                vec!["haproxy".into(), "-db".into(), "-f".into(), display(&file)]
            }
            Self::Nginx => {
                let file = folder.join("nginx.conf");
                write(&file, &nginx::configuration(role, port, behind, &folder))?;
                let prefix = display(&folder);
                ["nginx", "-e", "stderr", "-p", &prefix, "-c", &display(&file)].map(str::to_owned).into()
            }
            Self::Envoy => {
                let program = place.envoy.as_ref().context("there is no Envoy: give --envoy")?;
                let file = folder.join("envoy.yaml");
                write(&file, &envoy::configuration(role, port, behind))?;
                envoy::command(program, &file)
            }
            Self::Ceiling => {
                let mut command =
                    vec![display(&place.programs.join("ceiling")), format!("--listen=127.0.0.1:{port}")];
                command.extend(paths.iter().map(|path| format!("--path={path}")));
                command.extend((role == Role::Http2Cache).then(|| "--http2".to_owned()));
                command
            }
            Self::Relay => vec![
                display(&place.programs.join("relay")),
                format!("--listen=127.0.0.1:{port}"),
                format!("--origin=127.0.0.1:{}", role.origin(behind)),
            ],
        };
        let log = place.scratch.join(format!("{name}.log"));
        let process = Process::start(&place.cores, &command, log, port)?;
        Ok(Running { server: self, process, port })
    }

    /// Returns name and version.
    ///
    /// # Errors
    /// If the program does not run.
    pub fn name(self, place: &Place) -> Result<String> {
        Ok(match self {
            Self::Larder => {
                let program = place.larder.last().context("the sidecar has no command")?;
                format!("Larder {}", version(program, "--version")?)
            }
            Self::Haproxy => format!("HAProxy {}", version("haproxy", "-v")?),
            Self::Nginx => format!("nginx {}", version("nginx", "-v")?),
            Self::Envoy => {
                let program = place.envoy.as_ref().context("there is no Envoy: give --envoy")?;
                format!("Envoy {}", version(&display(program), "--version")?)
            }
            Self::Ceiling => "hyper and a map".into(),
            Self::Relay => "bare relay".into(),
        })
    }
}

impl Role {
    /// Returns the name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Http2Cache => "http2-cache",
            Self::Pass => "pass",
            Self::Near => "near",
            Self::Calls => "calls",
            Self::Shared => "shared",
        }
    }

    /// Returns the port of the origin.
    fn origin(self, behind: Behind) -> u16 {
        match self {
            Self::Calls => behind.calls,
            Self::Near => behind.near,
            Self::Cache | Self::Http2Cache | Self::Pass | Self::Shared => behind.origin,
        }
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| display(file))
}

pub(crate) fn display(path: &Path) -> String {
    path.display().to_string()
}

/// Returns the first word that starts with a digit and has a dot in a program's version output, up to a distribution's
/// suffix.
fn version(program: &str, flag: &str) -> Result<String> {
    let output = Command::new(program).arg(flag).output().with_context(|| program.to_owned())?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(find_version(&text).unwrap_or("?").to_owned())
}

fn find_version(text: &str) -> Option<&str> {
    text.split(|c: char| c.is_whitespace() || "/-".contains(c))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_versions_are_found() {
        assert_eq!(find_version("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://x"), Some("2.6.12"));
        assert_eq!(find_version("nginx version: nginx/1.22.1\n"), Some("1.22.1"));
        assert_eq!(find_version("larder-sidecar 0.1.0\n"), Some("0.1.0"));
        assert_eq!(find_version("envoy  version: 7e95/1.40.0/Clean/RELEASE"), Some("1.40.0"));
        assert_eq!(find_version("nothing"), None);
    }
}
