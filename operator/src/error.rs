//! Errors of the operator.

use larder_api::ListenAddress;

/// Cause of a failed reconciliation or task. Names of variants are the values of the metrics' label `error`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server rejected a request, or did not respond.
    #[error("kubernetes api: {0}")]
    Kubernetes(#[from] kube::Error),
    /// A watch ended, which only happens when the process is ending.
    #[error("a watch has ended; the process is shutting down or must be restarted")]
    WatchEnded,
    /// The objects of a namespace could not be listed in time.
    #[error("the objects of namespace {namespace} could not be listed in time")]
    Unlisted {
        /// The namespace.
        namespace: String,
    },
    /// The objects of a watched namespace may not be listed.
    #[error(
        "Larder does nothing in the namespace {namespace}, because it may not list all of its objects there: {words}; \
         `helm upgrade` creates its Role again"
    )]
    Forbidden {
        /// The namespace.
        namespace: String,
        /// The API server's words.
        words: String,
    },
    /// A certificate could not be made.
    #[error("could not create a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS Secret has invalid contents; it is replaced.
    #[error("the Secret {secret} has no valid {key}; delete it to have it recreated")]
    BadSecret {
        /// The Secret.
        secret: &'static str,
        /// The key in it.
        key: &'static str,
    },
    /// An object of somebody else has a name that the operator needs.
    #[error(
        "{kind} {name} exists and is not Larder's: it has no label {label}. Delete or rename it, or rename the policy"
    )]
    NameTaken {
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
        /// The label, with the value that it should have.
        label: String,
    },
    /// An object could not be turned into JSON.
    #[error("json: {0}")]
    Json(#[from] serde_json::Error),
    /// The system has no random numbers.
    #[error("the system provides no random bytes")]
    Random,
    /// The chart's object for the webhooks is missing.
    #[error(
        "the MutatingWebhookConfiguration {} does not exist: run `helm upgrade`, which creates it",
        larder_api::names::WEBHOOK_CONFIGURATION
    )]
    NoWebhookConfiguration,
    /// The webhook does not respond through its Service.
    #[error("the webhook does not respond at {address}: {reason}")]
    WebhookUnreachable {
        /// URL of the request.
        address: String,
        /// Cause of the failure.
        reason: String,
    },
    /// A server could not be started, or failed.
    #[error("could not serve on {address}: {source}")]
    Serve {
        /// Listen address.
        address: ListenAddress,
        /// Cause of the failure.
        source: std::io::Error,
    },
    /// The webhook cannot serve with a certificate or a client CA.
    #[error("could not serve over TLS: {reason}")]
    Tls {
        /// Cause of the failure.
        reason: String,
    },
    /// The lease cannot be acquired.
    #[error("leader election: {0}")]
    Lease(#[from] kube_lease_manager::LeaseManagerError),
}

impl Error {
    /// Returns the variant's name, for metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Kubernetes(_) => "Kubernetes",
            Self::WatchEnded => "WatchEnded",
            Self::Unlisted { .. } => "Unlisted",
            Self::Forbidden { .. } => "Forbidden",
            Self::Certificate(_) => "Certificate",
            Self::BadSecret { .. } => "BadSecret",
            Self::NameTaken { .. } => "NameTaken",
            Self::Json(_) => "Json",
            Self::Random => "Random",
            Self::NoWebhookConfiguration => "NoWebhookConfiguration",
            Self::WebhookUnreachable { .. } => "WebhookUnreachable",
            Self::Serve { .. } => "Serve",
            Self::Tls { .. } => "Tls",
            Self::Lease(_) => "Lease",
        }
    }
}

/// Result of an operation of the operator.
pub type Result<T, E = Error> = std::result::Result<T, E>;
