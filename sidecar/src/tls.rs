//! TLS configuration for connections from the sidecar to other servers.

use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Creates a client configuration: TLS 1.2 or 1.3, no client certificate. Trusts the PEM bundle `ca_pem` (RFC 7468) or,
/// without it, the system's certificates.
///
/// # Errors
/// If the bundle has no certificate or an unreadable one, or if the system trusts none.
pub fn client_config(ca_pem: Option<&[u8]>) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("the TLS provider does not support TLS 1.2 and 1.3")?
        .with_root_certificates(roots(ca_pem)?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn roots(ca_pem: Option<&[u8]>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = ca_pem else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        ensure!(
            !roots.is_empty(),
            "the system has no trusted certificates: install ca-certificates, or name a CA"
        );
        return Ok(roots);
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.context("the CA bundle is not PEM")?;
        roots.add(certificate).context("the CA bundle has a certificate that can't be used")?;
    }
    ensure!(!roots.is_empty(), "the CA bundle has no certificate");
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::new(vec!["ca.test".to_owned()]).unwrap().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn a_bundle_replaces_the_systems_roots() {
        let bundle = format!("{}\n{}", ca(), ca());
        assert_eq!(roots(Some(bundle.as_bytes())).unwrap().len(), 2);
        assert!(client_config(Some(bundle.as_bytes())).is_ok());
    }

    #[test]
    fn a_bundle_that_trusts_nobody_is_refused() {
        let broken = ca().replace("MII", "nii");
        for (bundle, why) in [
            ("", "no certificate"),
            ("a text", "no certificate"),
            (&broken, "can't be used"),
            ("-----BEGIN CERTIFICATE-----\n%\n-----END CERTIFICATE-----\n", "not PEM"),
        ] {
            let error = format!("{:#}", client_config(Some(bundle.as_bytes())).unwrap_err());
            assert!(error.contains(why), "{bundle}: {error}");
        }
    }
}
