//! Errors: each is one sentence with the remedy.

use std::io;

use crate::{args::program, right::Right, wording::one_line};

/// Result of a step.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Reason for which a command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("can't read the kubeconfig: {0}; set --kubeconfig and --context as for kubectl")]
    Kubeconfig(String),
    #[error(
        "can't reach the API server by proxy {host}: set proxy-url or HTTPS_PROXY to a URL of http, https or socks5"
    )]
    Proxy { host: String },
    #[error("can't reach the API server: {0}; check it by `kubectl version`")]
    Unreachable(String),
    #[error("the API server does not accept your credentials: log in as for kubectl")]
    Unauthorized,
    #[error("{0}")]
    Forbidden(Box<Right>),
    #[error("the API server refuses to {action}: {words}")]
    Refused { action: String, words: String },
    #[error("the cluster has no CachePolicy resource: install Larder's chart, or choose another --context")]
    NotInstalled,
    #[error(
        "namespace {namespace} has no policy {name}: `{} status -A` lists the policies of all namespaces",
        program()
    )]
    NoPolicy { namespace: String, name: String },
    #[error(
        "policy {policy} has no token for its sidecars: the operator creates Secret {secret}, is it running?"
    )]
    NoToken { policy: String, secret: String },
    #[error("no sidecar of policy {0} runs: `{program} status` says why", program = program())]
    NoSidecar(String),
    #[error(
        "pod {pod} has no running sidecar of policy {policy}: `{} status` lists those that do",
        program()
    )]
    NoSuchPod { pod: String, policy: String },
    #[error("can't reach the sidecar in pod {pod}: {reason}")]
    SidecarUnreachable { pod: String, reason: String },
    #[error("the sidecar in pod {pod} refuses: {detail}")]
    SidecarRefused { pod: String, detail: String },
    #[error("{0}")]
    Usage(String),
    #[error("can't write {file}: {error}")]
    Unwritable { file: String, error: io::Error },
    #[error("can't use the terminal: {0}; -o json and pipes need none")]
    Terminal(io::Error),
    #[error("can't start: {0}")]
    Runtime(io::Error),
}

impl Error {
    /// Returns the error of a request to the API server; `action` completes "refuses to".
    pub(crate) fn of_api(error: kube::Error, action: &str) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 401 => Self::Unauthorized,
            kube::Error::Api(status) => match Right::of_refusal(&status.message) {
                Some(right) if status.code == 403 => Self::Forbidden(Box::new(right)),
                _ => Self::Refused { action: action.to_owned(), words: one_line(&status.message) },
            },
            kube::Error::SerdeError(error) => Self::unreadable(action, &error.to_string()),
            error => Self::Unreachable(innermost(&error)),
        }
    }

    /// Returns the error of a response that can't be read; `action` completes "refuses to".
    pub(crate) fn unreadable(action: &str, reason: &str) -> Self {
        Self::Refused {
            action: action.to_owned(),
            words: one_line(&format!(
                "its response can't be read ({reason}); is this program older than the cluster's Larder?"
            )),
        }
    }
}

/// Returns the last cause of an error, which the others only wrap.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    one_line(&cause.to_string())
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn refused(code: u16, message: &str) -> Error {
        let status = Status { code, message: message.to_owned(), ..Status::default() };
        Error::of_api(kube::Error::Api(Box::new(status)), "list pods")
    }

    #[test]
    fn refusals_of_rights_name_the_right() {
        let message = r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "shop""#;
        let said = refused(403, message).to_string();
        assert!(said.starts_with("jane may not list pods in namespace shop"), "{said}");
    }

    #[test]
    fn other_refusals_keep_the_servers_words() {
        let said = refused(403, "admission webhook\u{1b}says no").to_string();
        assert_eq!(said, "the API server refuses to list pods: admission webhook says no");
        assert!(matches!(refused(401, "Unauthorized"), Error::Unauthorized));
    }
}
