//! The contents of the TLS Secret, as found and as required at a given time.
//!
//! # Guarantees
//! - A leaf is renewed after two thirds of its lifetime, and so is a CA.
//! - A new CA is in the bundle at least [`HEAD_START`] before it signs anything, so that API servers know it by then.
//! - The bundle retains the previous CA until none of its leaves can be in use.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::error::{Error, Result};
use larder_api::{annotations, names};

const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(30 * 24);
const CA_LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// Minimum time that a new CA is in the bundle before it signs.
const HEAD_START: SignedDuration = SignedDuration::from_hours(1);
/// Tolerated clock difference: certificates are valid from this long before their creation.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

const CA: &str = "ca";
const NEXT_CA: &str = "next-ca";
const PREVIOUS_CA: &str = "previous-ca";
const LEAF: &str = "tls";
const BUNDLE: &str = "ca-bundle.crt";

/// A certificate, its key and its time of creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: String,
    /// Time of creation.
    pub at: Timestamp,
}

/// Contents of the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Material {
    /// The certificate that the webhook serves with.
    pub leaf: Issued,
    /// The CA that signs leaves.
    pub ca: Issued,
    /// The CA that will sign leaves next.
    pub next_ca: Option<Issued>,
    /// The CA that signed leaves before.
    pub previous_ca: Option<Issued>,
}

impl Material {
    /// Parses a Secret.
    ///
    /// # Errors
    /// If something is missing or is not text.
    pub fn read(secret: &Secret) -> Result<Self> {
        let text = |key: String| {
            let bytes = &secret.data.as_ref()?.get(&key)?.0;
            String::from_utf8(bytes.clone()).ok()
        };
        let issued = |name: &str| {
            let at =
                secret.metadata.annotations.as_ref()?.get(&annotations::issued_at(name))?.parse().ok()?;
            Some(Issued { certificate: text(format!("{name}.crt"))?, key: text(format!("{name}.key"))?, at })
        };
        let bad = |key| Error::BadSecret { secret: names::TLS_SECRET, key };
        let material = Self {
            leaf: issued(LEAF).ok_or_else(|| bad(LEAF))?,
            ca: issued(CA).ok_or_else(|| bad(CA))?,
            next_ca: issued(NEXT_CA),
            previous_ca: issued(PREVIOUS_CA),
        };
        KeyPair::from_pem(&material.ca.key).map_err(|_| bad(CA))?;
        KeyPair::from_pem(&material.leaf.key).map_err(|_| bad(LEAF))?;
        Ok(material)
    }

    /// Returns every CA that may have signed a leaf in use.
    pub fn bundle(&self) -> String {
        let others = self.next_ca.iter().chain(&self.previous_ca);
        std::iter::once(&self.ca).chain(others).map(|ca| ca.certificate.as_str()).collect()
    }

    /// Returns the Secret's data.
    pub fn data(&self) -> BTreeMap<&'static str, String> {
        let Self { leaf, ca, next_ca, previous_ca } = self;
        let mut data = BTreeMap::from([
            ("ca.crt", ca.certificate.clone()),
            ("ca.key", ca.key.clone()),
            ("tls.crt", leaf.certificate.clone()),
            ("tls.key", leaf.key.clone()),
            (BUNDLE, self.bundle()),
        ]);
        if let Some(ca) = next_ca {
            data.insert("next-ca.crt", ca.certificate.clone());
            data.insert("next-ca.key", ca.key.clone());
        }
        if let Some(ca) = previous_ca {
            data.insert("previous-ca.crt", ca.certificate.clone());
            data.insert("previous-ca.key", ca.key.clone());
        }
        data
    }

    /// Returns the Secret's annotations: the time of each creation.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let Self { leaf, ca, next_ca, previous_ca } = self;
        let all = [
            (LEAF, Some(leaf)),
            (CA, Some(ca)),
            (NEXT_CA, next_ca.as_ref()),
            (PREVIOUS_CA, previous_ca.as_ref()),
        ];
        all.into_iter()
            .filter_map(|(name, issued)| Some((annotations::issued_at(name), issued?.at.to_string())))
            .collect()
    }
}

/// Returns the contents that the Secret must have at `now`, if they differ from the current ones.
///
/// # Errors
/// If a certificate could not be created.
pub(super) fn renew(
    current: Option<Material>,
    dns_names: &[String],
    now: Timestamp,
) -> Result<Option<Material>> {
    let Some(current) = current.filter(|material| now < material.ca.at + CA_LIFE) else {
        let ca = new_ca(now)?;
        return Ok(Some(Material {
            leaf: new_leaf(&ca, dns_names, now)?,
            ca,
            next_ca: None,
            previous_ca: None,
        }));
    };
    let mut material = current.clone();
    if material.previous_ca.as_ref().is_some_and(|ca| now >= ca.at + CA_LIFE) {
        material.previous_ca = None;
    }
    if material.next_ca.is_none() && now >= material.ca.at + CA_LIFE * 2 / 3 {
        material.next_ca = Some(new_ca(now)?);
    }
    if now >= material.leaf.at + LEAF_LIFE * 2 / 3 {
        if let Some(next) = material.next_ca.take_if(|next| now >= next.at + HEAD_START) {
            material.previous_ca = Some(std::mem::replace(&mut material.ca, next));
        }
        material.leaf = new_leaf(&material.ca, dns_names, now)?;
    }
    Ok((material != current).then_some(material))
}

