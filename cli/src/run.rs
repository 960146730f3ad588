//! The program from its arguments to its exit code.

use std::{ffi::OsString, process::ExitCode};

use clap::FromArgMatches;

use crate::{
    args::{self, Args, Command},
    check,
    cluster::Cluster,
    complete, completions,
    error::{Error, Result},
    explain, init, lint, man,
    outcome::Outcome,
    output::{self, Output},
    purge, sql, stats, status, tail, top, wording,
};

/// Runs a command; its arguments begin with the program's name.
pub(crate) fn run(arguments: Vec<OsString>) -> ExitCode {
    if complete::is_asked(arguments.first()) {
        let printed = output::print(&complete::candidates(&arguments[1..]));
        return ExitCode::from(printed.map_or(Outcome::Failed, |()| Outcome::Good) as u8);
    }
    args::remember(arguments.first());
    let mut command = args::command(arguments.first());
    let parsed = command
        .try_get_matches_from_mut(arguments)
        .and_then(|mut matches| Args::from_arg_matches_mut(&mut matches));
    // Usage errors end the process with 2, and help with 0.
    let args = parsed.unwrap_or_else(|error| error.format(&mut command).exit());
    let outcome = perform(args).unwrap_or_else(|error| {
        eprint!("error: {}", wording::lines(&error.to_string()));
        Outcome::Failed
    });
    ExitCode::from(outcome as u8)
}

fn perform(args: Args) -> Result<Outcome> {
    let Args { connection, output, command } = args;
    let output = Output::to_terminal(output);
    let command = match command {
        Command::Lint(args) => return lint::run(&args, &output),
        Command::Sql(args) => return sql::run(args),
        Command::Completions(args) => return completions::run(&args),
        Command::Man(args) => return man::run(&args),
        command => command,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::Runtime)?.block_on(async {
        let command = match command {
            Command::Policy(args::Policy { command: args::PolicyCommand::Init(args) }) => {
                return init::run(args, &connection, &output).await;
            }
            command => command,
        };
        let cluster = Cluster::connect(&connection).await?;
        match command {
            Command::Check(args) => check::run(&args, &cluster, &output).await,
            Command::Status(args) => status::run(&args, &cluster, &output).await,
            Command::Stats(args) => stats::run(&args, &cluster, &output).await,
            Command::Top(args) => top::run(&args, &cluster, &output).await,
            Command::Tail(args) => tail::run(&args, &cluster, &output).await,
            Command::Explain(args) => explain::run(&args, &cluster, &output).await,
            Command::Purge(args) => purge::run(&args, &cluster, &output).await,
            Command::Lint(_)
            | Command::Policy(_)
            | Command::Sql(_)
            | Command::Completions(_)
            | Command::Man(_) => Ok(Outcome::Good),
        }
    })
}
