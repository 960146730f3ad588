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

/// What else the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell a running sidecar on this host to drain: it goes on answering and asks clients to close their connections.
    Drain(Drain),
    /// Say what is wrong with policies: where, and what to write instead.
    Check(Check),
}

/// How to serve.
#[derive(Debug, Clone, clap::Args)]
pub struct Serve {
    /// Where to listen, such as 127.0.0.1:8300, or :8300 for every address. Each goes with the --upstream in the same place.
    #[arg(long, value_name = "ADDRESS", default_value = ports::ALONE_DATA)]
    pub listen: Vec<ListenAddress>,

    /// The server to cache, such as http://127.0.0.1:8000.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub upstream: Vec<UpstreamUrl>,

    /// Where health, metrics and the admin API listen.
    #[arg(long, value_name = "ADDRESS", default_value = ports::ALONE_ADMIN)]
    pub admin_listen: ListenAddress,

    /// A file with the bearer token of the admin API; without it, stats and purges are refused.
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// A CachePolicy to serve by, read again whenever the file changes. While it is missing everything passes through.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// The pod's address. An upstream on a loopback address is called there first, so that it does not take its clients for
    /// local ones, and on loopback only where that is refused. Any other upstream is called there last.
    #[arg(long, value_name = "IP")]
    pub pod_ip: Option<IpAddr>,

    /// Memory that the process may have, such as 128Mi [default: the limit of the control group, else l1.maxSize and 64Mi].
    /// The number of connections and of requests in progress follows from this; one more gets a 503.
    #[arg(long, value_name = "BYTES", env = "LARDER_MEMORY_LIMIT")]
    pub memory_limit: Option<ByteSize>,

    /// Threads that answer requests [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

impl Serve {
    /// Threads that answer requests: as asked, or one per core.
    pub fn threads(&self) -> usize {
        self.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
    }
}

/// Which sidecar to drain.
#[derive(Debug, clap::Args)]
pub struct Drain {
    /// Its admin address, which must be on the loopback interface.
    #[arg(long, value_name = "ADDRESS", default_value = ports::ALONE_ADMIN)]
    pub admin: std::net::SocketAddr,
}

/// What to check, and what for.
///
/// Ends with 0 if all policies are good, 1 if one is not, and 2 if a file can't be read.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Files with a CachePolicy each, or several between lines of ---; - is standard input.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// Hold them to everything that a cluster asks for, rather than what a sidecar that runs alone does.
    #[arg(long)]
    pub cluster: bool,

    /// How to say it.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// How to say what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A line each, as compilers write.
    Text,
    /// A list of objects: file, line, column, path, message.
    Json,
}

/// The URL of the server to cache: plain HTTP, a host and perhaps a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// Host and port.
    pub authority: Authority,
}

impl UpstreamUrl {
    /// The port: the one written, or 80.
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
