//! The command line.

use std::{net::SocketAddr, time::Duration};

use clap::Parser;

/// A deliberately slow shop.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Where it listens.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub(crate) listen: SocketAddr,

    /// Minimum time of every read, such as 300ms.
    #[arg(long, default_value = "300ms", value_parser = duration)]
    pub(crate) delay: Duration,

    /// Database of the shop, such as postgres://user:password@postgres:5432/shop.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: tokio_postgres::Config,
}

fn duration(text: &str) -> Result<Duration, jiff::Error> {
    text.parse::<jiff::SignedDuration>()?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_has_a_unit() {
        let delay = |text| {
            Args::try_parse_from(["shop", "--database-url", "postgres://db/shop", "--delay", text])
                .map(|args| args.delay)
        };
        assert_eq!(delay("300ms").unwrap(), Duration::from_millis(300));
        assert_eq!(delay("0s").unwrap(), Duration::ZERO);
        assert!(delay("300").is_err());
        assert!(delay("-1s").is_err());
    }
}
