//! The command line.

use std::{net::IpAddr, num::NonZeroUsize, path::PathBuf, str::FromStr};

use clap::{Parser, Subcommand, ValueEnum};
use http::uri::{Authority, Scheme, Uri};
use larder_api::{ListenAddress, ports};
use larder_policy::ByteSize;

/// A cache in front of an HTTP server.
///
/// Without --policy it is a plain shared cache: the server's own Cache-Control decides.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub serve: Serve,

    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Option<Command>,
}

/// Further commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell a running sidecar on this host to drain: it continues to respond and asks clients to close their
    /// connections.
    Drain(Drain),
    /// Find errors in policies, with their positions and remedies.
    Check(Check),
}

/// Options of serving.
#[derive(Debug, Clone, clap::Args)]
pub struct Serve {
    /// Address to listen on, such as 127.0.0.1:8300, or :8300 for every address. Each belongs to the --upstream in the
    /// same position.
    #[arg(long, value_name = "ADDRESS", default_value = ports::ALONE_DATA)]
    pub listen: Vec<ListenAddress>,

    /// Server to cache, such as http://127.0.0.1:8000.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub upstream: Vec<UpstreamUrl>,

    /// Address of health checks, metrics and the admin API.
    #[arg(long, value_name = "ADDRESS", default_value = ports::ALONE_ADMIN)]
    pub admin_listen: ListenAddress,

    /// File with the bearer token of the admin API; without it, stats and purges are refused.
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// CachePolicy to serve by, read again whenever the file changes. While it is missing everything passes through.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Address of the pod. Connections to an upstream on a loopback address try this address first, so that the
    /// application does not take its clients for local ones, and loopback only if it refuses. Connections to any other
    /// upstream try it last.
    #[arg(long, value_name = "IP")]
    pub pod_ip: Option<IpAddr>,

    /// Host and port of other sidecars' admin addresses, each of which stands for all of its addresses. Purges are told to
    /// them without Redis, and where Redis can't be told. Requires --admin-token-file, with the same token.
    #[arg(long, value_name = "HOST:PORT", env = "LARDER_PEERS", value_delimiter = ',')]
    pub peers: Vec<String>,

    /// Memory limit of the process, such as 128Mi [default: the limit of the control group, else l1.maxSize and 64Mi].
    /// The maximum numbers of connections and requests in progress, beyond which clients get a 503, follow from this limit.
    #[arg(long, value_name = "BYTES", env = "LARDER_MEMORY_LIMIT")]
    pub memory_limit: Option<ByteSize>,

    /// Number of threads that serve requests [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// Relay nothing without the general path of requests, so that tests cover both.
    #[arg(long, env = "LARDER_GENERAL_PATH", hide = true)]
    pub general_path: bool,
}

impl Serve {
    /// Returns the number of threads that serve requests: as configured, or one per core.
    pub fn threads(&self) -> usize {
        self.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
    }
}

/// The sidecar to drain.
#[derive(Debug, clap::Args)]
pub struct Drain {
    /// Admin address of the sidecar, on the loopback interface.
    #[arg(long, value_name = "ADDRESS", default_value = ports::ALONE_ADMIN)]
    pub admin: std::net::SocketAddr,
}

/// Options of a check.
///
/// Exits with 0 if all policies are valid, 1 if one is not, and 2 if a file can't be read.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Files with one CachePolicy each, or several separated by ---; - is standard input.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// Apply all rules of a cluster, rather than only those of a sidecar that runs alone.
    #[arg(long)]
    pub cluster: bool,

    /// Output format.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Output format of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line per error, like a compiler.
    Text,
    /// A list of objects: file, line, column, path, message.
    Json,
}

/// The URL of the server to cache: plain HTTP, a host and optionally a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// Host and port.
    pub authority: Authority,
}

impl UpstreamUrl {
    /// Returns the port: the given one, or 80.
    pub fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(80)
    }
}

impl FromStr for UpstreamUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || format!("{text:?} is not an upstream: write http://HOST:PORT, without a path");
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        match (uri.scheme(), uri.authority(), uri.path(), uri.query()) {
            (Some(scheme), Some(authority), "" | "/", None) if *scheme == Scheme::HTTP => {
                Ok(Self { authority: authority.clone() })
            }
            _ => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn upstreams_are_read() {
        assert_eq!("http://127.0.0.1:8000".parse::<UpstreamUrl>().unwrap().port(), 8000);
        assert_eq!("http://app/".parse::<UpstreamUrl>().unwrap().port(), 80);
        for text in ["127.0.0.1:8000", "https://app", "http://app/x", "ftp://app"] {
            assert!(text.parse::<UpstreamUrl>().unwrap_err().contains("write http://HOST:PORT"), "{text}");
        }
    }
}
