//! Command line of the operator.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use larder_api::{ListenAddress, names, ports};

use crate::bounds::Bounds;

/// The Larder operator: a controller and an admission webhook.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Arguments {
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands of the operator.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the controller (on the leading replica) and the webhook (on every replica). A flag that is given again counts in
    /// place of the earlier one.
    #[command(args_override_self = true)]
    Run(Box<RunArguments>),
    /// Checks an installation from inside the cluster, and says how to correct what does not work.
    Check(CheckArguments),
}

/// Options of `check`.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArguments {
    /// The operator's own namespace.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,

    /// The Service through which the API server reaches the webhook, on port 443.
    #[arg(long, env = "LARDER_WEBHOOK_SERVICE", default_value = names::WEBHOOK_SERVICE)]
    pub webhook_service: String,

    /// Seconds for which a failed check is repeated.
    #[arg(long, env = "LARDER_CHECK_PATIENCE_SECONDS", default_value_t = 30)]
    pub patience_seconds: u16,
}

/// Options of `run`. Every flag can be given as an environment variable.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArguments {
    /// Settings of injected sidecars.
    #[command(flatten)]
    pub sidecar: SidecarSettings,

    /// The operator's own namespace.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,

    /// Namespaces in which policies are in force; others are not watched. Default: all.
    #[arg(long, env = "LARDER_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,

    /// The name of the operator's own pod, which identifies the holder of the lease.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,

    /// The Service through which the API server reaches the webhook, on port 443.
    #[arg(long, env = "LARDER_WEBHOOK_SERVICE", default_value = names::WEBHOOK_SERVICE)]
    pub webhook_service: String,

    /// Listen address of the webhook; a port alone listens on every address.
    #[arg(long, env = "LARDER_WEBHOOK_LISTEN", default_value = ":9443")]
    pub webhook_listen: ListenAddress,

    /// Seconds that the API server waits for the webhook before it goes on by the failure policy.
    #[arg(
        long,
        env = "LARDER_WEBHOOK_TIMEOUT_SECONDS",
        default_value_t = 2,
        value_parser = clap::value_parser!(u8).range(1..=30)
    )]
    pub webhook_timeout_seconds: u8,

    /// A file with the CA, PEM, whose clients may call the webhook, if the API server presents a certificate. It is read
    /// again when it changes. Default: everybody may call.
    #[arg(long, env = "LARDER_WEBHOOK_CLIENT_CA")]
    pub webhook_client_ca: Option<PathBuf>,

    /// Listen address of /livez, /readyz and /metrics.
    #[arg(long, env = "LARDER_HEALTH_LISTEN", default_value = ":8081")]
    pub health_listen: ListenAddress,

    /// Treatment of new pods when no webhook responds: Ignore starts them without a sidecar, Fail rejects them.
    #[arg(long, env = "LARDER_FAILURE_POLICY", default_value = "Ignore")]
    pub failure_policy: FailurePolicy,

    /// Seconds after which a restart is undone whose pods do not start because of the sidecar.
    #[arg(
        long,
        env = "LARDER_ROLLOUT_TIMEOUT_SECONDS",
        default_value_t = 300,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub rollout_timeout_seconds: u32,

    /// Maximum number of workloads of the cluster that are restarted at a time.
    #[arg(
        long,
        env = "LARDER_MAX_CONCURRENT_ROLLOUTS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub max_concurrent_rollouts: u16,

    /// Request headers that identify a user under every policy, besides those that are known: names, with a * at the
    /// start or the end at most.
    #[arg(long, env = "LARDER_IDENTITY_HEADERS", value_delimiter = ',', value_parser = identity_header)]
    pub identity_headers: Vec<String>,

    /// Bounds on what policies may ask for, as JSON: maxMemory, maxCPU, maxTTL, maxStale, captureModes, sources.
    #[arg(long, env = "LARDER_POLICY_BOUNDS", default_value = "{}", value_parser = Bounds::parse)]
    pub policy_bounds: Bounds,

    /// The ClusterRole that owns the webhook configuration, so that deleting the role deletes the configuration.
    #[arg(long, env = "LARDER_CLUSTER_ROLE", default_value = names::OPERATOR)]
    pub cluster_role: String,
}

impl RunArguments {
    /// Returns the time after which a restart is undone whose pods do not start because of the sidecar.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.rollout_timeout_seconds.into())
    }
}

fn identity_header(text: &str) -> Result<String, String> {
    let is_pattern = larder_policy::credentials::is_pattern(text);
    let message = "write the name of a header, with a * at the start or the end at most, such as x-shop-*";
    is_pattern.then(|| text.to_owned()).ok_or_else(|| message.to_owned())
}

