//! Connection URLs of Postgres servers.

use anyhow::{Context, bail};
use tokio_postgres::Config;

/// Reads a URL. `sslmode` may also be `verify-ca` or `verify-full`, as libpq has it: TLS with us always verifies both the
/// certificate and the name in it, so these are `require`.
///
/// # Errors
/// If it can't be used. The message has nothing of the URL in it: what is wrong may be a piece of the password.
pub(super) fn parse(url: &str) -> anyhow::Result<Config> {
    // A password may have a question mark in it.
    let host = url.find('@').map_or(0, |at| at + 1);
    let end = url[host..].find('?').map_or(url.len(), |at| host + at);
    let (server, options) = (&url[..end], url.get(end + 1..).unwrap_or_default());
    let mut known = vec![];
    for option in options.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("sslmode", "verify-ca" | "verify-full") => known.push("sslmode=require"),
            ("sslmode", "disable" | "prefer" | "require") => known.push(option),
            ("sslmode", _) => bail!(
                "sslmode of the postgres URL must be one of disable, prefer, require, verify-ca and verify-full"
            ),
            ("sslrootcert", _) => {
                bail!("leave sslrootcert out of the postgres URL, and name the CA in caFrom")
            }
            _ => known.push(option),
        }
    }
    let url = if known.is_empty() { server.to_owned() } else { format!("{server}?{}", known.join("&")) };
    // Past a second '@', a piece of the password would be the name of a database, which Postgres repeats in its errors.
    let is_clear = server.matches('@').count() <= 1;
    let config = if is_clear { url.parse().ok() } else { None };
    config.context(
        "the postgres URL can't be used: write postgres://user:password@host:5432/database, with every character of the \
         password other than letters and digits percent-encoded, and only options of libpq",
    )
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::SslMode;

    use super::*;

    #[test]
    fn modes_are_libpqs() {
        for (mode, is) in [
            ("disable", SslMode::Disable),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::Require),
            ("verify-full", SslMode::Require),
        ] {
            let config = parse(&format!("postgres://me@db/shop?sslmode={mode}&application_name=a")).unwrap();
            assert_eq!(config.get_ssl_mode(), is, "{mode}");
            assert_eq!(config.get_application_name(), Some("a"));
        }
        let config = parse("postgres://me:a?sslmode=b@db/shop").unwrap();
        assert_eq!(
            (config.get_ssl_mode(), config.get_password()),
            (SslMode::Prefer, Some(&b"a?sslmode=b"[..]))
        );
    }

    #[test]
    fn url_error_never_contains_the_password() {
        for (url, says) in [
            ("postgres://me:hunter?2@db/shop?hunter2=x", "percent-encoded"),
            ("postgres://me:hunter@2/x@db/shop", "percent-encoded"),
            ("postgres://me:hunter2@db:port/shop", "percent-encoded"),
            ("hunter2", "percent-encoded"),
            ("postgres://me:hunter2@db/shop?sslmode=allow", "sslmode"),
            ("postgres://me:hunter2@db/shop?sslrootcert=/ca", "caFrom"),
        ] {
            let error = format!("{:#}", parse(url).unwrap_err());
            assert!(error.contains(says) && !error.contains("hunter"), "{url}: {error}");
        }
    }
}
