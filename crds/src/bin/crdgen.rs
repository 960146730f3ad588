//! Writes the custom resource definitions; with `--check`, verifies that they are up to date.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use clap::Parser;
use larder_crds::definition;

/// Writes the custom resource definitions into `crds/` and into the chart.
#[derive(Parser)]
struct Arguments {
    /// Write nothing; fail if a file is out of date.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<()> {
    let Arguments { check } = Arguments::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("crds/ is in the workspace")?;
    let mut outputs = Vec::new();
    for definition in definition::all() {
        let file = format!("larder.dev_{}.yaml", definition.spec.names.plural);
        outputs.push((root.join("crds").join(&file), definition::to_yaml(&definition)?));
        let chart = root.join("charts/larder/templates/crds").join(file);
        outputs.push((chart, definition::to_chart_template(definition)?));
    }
    for (path, text) in outputs {
        if check {
            if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
                bail!("{} is out of date: run `./dev generate`", path.display());
            }
        } else {
            fs::create_dir_all(path.parent().context("a file has a folder")?)?;
            fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        }
    }
    Ok(())
}
