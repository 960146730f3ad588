//! The origin behind the servers: `/1024` is 1024 bytes that stay fresh for an hour.

use std::net::SocketAddr;

use clap::Parser;
use larder_bench::origin;

/// Serves any request for /N with N bytes that are fresh for an hour.
#[derive(Parser)]
struct Arguments {
    /// Listen address.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,

    /// Serve gRPC calls over HTTP/2 instead.
    #[arg(long)]
    calls: bool,
}

fn main() -> anyhow::Result<()> {
    let Arguments { listen, calls } = Arguments::parse();
    if calls { origin::serve_calls(listen) } else { origin::serve(listen) }
}
