//! Secrets, and the configuration that contains or references them.

use std::{env, fs};

use anyhow::{Context, bail};
use larder_policy::spec::ValueFrom;

/// Reads a URL, each time from its file, because a Secret's file may change.
///
/// # Errors
/// If it is missing, or if it is a reference that only the operator can follow. The message never contains the URL.
pub fn read_url(from: &ValueFrom) -> anyhow::Result<String> {
    Ok(read(from).context("urlFrom")?.trim().to_owned())
}

/// Reads a bundle of CA certificates, each time from its file.
///
/// # Errors
/// If it is missing, or if it is a reference that only the operator can follow.
pub fn read_ca(from: &ValueFrom) -> anyhow::Result<Vec<u8>> {
    Ok(read(from).context("caFrom")?.into_bytes())
}

fn read(from: &ValueFrom) -> anyhow::Result<String> {
    match from {
        ValueFrom { file: Some(path), .. } => {
            fs::read_to_string(path).with_context(|| format!("can't read {path}"))
        }
        ValueFrom { env: Some(name), .. } => {
            env::var(name).with_context(|| format!("can't read the environment variable {name}"))
        }
        ValueFrom { secret_key_ref: Some(_), .. } => {
            bail!("secretKeyRef works only in a cluster: set env or file")
        }
        ValueFrom { .. } => bail!("the reference is empty: set env or file"),
    }
}
