//! The token of a policy's admin API: a Secret that is created and never read, because the operator can derive it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, ResourceExt, api::PostParams};
use larder_api::{annotations, labels, names};
use serde_json::json;
use tokio::time::{Duration, Instant};

use super::{
    Context,
    writes::{annotate, created, is_conflict},
};
use crate::{error::Result, owner, token_key::TokenKey};

/// Time for which a policy's token is assumed to exist while no sidecar says that it has none. A look costs a write,
/// because the operator may not read the token.
const TOKEN_TRUST: Duration = Duration::from_secs(12 * 3600);
/// Time after which a token is looked for again of which a sidecar says that it has none: a deleted one is recreated.
const MISSING_TOKEN_TRUST: Duration = Duration::from_secs(300);
/// Time for which a token that was found is assumed to exist, because it may belong to a deleted policy of the same
/// name and be collected with it.
const FOUND_TOKEN_TRUST: Duration = Duration::from_secs(5);

/// A token that exists.
pub(super) struct Token {
    seen: Instant,
    until: Instant,
}

impl Context {
    /// Creates the Secret with the token for the admin API, if it is missing. The token is never read.
    pub(super) async fn put_token(&self, namespace: &str, policy: &str, map: &ConfigMap) -> Result<()> {
        let uid = map.uid().unwrap_or_default();
        let now = Instant::now();
        let mut tokens = self.tokens.lock().await;
        if tokens.get(&uid).is_some_and(|token| now < token.until) {
            return Ok(());
        }
        tokens.retain(|_, token| now < token.until);
        drop(tokens);
        let labels = [(labels::MANAGED_BY, labels::MANAGER), (labels::POLICY, policy)];
        let mut secret = Secret {
            metadata: ObjectMeta {
                name: Some(names::admin_secret(policy)),
                labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                owner_references: Some(vec![owner::config_map(policy, &uid)]),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        };
        let secrets: Api<Secret> = Api::namespaced(self.dependencies.client.clone(), namespace);
        let trial = PostParams { dry_run: true, ..created() };
        let trust = match secrets.create(&trial, &secret).await {
            Ok(_) => {
                // One that was deleted, because others knew it, must not come back. The salt is there before the token, so that a token which
                // the operator can't derive is never made.
                let salt = TokenKey::new_salt()?;
                let token = self.token_key().await?.token(&uid, &salt);
                let maps: Api<ConfigMap> = Api::namespaced(self.dependencies.client.clone(), namespace);
                annotate(&maps, &map.name_any(), json!({ annotations::TOKEN_SALT: salt })).await?;
                secret.string_data = Some(BTreeMap::from([(names::ADMIN_TOKEN_KEY.to_owned(), token)]));
                secrets.create(&created(), &secret).await?;
                TOKEN_TRUST
            }
            Err(error) if is_conflict(&error) => found_trust(map, Timestamp::now()),
            Err(error) => return Err(error.into()),
        };
        self.tokens.lock().await.insert(uid, Token { seen: now, until: now + trust });
        Ok(())
    }

    /// Loads the key of the tokens ahead of time: a right that is missing is said at once.
    pub(super) async fn load_token_key(&self) {
        if let Err(error) = self.token_key().await {
            tracing::warn!(%error, secret = names::TOKEN_KEY_SECRET, "could not load the key of the tokens; retrying when one is needed");
        }
    }

    /// Returns the token of the policy with this ConfigMap.
    pub(super) async fn token(&self, map: &ConfigMap) -> Result<String> {
        let salt = map.annotations().get(annotations::TOKEN_SALT).map_or("", String::as_str);
        Ok(self.token_key().await?.token(&map.uid().unwrap_or_default(), salt))
    }

    async fn token_key(&self) -> Result<&TokenKey> {
        let key = self.token_key.get_or_try_init(async || {
            let arguments = &self.dependencies.arguments;
            let client = &self.dependencies.client;
            let secrets = Api::namespaced(client.clone(), &arguments.namespace);
            if let Some(key) = TokenKey::find(&secrets).await? {
                return Ok(key);
            }
            let owner = owner::find(client, &arguments.cluster_role).await?;
            TokenKey::create(&secrets, owner).await
        });
        key.await
    }

    /// Has the token beside a ConfigMap looked for soon, because a sidecar has none.
    pub(super) async fn doubt_token(&self, config_map: &str) {
        if let Some(token) = self.tokens.lock().await.get_mut(config_map) {
            token.until = token.until.min(token.seen + MISSING_TOKEN_TRUST);
        }
    }
}

/// Returns the time for which a token that was found is assumed to exist. Beside a ConfigMap of some age it is the
/// right one, because tokens of an earlier ConfigMap have been collected by then.
fn found_trust(map: &ConfigMap, now: Timestamp) -> Duration {
    let age =
        map.creation_timestamp().and_then(|created| Duration::try_from(now.duration_since(created.0)).ok());
    if age.is_some_and(|age| age > MISSING_TOKEN_TRUST) { TOKEN_TRUST } else { FOUND_TOKEN_TRUST }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_found_beside_a_new_config_map_is_not_trusted_for_long() {
        let map: ConfigMap =
            serde_json::from_value(json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}))
                .unwrap();
        assert_eq!(found_trust(&map, "2026-01-01T00:01:00Z".parse().unwrap()), FOUND_TOKEN_TRUST);
        assert_eq!(found_trust(&map, "2026-01-01T01:00:00Z".parse().unwrap()), TOKEN_TRUST);
        assert_eq!(found_trust(&ConfigMap::default(), Timestamp::now()), FOUND_TOKEN_TRUST);
    }
}
