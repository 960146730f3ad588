//! The servers that are measured, each at its best honest configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::process::{Process, free_ports};

/// A measured server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Server {
    /// The sidecar without a policy.
    Larder,
    /// HAProxy's cache.
    Haproxy,
    /// nginx's proxy_cache.
    Nginx,
    /// hyper and a map.
    Ceiling,
}

/// Locations of the programs and their files.
pub struct Place {
    /// The folder of this crate's programs.
    pub programs: PathBuf,
    /// The sidecar.
    pub larder: PathBuf,
    /// A folder on tmpfs.
    pub scratch: PathBuf,
    /// The core of the servers.
    pub core: usize,
}

/// A server that listens.
pub struct Running {
    /// The server.
    pub server: Server,
    /// Name and version.
    pub name: String,
    /// The process.
    pub process: Process,
    /// The port.
    pub port: u16,
}

impl Server {
    /// All servers, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Larder, Self::Haproxy, Self::Nginx, Self::Ceiling];

    /// Returns the name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Larder => "larder",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Ceiling => "ceiling",
        }
    }

    /// Returns true if hits are recognisable; nginx 1.22 sends no `Age`, and the ceiling has nothing but hits.
    pub fn says_hit(self) -> bool {
        matches!(self, Self::Larder | Self::Haproxy)
    }

    /// Starts the server in front of the origin.
    ///
    /// # Errors
    /// If it does not start to listen.
    pub fn start(self, place: &Place, origin: u16, path: &str) -> Result<Running> {
        let ports = free_ports(2)?;
        let (port, admin) = (ports[0], ports[1]);
        let command = match self {
            Self::Larder => vec![
                display(&place.larder),
                "--threads=1".into(),
                format!("--listen=127.0.0.1:{port}"),
                format!("--admin-listen=127.0.0.1:{admin}"),
                format!("--upstream=http://127.0.0.1:{origin}"),
            ],
            Self::Haproxy => {
                let file = place.scratch.join("haproxy.cfg");
                write(&file, &haproxy(port, origin))?;
                vec!["haproxy".into(), "-db".into(), "-f".into(), display(&file)]
            }
            Self::Nginx => {
                let folder = place.scratch.join("nginx");
                fs::create_dir_all(&folder)?;
                let file = folder.join("nginx.conf");
                write(&file, &nginx(port, origin, &folder))?;
                let prefix = display(&folder);
                ["nginx", "-e", "stderr", "-p", &prefix, "-c", &display(&file)].map(str::to_owned).into()
            }
            Self::Ceiling => vec![
                display(&place.programs.join("ceiling")),
                format!("--listen=127.0.0.1:{port}"),
                format!("--path={path}"),
            ],
        };
        let log = place.scratch.join(format!("{}.log", self.as_str()));
        let process = Process::start(place.core, &command, log, port)?;
        Ok(Running { server: self, name: self.name(place)?, process, port })
    }

    fn name(self, place: &Place) -> Result<String> {
        Ok(match self {
            Self::Larder => format!("Larder {}", version(&display(&place.larder), "--version")?),
            Self::Haproxy => format!("HAProxy {} cache", version("haproxy", "-v")?),
            Self::Nginx => format!("nginx {} proxy_cache", version("nginx", "-v")?),
            Self::Ceiling => "hyper and a map".into(),
        })
    }
}

/// No logs, no statistics, no header of its own but `Age`. Answers leave at once and the kernel's events are
/// edge-triggered: both together did best of what it has to tune; `tune.sched.low-latency`, `tune.maxpollevents` and
/// `tune.runqueue-depth` changed nothing that could be told from noise.
fn haproxy(port: u16, origin: u16) -> String {
    format!(
        "global
    nbthread 1
    maxconn 4096
    expose-experimental-directives
    tune.fd.edge-triggered on

defaults
    mode http
    option http-no-delay
    timeout connect 10s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 600s

cache objects
    total-max-size 64
    max-object-size 1048576
    max-age 3600

listen bench
    bind 127.0.0.1:{port}
    http-request cache-use objects
    http-response cache-store objects
    server origin 127.0.0.1:{origin}
"
    )
}

/// One worker, no logs, the cache on tmpfs with its files kept open, and bodies read rather than sent by `sendfile`,
/// which is slower for small ones.
fn nginx(port: u16, origin: u16, folder: &Path) -> String {
    let folder = display(folder);
    // Started as root, a worker would become somebody who may not enter the folder.
    let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
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
    proxy_cache_path {folder}/cache keys_zone=objects:16m inactive=1h max_size=64m use_temp_path=off;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://127.0.0.1:{origin};
            proxy_cache objects;
        }}
    }}
}}
"
    )
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| display(file))
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// Returns the first word that starts with a digit in a program's version output, up to a distribution's suffix.
fn version(program: &str, flag: &str) -> Result<String> {
    let output = Command::new(program).arg(flag).output().with_context(|| program.to_owned())?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(find_version(&text).unwrap_or("?").to_owned())
}

fn find_version(text: &str) -> Option<&str> {
    text.split(|c: char| c.is_whitespace() || "/-".contains(c))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_versions_are_found() {
        assert_eq!(find_version("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://x"), Some("2.6.12"));
        assert_eq!(find_version("nginx version: nginx/1.22.1\n"), Some("1.22.1"));
        assert_eq!(find_version("larder-sidecar 0.1.0\n"), Some("0.1.0"));
        assert_eq!(find_version("nothing"), None);
    }
}