/// Settings of injected sidecars that no policy decides.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct SidecarSettings {
    /// The sidecar's image.
    #[arg(id = "sidecar_image", long = "sidecar-image", env = "LARDER_SIDECAR_IMAGE")]
    pub image: String,

    /// Pull policy of the image. Default: Kubernetes' own.
    #[arg(
        id = "sidecar_image_pull_policy",
        long = "sidecar-image-pull-policy",
        env = "LARDER_SIDECAR_IMAGE_PULL_POLICY"
    )]
    pub pull_policy: Option<PullPolicy>,

    /// Names of Secrets for pulling the image, which are added to injected pods and must exist in their namespaces.
    #[arg(
        id = "sidecar_image_pull_secrets",
        long = "sidecar-image-pull-secrets",
        env = "LARDER_SIDECAR_IMAGE_PULL_SECRETS",
        value_delimiter = ',',
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub pull_secrets: Vec<String>,
    /// The image with nft, for init containers that redirect ports to the sidecar. Without it, policies may not ask for
    /// capture.mode Redirect.
    #[arg(id = "redirect_image", long = "redirect-image", env = "LARDER_REDIRECT_IMAGE")]
    pub redirect_image: Option<String>,

    /// Pull policy of that image. Default: Kubernetes' own.
    #[arg(
        id = "redirect_image_pull_policy",
        long = "redirect-image-pull-policy",
        env = "LARDER_REDIRECT_IMAGE_PULL_POLICY"
    )]
    pub redirect_pull_policy: Option<PullPolicy>,

    /// The sidecar's port for the first target; each further target takes the next number.
    #[arg(
        id = "sidecar_data_port",
        long = "sidecar-data-port",
        env = "LARDER_SIDECAR_DATA_PORT",
        default_value_t = ports::DATA,
        value_parser = clap::value_parser!(u16).range(1024..=65500)
    )]
    pub data_port: u16,

    /// The application's port for the first target whose number the sidecar takes (capture.mode PortVariable); each further
    /// target takes the next number.
    #[arg(
        id = "sidecar_application_port",
        long = "sidecar-application-port",
        env = "LARDER_SIDECAR_APPLICATION_PORT",
        default_value_t = ports::APPLICATION,
        value_parser = clap::value_parser!(u16).range(1024..=65500)
    )]
    pub application_port: u16,

    /// The port of the sidecar's health, metrics and admin API.
    #[arg(
        id = "sidecar_admin_port",
        long = "sidecar-admin-port",
        env = "LARDER_SIDECAR_ADMIN_PORT",
        default_value_t = ports::ADMIN,
        value_parser = clap::value_parser!(u16).range(1024..=65500)
    )]
    pub admin_port: u16,

    /// Seconds that a terminating pod continues to serve while endpoints are updated; 0 adds no wait.
    #[arg(
        id = "drain_seconds",
        long = "drain-seconds",
        env = "LARDER_DRAIN_SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(0..=300)
    )]
    pub drain_seconds: u32,
}

/// Maximum number of targets of a policy, which is the number of reserved data ports.
pub const MAX_TARGETS: u16 = 4;

impl SidecarSettings {
    /// Returns the ports on which targets are served.
    pub fn data_ports(&self) -> RangeInclusive<u16> {
        self.data_port..=self.data_port + (MAX_TARGETS - 1)
    }

    /// Returns the ports to which applications move whose numbers the sidecar takes.
    pub fn application_ports(&self) -> RangeInclusive<u16> {
        self.application_port..=self.application_port + (MAX_TARGETS - 1)
    }
}

/// Image pull policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// Pull whenever a pod starts.
    Always,
    /// Pull if the image is not on the node.
    IfNotPresent,
    /// Never pull; the image must be on the node.
    Never,
}

impl PullPolicy {
    /// Returns the value of a container's `imagePullPolicy`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// The API server's treatment of a pod when no webhook responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum FailurePolicy {
    /// Start the pod without a sidecar.
    Ignore,
    /// Reject the pod.
    Fail,
}

impl FailurePolicy {
    /// Returns the value of a webhook's `failurePolicy`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ignore => "Ignore",
            Self::Fail => "Fail",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Parses options of `run`.
    pub(crate) fn run_arguments<'a>(options: impl IntoIterator<Item = &'a str>) -> RunArguments {
        let command = ["larder-operator", "run"].into_iter().chain(options);
        match Arguments::parse_from(command).command {
            Command::Run(arguments) => *arguments,
            Command::Check(_) => unreachable!("the command is run"),
        }
    }

    #[test]
    fn repeated_flag_overrides_the_earlier_one() {
        let arguments = run_arguments([
            "--sidecar-image=larder/sidecar:1",
            "--namespace=larder-system",
            "--pod-name=larder-operator-0",
            "--rollout-timeout-seconds=300",
            "--drain-seconds=5",
            "--rollout-timeout-seconds=7",
            "--drain-seconds=6",
        ]);
        assert_eq!((arguments.rollout_timeout_seconds, arguments.sidecar.drain_seconds), (7, 6));
    }

    #[test]
    fn flags_have_their_contracted_names() {
        let arguments = run_arguments([
            "--sidecar-image=larder/sidecar:1",
            "--sidecar-image-pull-policy=IfNotPresent",
            "--sidecar-image-pull-secrets=registry,mirror",
            "--webhook-timeout-seconds=5",
            "--sidecar-data-port=25000",
            "--drain-seconds=0",
            "--namespace=larder-system",
            "--pod-name=larder-operator-0",
            "--failure-policy=Fail",
            "--identity-headers=x-badge,x-shop-*",
            r#"--policy-bounds={"maxMemory": "256Mi"}"#,
        ]);
        assert_ne!(arguments.policy_bounds, Bounds::default());
        assert_eq!(arguments.identity_headers, ["x-badge", "x-shop-*"]);
        assert_eq!(arguments.sidecar.data_ports(), 25000..=25003);
        assert_eq!(arguments.sidecar.application_ports(), 24810..=24813);
        assert_eq!(arguments.sidecar.admin_port, ports::ADMIN);
        assert_eq!(arguments.sidecar.pull_secrets, ["registry", "mirror"]);
        assert_eq!(arguments.webhook_timeout_seconds, 5);
        assert_eq!(arguments.sidecar.redirect_image, None);
        assert_eq!(arguments.failure_policy, FailurePolicy::Fail);
    }
}
