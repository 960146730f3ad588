//! Writes the OpenAPI document of the admin API, or checks with `--check` that the written one is up to date.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Writes the document of the admin API into `sidecar/openapi.json`.
#[derive(Parser)]
struct Arguments {
    /// Write nothing; fail if the file is out of date.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<()> {
    let Arguments { check } = Arguments::parse();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let text = larder_sidecar::admin::document();
    if !check {
        return fs::write(&path, text).with_context(|| format!("could not write {}", path.display()));
    }
    if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
        bail!("{} is out of date: run `./dev generate`", path.display());
    }
    Ok(())
}
