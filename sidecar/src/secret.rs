//! Secrets, and the configuration that contains or references them.

use std::{env, fmt, fs, path::Path};

use anyhow::{Context, bail};
use http::{HeaderMap, header::AUTHORIZATION};
use larder_policy::spec::ValueFrom;

/// URL of a server and the CA that it is trusted by, as read at some moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    /// URL, which may contain a password.
    pub url: String,
    /// CA certificates in PEM, if other ones than the system's are trusted.
    pub ca: Option<Vec<u8>>,
}

impl Secrets {
    /// Reads both, each time from their files.
    ///
    /// # Errors
    /// If one of them can't be read. The message has no secret in it.
    pub fn read(url_from: &ValueFrom, ca_from: Option<&ValueFrom>) -> anyhow::Result<Self> {
        let ca = ca_from.map(read_ca).transpose()?;
        Ok(Self { url: read_url(url_from)?, ca })
    }
}

/// Hides the contents.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

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

/// Compares a token with the one in a file, which is read each time, because a Secret's file may change.
///
/// # Errors
/// The reason why it permits nothing.
pub async fn check_token(file: Option<&Path>, given: Option<&[u8]>) -> Result<(), &'static str> {
    let Some(file) = file else {
        return Err("no token is configured: start the sidecar with --admin-token-file");
    };
    let given = given.ok_or("send the token: Authorization: Bearer TOKEN")?;
    let token = tokio::fs::read(file).await.map_err(|_| "the token file can't be read")?;
    let token = token.trim_ascii();
    // Hashes of equal length are compared in constant time.
    let is_it = blake3::hash(token) == blake3::hash(given) && !token.is_empty();
    if is_it { Ok(()) } else { Err("the token is wrong") }
}

/// Returns the token in `Authorization: Bearer TOKEN` (RFC 6750, section 2.1).
pub fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, given) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked("Bearer".len())?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"Bearer") && matches!(given, [] | [b' ', ..]);
    // Nothing behind the scheme, and so no blank either, is an empty token.
    is_bearer.then(|| given.strip_prefix(b" ").unwrap_or_default())
}
