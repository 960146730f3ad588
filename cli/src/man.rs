//! `larder man`.

use std::io;

use clap::CommandFactory;

use crate::{
    args::{self, Args},
    error::{Error, Result},
    outcome::Outcome,
    output,
};

/// Prints the manual page of the program, or writes one for each command into a folder.
pub(crate) fn run(args: &args::Man) -> Result<Outcome> {
    match &args.dir {
        None => output::print(&page().map_err(|error| unwritable("standard output", error))?)?,
        Some(folder) => {
            let written = clap_mangen::generate_to(Args::command(), folder);
            written.map_err(|error| unwritable(&folder.display().to_string(), error))?;
        }
    }
    Ok(Outcome::Good)
}

fn page() -> io::Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Args::command()).render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn unwritable(file: &str, error: io::Error) -> Error {
    Error::Unwritable { file: file.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_lists_commands_and_exit_codes() {
        let page = page().unwrap();
        for expected in [".TH larder", "larder\\-check", "larder\\-policy", "larder\\-purge", "Exit codes:"] {
            assert!(page.contains(expected), "no {expected:?} in:\n{page}");
        }
    }
}
