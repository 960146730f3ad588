//! `./dev bench instructions`: the instructions of each path of a request, beside those on record.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use larder_bench::instructions::{Finding, Record, compare, measure};

/// Counts the instructions that the sidecar executes for each request, and fails if they are more than those on record.
#[derive(Parser)]
struct Arguments {
    /// Write what is counted into the record.
    #[arg(long)]
    update: bool,

    /// The record.
    #[arg(long, value_name = "FILE", default_value = "bench/instructions.yaml")]
    record: PathBuf,

    /// The sidecar.
    #[arg(long, value_name = "FILE")]
    larder: PathBuf,

    /// A folder for configurations, logs and profiles; its creator removes it.
    #[arg(long, value_name = "FOLDER")]
    scratch: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let scratch = arguments.scratch.canonicalize().context("--scratch")?;
    let measured = measure::measure(&arguments.larder, &scratch)?;
    if arguments.update {
        measured.write(&arguments.record)?;
        return say(&format!("{} is written\n{}", arguments.record.display(), measured.summary(None)));
    }
    let record = Record::read(&arguments.record)?;
    say(&measured.summary(Some(&record)))?;
    let mut is_worse = false;
    for finding in compare(&record, &measured) {
        match finding {
            Finding::Worse(text) => {
                is_worse = true;
                say(&text)?;
            }
            Finding::Better(text) => {
                say(&format!("{text}: put it on record by `./dev bench instructions --update`"))?
            }
        }
    }
    ensure!(!is_worse, "a request costs more than is on record");
    Ok(())
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{text}")?)
}
