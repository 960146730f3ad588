//! The ceiling of every server that is built on hyper: hyper with a map in place of a cache.

use std::{collections::HashMap, net::SocketAddr};

use clap::Parser;
use larder_bench::{answer, serve};

/// Serves ready responses from a map, and does nothing else.
#[derive(Parser)]
struct Arguments {
    /// Listen address.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,

    /// Paths in the map; each requests its number of bytes.
    #[arg(long, default_value = "/1024")]
    path: Vec<String>,

    /// Serve over HTTP/2.
    #[arg(long)]
    http2: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let ready: HashMap<_, _> = arguments
        .path
        .into_iter()
        .map(|path| {
            let answer = answer::at(&path);
            (path, answer)
        })
        .collect();
    let missing = answer::at("");
    serve::forever(arguments.listen, arguments.http2, move |path| ready.get(path).unwrap_or(&missing).clone())
}
