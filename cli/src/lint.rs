//! `larder lint`.

use larder_lint::{Environment, Listing};

use crate::{
    args,
    error::{Error, Result},
    outcome::Outcome,
    output::Output,
    wording,
};

/// Checks files with the cluster's rules.
pub(crate) fn run(args: &args::Lint, output: &Output) -> Result<Outcome> {
    if args.files.iter().filter(|file| file.as_os_str() == "-").count() > 1 {
        return Err(Error::Usage("standard input can be read only once: write - once".to_owned()));
    }
    let listing = Listing::read(&args.files, Environment::Cluster);
    listing.errors().iter().for_each(|error| eprintln!("error: {}", wording::one_line(error)));
    output.print(&listing.findings(), |_| wording::lines(&listing.to_text()))?;
    Ok(match listing.outcome() {
        larder_lint::Outcome::Good => Outcome::Good,
        larder_lint::Outcome::Faulty => Outcome::Faulty,
        larder_lint::Outcome::Unreadable => Outcome::Failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_twice_is_a_usage_error() {
        let args = args::Lint { files: vec!["-".into(), "-".into()] };
        assert!(matches!(run(&args, &Output::to_terminal(None)), Err(Error::Usage(_))));
    }
}
