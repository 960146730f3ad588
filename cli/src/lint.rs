//! `larder lint`.

use larder_lint::{Environment, Listing};

use crate::{args, error::Result, outcome::Outcome, output::Output};

/// Checks files with the cluster's rules.
pub(crate) fn run(args: &args::Lint, output: &Output) -> Result<Outcome> {
    let listing = Listing::read(&args.files, Environment::Cluster);
    listing.errors().iter().for_each(|error| eprintln!("error: {error}"));
    output.print(&listing.findings(), |_| listing.to_text());
    Ok(match listing.outcome() {
        larder_lint::Outcome::Good => Outcome::Good,
        larder_lint::Outcome::Faulty => Outcome::Faulty,
        larder_lint::Outcome::Unreadable => Outcome::Failed,
    })
}