fn new_ca(now: Timestamp) -> Result<Issued> {
    let key = KeyPair::generate()?;
    let certificate = ca_params(now).self_signed(&key)?;
    Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem(), at: now })
}

/// Returns the parameters of a CA. The name is derived from the time, so that a CA can sign when only its key and its
/// time are known, and two CAs never share a name.
fn ca_params(at: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Larder webhook CA {}", at.as_second()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + seconds(at - SKEW);
    params.not_after = epoch + seconds(at + CA_LIFE);
    params
}

fn new_leaf(ca: &Issued, dns_names: &[String], now: Timestamp) -> Result<Issued> {
    let issuer = Issuer::new(ca_params(ca.at), KeyPair::from_pem(&ca.key)?);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(dns_names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Larder webhook");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + seconds(now - SKEW);
    params.not_after = epoch + seconds((now + LEAF_LIFE).min(ca.at + CA_LIFE));
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem(), at: now })
}

/// Returns the time since 1970.
fn seconds(at: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    };

    use super::*;

    fn names() -> Vec<String> {
        vec!["larder-webhook.larder-system.svc".into()]
    }

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn days(number: i64) -> Timestamp {
        start() + SignedDuration::from_hours(24 * number)
    }

    fn fresh() -> Material {
        renew(None, &names(), start()).unwrap().unwrap()
    }

    /// Returns true if a client that trusts `bundle` accepts `leaf` at `at`.
    fn trusts(bundle: &str, leaf: &str, at: Timestamp) -> bool {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
        let name = ServerName::try_from("larder-webhook.larder-system.svc").unwrap();
        verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::since_unix_epoch(seconds(at))).is_ok()
    }

    fn written(material: &Material) -> Secret {
        let data = material.data().into_iter().map(|(key, text)| (key.into(), ByteString(text.into_bytes())));
        let mut secret = Secret { data: Some(data.collect()), ..Secret::default() };
        secret.metadata.annotations = Some(material.annotations());
        secret
    }

    #[test]
    fn fresh_authority_is_trusted_and_round_trips() {
        let material = fresh();
        assert!(trusts(&material.bundle(), &material.leaf.certificate, start()));
        assert_eq!(Material::read(&written(&material)).unwrap(), material);
        assert_eq!(renew(Some(material), &names(), days(19)).unwrap(), None);
    }

    #[test]
    fn a_leaf_is_renewed_after_two_thirds_of_its_life_by_the_same_ca() {
        let before = fresh();
        let after = renew(Some(before.clone()), &names(), days(20)).unwrap().unwrap();
        assert_ne!(after.leaf, before.leaf);
        assert_eq!(after.ca, before.ca);
        assert!(trusts(&before.bundle(), &after.leaf.certificate, days(45)));
        assert!(!trusts(&before.bundle(), &before.leaf.certificate, days(31)));
    }

    #[test]
    fn over_three_years_every_leaf_is_trusted_by_the_bundle_of_an_hour_before() {
        let mut material = fresh();
        let mut bundle_before = material.bundle();
        let mut authorities = vec![material.ca.clone()];
        for hour in 1..24 * 365 * 3 {
            let now = start() + SignedDuration::from_hours(hour);
            if let Some(next) = renew(Some(material.clone()), &names(), now).unwrap() {
                assert!(trusts(&bundle_before, &next.leaf.certificate, now), "hour {hour}");
                assert!(trusts(&next.bundle(), &material.leaf.certificate, now), "hour {hour}");
                if authorities.last() != Some(&next.ca) {
                    authorities.push(next.ca.clone());
                }
                material = next;
            }
            bundle_before = material.bundle();
        }
        assert!(authorities.len() >= 4, "{}", authorities.len());
    }

    #[test]
    fn everything_is_recreated_after_a_year_of_absence() {
        let before = fresh();
        let after = renew(Some(before.clone()), &names(), days(366)).unwrap().unwrap();
        assert_ne!(after.ca, before.ca);
        assert!(trusts(&after.bundle(), &after.leaf.certificate, days(366)));
    }

    #[test]
    fn broken_secret_is_rejected() {
        let mut secret = written(&fresh());
        secret.data.as_mut().unwrap().insert("ca.key".into(), ByteString(b"x".to_vec()));
        assert!(Material::read(&secret).is_err());
    }
}
