//! The origin of the examples and the load on it, in one program because its image has no shell.

mod catalog;
mod load;
mod report;
mod serve;

use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "What Larder's examples cache, and the load that shows it.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves slow reports and a catalog of products, and counts its calls.
    Serve(serve::Args),
    /// Asks for a URL, as so many users at once, and prints how they were answered.
    Load(load::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Serve(args) => serve::run(args).await,
        Command::Load(args) => load::run(args).await,
    }
}

/// A time of an option, such as 300ms.
fn duration(text: &str) -> Result<Duration, jiff::Error> {
    text.parse::<jiff::SignedDuration>()?.try_into()
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
    fn a_time_has_a_unit() {
        assert_eq!(duration("300ms").unwrap(), Duration::from_millis(300));
        assert_eq!(duration("0s").unwrap(), Duration::ZERO);
        assert!(duration("300").is_err());
        assert!(duration("-1s").is_err());
    }
}
