//! The origin that the caches fill from: `/1024` is 1024 bytes that stay fresh for an hour.

use std::net::SocketAddr;

use clap::Parser;
use larder_bench::{answer, serve};

/// Serves any GET of /N with N bytes that are fresh for an hour.
#[derive(Parser)]
struct Arguments {
    /// Listen address.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
}

fn main() -> anyhow::Result<()> {
    serve::forever(Arguments::parse().listen, answer::at)
}
