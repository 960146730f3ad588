//! URLs that carry secrets.

use std::{env, fs};

use anyhow::{Context, bail};
use larder_policy::spec::UrlFrom;

/// Reads the URL afresh: a Secret's file may have changed.
///
/// # Errors
/// If it is not there, or if it is a reference that only the operator can follow. The message never has the URL in it.
pub fn read_url(from: &UrlFrom) -> anyhow::Result<String> {
    let url = match from {
        UrlFrom { file: Some(path), .. } => {
            fs::read_to_string(path).with_context(|| format!("reading {path}"))?
        }
        UrlFrom { env: Some(name), .. } => {
            env::var(name).with_context(|| format!("the environment variable {name}"))?
        }
        UrlFrom { secret_key_ref: Some(_), .. } => {
            bail!("secretKeyRef works only in a cluster: set env or file")
        }
        UrlFrom { .. } => bail!("urlFrom is empty: set env or file"),
    };
    Ok(url.trim().to_owned())
}
