//! The configuration file of a sidecar: a `CachePolicy`, as `kubectl apply` takes it or as the operator compiled it.

use larder_api::{API_VERSION, KIND};
use serde::{Deserialize, Serialize};

use crate::{Destinations, spec::CacheSpec};

/// The name of [`Document::follows_coverage`].
pub const FOLLOWS_COVERAGE: &str = "followsCoverage";
/// The name of [`Document::destinations`].
pub const DESTINATIONS: &str = "destinations";

/// A `CachePolicy` as far as a sidecar is concerned. Unknown fields are ignored, so that an older sidecar can read the
/// output of a newer operator; `selector`, `targets`, `capture` and `sidecar` are among them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// `larder.dev/v1alpha1`.
    pub api_version: String,
    /// `CachePolicy`.
    pub kind: String,
    /// Name and namespace of the policy.
    #[serde(default)]
    pub metadata: Metadata,
    /// Configuration of the sidecar.
    #[serde(default)]
    pub spec: CacheSpec,
    /// True in the operator's output for a policy that relies on seeing every write: the sidecar serves only while the
    /// [`Coverage`](crate::Coverage) beside it allows that. A handwritten file is in force at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follows_coverage: bool,
    /// Bounds of the cluster on the servers that the policy's tiers may connect to. A handwritten file has none.
    #[serde(default, skip_serializing_if = "Destinations::is_unbounded")]
    pub destinations: Destinations,
}

/// Identity of the policy of a [`Document`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The policy's name.
    #[serde(default)]
    pub name: String,
    /// The policy's namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The uid, which distinguishes the policy from an earlier one of the same name; empty outside a cluster.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// A text that is not a policy.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The text is not YAML, or a value has the wrong type.
    #[error("can't read the policy: {0}")]
    Yaml(#[from] serde_yaml::Error),
    /// The text is YAML of another kind.
    #[error("expected apiVersion {API_VERSION} and kind {KIND}, found {api_version:?} and {kind:?}")]
    OtherKind {
        /// The `apiVersion` found.
        api_version: String,
        /// The `kind` found.
        kind: String,
    },
}

impl Document {
    /// Creates a document of this version.
    pub fn new(metadata: Metadata, spec: CacheSpec) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            metadata,
            spec,
            follows_coverage: false,
            destinations: Destinations::default(),
        }
    }

    /// Parses a document.
    ///
    /// # Errors
    /// If the text is not YAML, or not a `CachePolicy`.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        let document: Self = serde_yaml::from_str(text)?;
        if document.api_version != API_VERSION || document.kind != KIND {
            return Err(DocumentError::OtherKind { api_version: document.api_version, kind: document.kind });
        }
        Ok(document)
    }

    /// Serializes the document; equal documents give equal text.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(self).expect("a document has only string keys, which YAML can always write")
    }
}

/// Returns the hash that identifies a configuration to operator and sidecar: 16 hex digits over the text of its file.
pub fn hash(text: &str) -> String {
    crate::digest::short(&blake3::hash(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "
apiVersion: larder.dev/v1alpha1
kind: CachePolicy
metadata: {name: shop, namespace: shop, labels: {a: b}}
spec:
  selector: {matchLabels: {app: shop}}
  fromTheFuture: {x: 1}
  routes:
  - name: user
    match: {path: \"/api/users/{id}\"}
    ttl: 120s
";

    #[test]
    fn documents_of_kubectl_and_of_newer_operators_are_read() {
        let document = Document::parse(POLICY).unwrap();
        assert_eq!(document.metadata.name, "shop");
        assert_eq!(document.spec.routes[0].ttl, Some(crate::Duration::from_secs(120)));
        let written = document.to_yaml();
        assert_eq!(Document::parse(&written).unwrap(), document);
        assert_eq!(hash(&written).len(), 16);
    }

    #[test]
    fn error_names_the_place_and_the_cause() {
        let error = Document::parse(&POLICY.replace("120s", "2 minutes")).unwrap_err().to_string();
        assert!(error.contains("\"2 minutes\" is not a duration: write one such as 500ms"), "{error}");
        assert!(error.contains("line"), "{error}");
        let error = Document::parse(&POLICY.replace("CachePolicy", "Deployment")).unwrap_err().to_string();
        assert!(error.contains("kind CachePolicy"), "{error}");
    }
}
