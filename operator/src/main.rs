//! The Larder operator.

use anyhow::Context;
use clap::Parser;
use larder_operator::{
    check::check,
    cli::{Arguments, Command},
    run::run,
};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { command } = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    match command {
        Command::Run(arguments) => run(*arguments).await.context("the operator must be restarted"),
        Command::Check(arguments) => check(&arguments).await,
    }
}
