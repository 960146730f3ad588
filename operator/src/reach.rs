//! Reachability of the webhook as the API server calls it: through its Service, with a certificate that its bundle
//! verifies. Workloads are not restarted for missed pods while the webhook is unreachable.

use std::{sync::Arc, time::Duration};

use http_body_util::Empty;
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::error::{Error, Result};

const REACH_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests the webhook's readiness through its Service.
///
/// # Errors
/// If there is no response, no trust or no readiness.
pub async fn reach(service: &str, namespace: &str, bundle: &str) -> Result<()> {
    let host = format!("{service}.{namespace}.svc");
    let unreachable =
        |reason: String| Error::WebhookUnreachable { address: format!("https://{host}/readyz"), reason };
    match tokio::time::timeout(REACH_TIMEOUT, ask(&host, bundle)).await {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        Ok(Ok(status)) => Err(unreachable(format!("the response has status {status}"))),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("no response within 2 s".into())),
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn ask(host: &str, bundle: &str) -> Result<StatusCode, AnyError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect((host, 443)).await?;
    let name = ServerName::try_from(host.to_owned())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/readyz").header("host", host).body(Empty::<Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    connection.abort();
    Ok(status)
}
