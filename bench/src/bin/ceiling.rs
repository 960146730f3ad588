//! What hyper can do when all that is left of a cache is a map: the ceiling of every server that is built on it.

use std::{collections::HashMap, net::SocketAddr};

use clap::Parser;
use larder_bench::{answer, serve};

/// Answers from a map of ready responses, and does nothing else.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,

    /// What is in the map; each path asks for so many bytes.
    #[arg(long, default_value = "/1024")]
    path: Vec<String>,
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
    serve::forever(arguments.listen, move |path| ready.get(path).unwrap_or(&missing).clone())
}
