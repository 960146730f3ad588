//! `larder completions`.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::{
    args::{self, Args},
    error::Result,
    outcome::Outcome,
    output,
};

/// Prints the completion script of a shell.
pub(crate) fn run(args: &args::Completions) -> Result<Outcome> {
    output::print(&script(args.shell))?;
    Ok(Outcome::Good)
}

fn script(shell: args::Completed) -> String {
    let mut script = Vec::new();
    generate(Shell::from(shell), &mut Args::command(), "larder", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn scripts_complete_every_command() {
        for shell in args::Completed::value_variants() {
            let script = script(*shell);
            for command in ["check", "lint", "status", "stats", "top", "tail", "explain", "purge", "policy"] {
                assert!(script.contains(command), "{shell:?} without {command}");
            }
        }
    }
}
