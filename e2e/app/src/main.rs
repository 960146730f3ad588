//! The application, the client and the load of the end-to-end tests, in one program: its image has no shell.

mod agent;
mod answer;
mod client;
mod connection;
mod load;
mod mesh;
mod process;
mod serve;
mod talk;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "The application, the client and the load of Larder's end-to-end tests.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// An HTTP application that counts its calls and answers as the query asks it to.
    Serve(serve::Args),
    /// An application that is not HTTP: it greets, then answers lines.
    Talk(talk::Args),
    /// Idles until SIGTERM; the client and the load run beside it, by `kubectl exec`.
    Agent,
    /// Reads requests from standard input, one JSON object a line, and prints what came back, one a line.
    Client,
    /// Sends requests at a constant rate until its time is over or standard input ends, then prints what came back.
    Load(load::Args),
    /// Serves webhooks that inject what Istio and Linkerd inject, with Envoy as the proxy.
    Mesh(mesh::Args),
    /// Sends a signal to the processes of this pod whose command line contains a text.
    Signal(process::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Serve(args) => serve::run(args).await,
        Command::Talk(args) => talk::run(args).await,
        Command::Agent => agent::run().await,
        Command::Client => client::run().await,
        Command::Load(args) => load::run(args).await,
        Command::Mesh(args) => mesh::run(args).await,
        Command::Signal(args) => process::signal(&args),
    }
}
