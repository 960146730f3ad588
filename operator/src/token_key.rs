//! The key from which the tokens of policies' admin APIs are derived, in a Secret of the operator's own.
//!
//! The operator may not read the Secrets of other namespaces. A token that it derives it knows without reading it, in each replica
//! and after each restart.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, api::PostParams};
use larder_api::{labels, names};

use crate::error::{Error, Result};

/// Length of the key in bytes.
const LENGTH: usize = blake3::KEY_LEN;

/// The key from which tokens are derived.
#[derive(Clone)]
pub struct TokenKey([u8; LENGTH]);

impl TokenKey {
    /// Returns the key, if there is one.
    ///
    /// # Errors
    /// If the API server rejects the request, or the Secret has no key.
    pub async fn find(secrets: &Api<Secret>) -> Result<Option<Self>> {
        secrets.get_opt(names::TOKEN_KEY_SECRET).await?.as_ref().map(Self::read).transpose()
    }

    /// Creates the key, or returns that which another replica has created meanwhile.
    ///
    /// # Errors
    /// If the API server rejects a request, or the Secret has no key.
    pub async fn create(secrets: &Api<Secret>, owner: Option<OwnerReference>) -> Result<Self> {
        let mut key = [0; LENGTH];
        rustls::crypto::ring::default_provider().secure_random.fill(&mut key).map_err(|_| Error::Random)?;
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(names::TOKEN_KEY_SECRET.into()),
                labels: Some(BTreeMap::from([(labels::MANAGED_BY.into(), labels::MANAGER.into())])),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(names::TOKEN_KEY.into(), ByteString(key.into()))])),
            ..Secret::default()
        };
        let options =
            PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
        match secrets.create(&options, &secret).await {
            Ok(_) => Ok(Self(key)),
            // Another replica was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Self::read(&secrets.get(names::TOKEN_KEY_SECRET).await?)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read(secret: &Secret) -> Result<Self> {
        let key = secret.data.as_ref().and_then(|data| data.get(names::TOKEN_KEY));
        let key = key.and_then(|key| key.0.as_slice().try_into().ok());
        key.map(Self).ok_or(Error::BadSecret { secret: names::TOKEN_KEY_SECRET, key: names::TOKEN_KEY })
    }

    /// Returns the token of the policy with this ConfigMap: 64 hexadecimal digits. Another salt makes another token.
    pub fn token(&self, config_map_uid: &str, salt: &str) -> String {
        blake3::keyed_hash(&self.0, format!("{config_map_uid} {salt}").as_bytes()).to_hex().to_string()
    }

    /// Returns a new salt.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn new_salt() -> Result<String> {
        let mut salt = [0; 16];
        rustls::crypto::ring::default_provider().secure_random.fill(&mut salt).map_err(|_| Error::Random)?;
        Ok(salt.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_depends_on_the_key_and_on_the_config_map() {
        let (key, other) = (TokenKey([1; LENGTH]), TokenKey([2; LENGTH]));
        let token = key.token("a", "1");
        assert!(token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
        assert_eq!(token, TokenKey([1; LENGTH]).token("a", "1"));
        for another in [key.token("b", "1"), other.token("a", "1"), key.token("a", "2")] {
            assert_ne!(token, another);
        }
    }

    #[test]
    fn key_of_another_length_is_refused() {
        let secret = |bytes: &[u8]| Secret {
            data: Some(BTreeMap::from([(names::TOKEN_KEY.into(), ByteString(bytes.into()))])),
            ..Secret::default()
        };
        assert!(TokenKey::read(&secret(&[0; LENGTH])).is_ok());
        for secret in [secret(b"short"), Secret::default()] {
            assert!(TokenKey::read(&secret).is_err());
        }
    }
}
