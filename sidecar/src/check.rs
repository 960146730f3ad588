//! The subcommand `check`: files in, one line per error out.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use larder_lint::{Environment, Listing};

use crate::cli::{self, Output};

/// Checks files and writes what it finds to standard output: 0 if all is good, 1 if not, 2 if a file can't be read.
pub fn run(args: &cli::Check) -> ExitCode {
    let environment = if args.cluster { Environment::Cluster } else { Environment::Alone };
    let listing = Listing::read(&args.files, environment);
    listing.errors().iter().for_each(|error| eprintln!("{error}"));
    let written = match args.output {
        Output::Text => listing.to_text(),
        Output::Json => {
            let findings = serde_json::to_string_pretty(&listing.findings());
            findings.expect("a diagnostic has only strings and numbers") + "\n"
        }
    };
    // The reader may close the pipe when it has read enough.
    let _ = io::stdout().write_all(written.as_bytes());
    ExitCode::from(listing.outcome() as u8)
}
