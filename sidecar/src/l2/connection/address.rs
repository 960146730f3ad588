//! Where Redis is, as a URL says it.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates};
use rustls::ClientConfig;

use crate::{secret::Secrets, tls};

/// The servers that a URL names, and how they are spoken to.
pub(super) struct Servers {
    /// One for each host, all alike but for the address; never empty.
    pub(super) nodes: Vec<ConnectionInfo>,
    /// Whom to trust in place of the system's roots; `None` without TLS.
    pub(super) certificates: Option<TlsCertificates>,
    /// The same for connections without the client library; `None` without TLS, or without anybody to trust.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Secrets that no message may contain.
    hidden: Vec<String>,
}

impl Servers {
    /// Reads a URL: `redis://user:password@host:port,host:port/db`, or `rediss://` for TLS.
    ///
    /// # Errors
    /// If it can't be used, or the CA bundle can't. The message has no password in it.
    pub(super) fn read(Secrets { url, ca }: &Secrets) -> anyhow::Result<Self> {
        let (scheme, rest) =
            url.split_once("://").context("the URL has no scheme: write redis:// or rediss://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        ensure!(
            !path.contains('@'),
            "the URL has an @ after the hosts: write / ? # in the user's name and the password as %2F %3F %23"
        );
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let at = if login.is_empty() { "" } else { "@" };
        let nodes = hosts
            .split(',')
            .map(|host| format!("{scheme}://{login}{at}{host}{path}").into_connection_info())
            .collect::<Result<Vec<_>, _>>()
            .context("the URL can't be used")?;
        let is_tls = nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::TcpTls { .. }));
        let (certificates, tls) = match ca {
            Some(_) if !is_tls => bail!("caFrom is for TLS: write rediss:// in the URL"),
            Some(pem) => {
                let config = tls::client_config(Some(pem))?;
                (Some(TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) }), Some(config))
            }
            // The client library says why, if the system trusts nobody.
            None if is_tls => (None, tls::client_config(None).ok()),
            None => (None, None),
        };
        let encoded = login.split_once(':').map(|(_, password)| password.to_owned());
        let decoded = nodes.iter().find_map(|node| node.redis_settings().password()).map(str::to_owned);
        let hidden = encoded.into_iter().chain(decoded).filter(|password| !password.is_empty()).collect();
        Ok(Self { nodes, certificates, tls, hidden })
    }

    /// A client of one of the servers, or of another that is spoken to in the same way.
    pub(super) fn client(&self, node: ConnectionInfo) -> redis::RedisResult<Client> {
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(node, certificates.clone()),
            None => Client::open(node),
        }
    }

    /// The hosts that the URL names.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter_map(|node| match node.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => Some(host.as_str()),
            _ => None,
        })
    }

    /// A message without the password: a server that does not know a command repeats its arguments.
    pub(super) fn censored(&self, message: String) -> String {
        self.hidden.iter().fold(message, |message, hidden| message.replace(hidden, "***"))
    }
}

/// The same as `node`, elsewhere: at `HOST:PORT`, as a redirection says it. Without a host, on the same one.
pub(super) fn redirected(node: &ConnectionInfo, address: &str) -> anyhow::Result<ConnectionInfo> {
    let (to, port) = address.rsplit_once(':').context("a redirection to no port")?;
    let port = port.parse().context("a redirection to no port")?;
    let or = |host: &String| if to.is_empty() { host.clone() } else { to.to_owned() };
    let address = match node.addr() {
        ConnectionAddr::Tcp(host, _) => ConnectionAddr::Tcp(or(host), port),
        ConnectionAddr::TcpTls { host, insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host: or(host),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => bail!("a redirection from something without a port"),
    };
    Ok(node.clone().set_addr(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> anyhow::Result<Servers> {
        Servers::read(&Secrets { url: url.to_owned(), ca: None })
    }

    #[test]
    fn a_url_may_name_several_hosts() {
        let servers = read("redis://us%40er:p%2Fw,d@a:1,b,[::1]:3/2").unwrap();
        let addresses: Vec<_> = servers.nodes.iter().map(|node| node.addr().to_string()).collect();
        assert_eq!(addresses, ["a:1", "b:6379", "::1:3"]);
        for node in &servers.nodes {
            let settings = node.redis_settings();
            assert_eq!((settings.username(), settings.password()), (Some("us@er"), Some("p/w,d")));
            assert_eq!(settings.db(), 2);
        }
        let plain = read("redis://localhost").unwrap();
        assert_eq!(plain.nodes[0].redis_settings().password(), None);
        assert!(matches!(read("rediss://a").unwrap().nodes[0].addr(), ConnectionAddr::TcpTls { .. }));
    }

    #[test]
    fn no_message_has_the_password() {
        for url in [
            "hunter2",
            "http://u:hunter2@a",
            "redis://u:hunter2@",
            "redis://u:hunter2@a,",
            "redis://u:hunter2@a:b",
            "redis://u:hunter2@a/zero",
            "redis://u:hunter2@a:99999",
            "redis://u:12/hunter2@a",
            "redis://u:12?hunter2@a",
            "redis://u:12#hunter2@a",
            "redis://u:hunter2%ff@a",
            "redis://u:hunter2@a?protocol=9",
        ] {
            let error = format!("{:#}", read(url).err().unwrap());
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
        let servers = read("redis://u:hunter%322@a").unwrap();
        for repeated in ["unknown command 'AUTH', args 'u' 'hunter22'", "hunter%322"] {
            let censored = servers.censored(repeated.to_owned());
            assert!(!censored.contains("hunter") && censored.contains("***"), "{censored}");
        }
    }

    #[test]
    fn a_ca_is_for_tls() {
        let read = |url: &str, ca: &str| {
            let secrets = Secrets { url: url.to_owned(), ca: Some(ca.as_bytes().to_vec()) };
            Servers::read(&secrets).map(drop).map_err(|error| format!("{error:#}"))
        };
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["ca.test".to_owned()]).unwrap();
        let ca = parameters.self_signed(&key).unwrap().pem();
        assert_eq!(read("rediss://a", &ca), Ok(()));
        assert!(read("redis://a", &ca).unwrap_err().contains("rediss://"));
        assert!(read("rediss://a", "nothing").unwrap_err().contains("no certificate"));
    }

    #[test]
    fn a_redirection_changes_nothing_but_the_address() {
        let node = &read("redis://u:p@a:1").unwrap().nodes[0];
        let to = |address| redirected(node, address).map(|node| node.addr().to_string());
        assert_eq!(to("b:2").unwrap(), "b:2");
        assert_eq!(to(":2").unwrap(), "a:2");
        assert_eq!(to("::1:2").unwrap(), "::1:2");
        assert!(to("b").is_err());
        assert_eq!(redirected(node, "b:2").unwrap().redis_settings().password(), Some("p"));
    }
}
