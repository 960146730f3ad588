//! The command line.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use clap::{CommandFactory, Parser, Subcommand, builder::PossibleValuesParser};
use clap_complete::Shell;
use larder_api::admin::{DEFAULT_TOP_KEYS, MAX_TOP_KEYS, Outcome, StatusFilter};

use crate::{
    init::{SecretKey, Template, WorkloadName, labels},
    output::Format,
};

/// Start of the name under which kubectl finds the program.
const PLUGIN_PREFIX: &str = "kubectl-";

/// Name by which the program is called.
static CALLED: OnceLock<&str> = OnceLock::new();

/// Heading of the options of every command.
const GLOBAL: &str = "Global options";

const EXIT_CODES: &str = "Exit codes:
  0  done, and all is well
  1  check or lint found errors, a policy or a pod is not well, or a purge is not in Redis
  2  the command line is wrong, or something can't be reached or read";

/// Policies, sidecars and purges of Larder, the cache in front of an application.
///
/// Sidecars are reached by port-forward, with your own rights in the cluster.
#[derive(Debug, Parser)]
#[command(name = "larder", version, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// Print data in this format, rather than tables and text.
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", help_heading = GLOBAL)]
    pub(crate) output: Option<Format>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The cluster, as for kubectl.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Connection {
    /// Namespace of the policy [default: that of the context].
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub(crate) namespace: Option<String>,

    /// Context of the kubeconfig [default: its current one].
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub(crate) context: Option<String>,

    /// Kubeconfig [default: $KUBECONFIG, else ~/.kube/config, else the service account of the pod].
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check the cluster and its policies, or with --pre whether Larder can be installed: each finding has its remedy.
    Check(Check),
    /// Find errors in policies with the cluster's rules, without a cluster.
    Lint(Lint),
    /// Show policies, their pods, configuration, tiers and hit ratios.
    Status(Status),
    /// Show the counters of a policy's sidecars: their sum and each pod's.
    Stats(Stats),
    /// Show requests per second by route, hit ratios and latencies of tiers, again and again on a terminal.
    Top(Top),
    /// Show requests as they are served: route, tier, outcome, and why nothing was stored.
    Tail(Tail),
    /// Show the treatment of a request: route, key, tiers, stored response, and the names that a write purges.
    Explain(Explain),
    /// Purge keys, paths, prefixes of paths, tags, or everything.
    Purge(Purge),
    /// Write policies.
    Policy(Policy),
    /// Print statements for Postgres.
    Sql(Sql),
    /// Print a completion script for a shell.
    Completions(Completions),
    /// Print the manual page, or write one page for each command.
    Man(Man),
}

/// Options of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// Check, before an installation, the namespace and the cluster for what the chart needs.
    #[arg(long)]
    pub(crate) pre: bool,

    /// Check the policies of all namespaces, whatever --namespace says.
    #[arg(short = 'A', long, conflicts_with = "pre")]
    pub(crate) all_namespaces: bool,

    /// Namespace of the operator [default: that of its webhook, else larder-system].
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "pre")]
    pub(crate) operator_namespace: Option<String>,

    /// Name of the release that is to be installed.
    #[arg(long, value_name = "NAME", default_value = "larder", requires = "pre")]
    pub(crate) release: String,
}

/// Options of `lint`.
#[derive(Debug, clap::Args)]
pub(crate) struct Lint {
    /// Files with one CachePolicy each, or several separated by ---; - is standard input.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

/// Options of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// Policy [default: all of the namespace].
    pub(crate) policy: Option<String>,

    /// Show the policies of all namespaces, whatever --namespace says.
    #[arg(short = 'A', long, conflicts_with = "policy")]
    pub(crate) all_namespaces: bool,
}

/// Options of `stats`.
#[derive(Debug, clap::Args)]
pub(crate) struct Stats {
    /// Policy.
    pub(crate) policy: String,

    /// Number of keys with the most hits to list.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TOP_KEYS, value_parser = top_keys)]
    pub(crate) top: usize,
}

/// Options of `top`.
#[derive(Debug, clap::Args)]
pub(crate) struct Top {
    /// Policy.
    pub(crate) policy: String,

    /// Seconds over which rates are taken.
    #[arg(long, value_name = "SECONDS", default_value = "2")]
    pub(crate) interval: NonZeroU16,
}

/// Options of `tail`.
#[derive(Debug, clap::Args)]
pub(crate) struct Tail {
    /// Policy.
    pub(crate) policy: String,

    /// Show requests of this route only.
    #[arg(long)]
    pub(crate) route: Option<String>,

    /// Show requests with this status, such as 404, or of this class, such as 5xx, only.
    #[arg(long)]
    pub(crate) status: Option<StatusFilter>,

    /// Show requests whose path begins so only.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) path: Option<String>,

    /// Show requests with this outcome only.
    #[arg(long, value_parser = PossibleValuesParser::new(Outcome::ALL.map(Outcome::as_str)))]
    pub(crate) outcome: Option<String>,

    /// Show requests to this pod only.
    #[arg(long)]
    pub(crate) pod: Option<String>,

    /// Show one of so many requests of each pod.
    #[arg(long, value_name = "N", default_value = "1", hide_default_value = true)]
    pub(crate) sample: NonZeroU32,

    /// Show the values of query parameters, which may be secret.
    #[arg(long)]
    pub(crate) query: bool,
}

/// Options of `explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// Policy.
    pub(crate) policy: String,

    /// Method, such as GET.
    pub(crate) method: String,

    /// URL as clients have it, such as http://shop/api/users/1.
    pub(crate) url: String,

    /// Header of the request.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub(crate) headers: Vec<(String, String)>,

    /// Body of the request.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(crate) data: String,

    /// Port of the application, if the policy has several targets [default: the first].
    #[arg(long)]
    pub(crate) port: Option<NonZeroU16>,

    /// Pod whose memory is looked into [default: a ready one].
    #[arg(long)]
    pub(crate) pod: Option<String>,
}

/// Options of `purge`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("names").args(["keys", "paths", "prefixes", "tags", "everything"]).required(true).multiple(true)))]
pub(crate) struct Purge {
    /// Policy.
    pub(crate) policy: String,

    /// Key, whole or short, such as GET:/api/posts/.
    #[arg(long = "key", value_name = "KEY")]
    pub(crate) keys: Vec<String>,

    /// Path, for every host, query and variant, such as /api/users/1.
    #[arg(long = "path", value_name = "PATH")]
    pub(crate) paths: Vec<String>,

    /// Prefix of paths, in whole segments, such as /api/users.
    #[arg(long = "prefix", value_name = "PREFIX")]
    pub(crate) prefixes: Vec<String>,

    /// Tag, such as user:1.
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,

    /// Purge everything that the policy has stored.
    #[arg(long)]
    pub(crate) everything: bool,

    /// Make responses stale, so that they are served as staleWhileRevalidate and staleIfError of their routes allow.
    #[arg(long)]
    pub(crate) soft: bool,
}

/// Options of `policy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Policy {
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
}

/// Commands of `policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Write a policy with comments. Whatever no option says is asked on a terminal.
    Init(Init),
}

/// Options of `policy init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// Name of the policy [default: that of the workload].
    pub(crate) name: Option<String>,

    /// Workload whose pods get a cache, such as deployment/shop: its labels and its port are read from the cluster.
    #[arg(long, value_name = "KIND/NAME")]
    pub(crate) workload: Option<WorkloadName>,

    /// Labels of the pods, such as app=shop,tier=web.
    #[arg(long, value_name = "LABELS", value_parser = labels::read, conflicts_with = "workload")]
    pub(crate) selector: Option<BTreeMap<String, String>>,

    /// Port of the container, by name or number.
    #[arg(long)]
    pub(crate) port: Option<String>,

    /// Routes for a kind of application.
    #[arg(long, value_enum, conflicts_with_all = ["paths", "ttl", "grace"])]
    pub(crate) template: Option<Template>,

    /// Path to cache, such as /api/users/{id} or /static/{*path}.
    #[arg(long = "path", value_name = "PATH")]
    pub(crate) paths: Vec<String>,

    /// Time for which responses are fresh, such as 60s [default: as their Cache-Control says].
    #[arg(long, value_name = "TIME", requires = "paths")]
    pub(crate) ttl: Option<String>,

    /// Time for which stale responses are served while they are refreshed, and while the application is down.
    #[arg(long, value_name = "TIME", requires = "paths")]
    pub(crate) grace: Option<String>,

    /// Secret with the URL of a Redis that the pods share; its key is url unless another is given.
    #[arg(long, value_name = "NAME/KEY")]
    pub(crate) redis_secret: Option<SecretKey>,

    /// File to write, which is not there yet; - is standard output [default: -].
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Overwrite the file.
    #[arg(long, requires = "file")]
    pub(crate) force: bool,
}

/// Options of `sql`.
#[derive(Debug, clap::Args)]
pub(crate) struct Sql {
    #[command(subcommand)]
    pub(crate) command: SqlCommand,
}

/// Commands of `sql`.
#[derive(Debug, Subcommand)]
pub(crate) enum SqlCommand {
    /// Print a trigger that purges when rows of a table change, by `invalidation.notifications` of a policy.
    ///
    /// {id} in a name stands for the value of column id, as it was before and as it is after the change.
    Trigger(Trigger),
}

/// Options of `sql trigger`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("purged").args(["tags", "paths", "prefixes", "everything"]).required(true).multiple(true)))]
pub(crate) struct Trigger {
    /// Table.
    pub(crate) table: String,

    /// Schema of the table.
    #[arg(long, default_value = "public")]
    pub(crate) schema: String,

    /// Channel, as in invalidation.notifications of the policy.
    #[arg(long, default_value = "larder")]
    pub(crate) channel: String,

    /// Tag, such as user:{id}.
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,

    /// Path, such as /api/users/{id}.
    #[arg(long = "path", value_name = "PATH")]
    pub(crate) paths: Vec<String>,

    /// Prefix of paths, in whole segments, such as /api/users/{id}.
    #[arg(long = "prefix", value_name = "PREFIX")]
    pub(crate) prefixes: Vec<String>,

    /// Purge everything that the policy has stored, whatever row changes.
    #[arg(long)]
    pub(crate) everything: bool,

    /// Make responses stale, so that they are served as staleWhileRevalidate and staleIfError of their routes allow.
    #[arg(long)]
    pub(crate) soft: bool,
}

/// Options of `completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// Shell.
    #[arg(value_enum)]
    pub(crate) shell: Completed,
}

/// Shells with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Completed {
    /// Bash.
    Bash,
    /// Zsh.
    Zsh,
    /// Fish.
    Fish,
}

impl From<Completed> for Shell {
    fn from(shell: Completed) -> Self {
        match shell {
            Completed::Bash => Self::Bash,
            Completed::Zsh => Self::Zsh,
            Completed::Fish => Self::Fish,
        }
    }
}

/// Options of `man`.
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// Folder for the pages of all commands, such as /usr/local/share/man/man1 [default: print that of larder].
    #[arg(long, value_name = "FOLDER")]
    pub(crate) dir: Option<PathBuf>,
}

/// Returns the command line, whose usage is that of kubectl if the program is called as its plugin.
pub(crate) fn command(program: Option<&OsString>) -> clap::Command {
    Args::command().bin_name(called(program))
}

fn called(program: Option<&OsString>) -> &'static str {
    let name = program.and_then(|program| Path::new(program).file_name()).and_then(OsStr::to_str);
    match name.is_some_and(|name| name.starts_with(PLUGIN_PREFIX)) {
        true => "kubectl larder",
        false => "larder",
    }
}

/// Remembers the name by which the program is called.
pub(crate) fn remember(program: Option<&OsString>) {
    CALLED.get_or_init(|| called(program));
}

/// Returns the program as its user calls it: `larder`, or `kubectl larder`.
pub(crate) fn program() -> &'static str {
    CALLED.get().copied().unwrap_or("larder")
}

fn top_keys(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_TOP_KEYS).contains(number));
    number.ok_or_else(|| format!("write a number from 1 to {MAX_TOP_KEYS}"))
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as 'Name: value'")?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(program: &str) -> String {
        let program = OsString::from(program);
        let error = command(Some(&program)).try_get_matches_from([&program, &"purge".into()]).unwrap_err();
        error.to_string()
    }

    #[test]
    fn command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn usage_is_kubectls_where_kubectl_calls() {
        assert!(usage("/usr/bin/kubectl-larder").contains("Usage: kubectl larder purge"));
        assert!(usage("/usr/bin/larder").contains("Usage: larder purge"));
        assert_eq!(called(Some(&"/usr/bin/kubectl-larder".into())), "kubectl larder");
    }

    #[test]
    fn purge_without_names_is_a_usage_error() {
        let parse = |arguments: &[&str]| Args::try_parse_from(arguments).map(|args| args.command);
        assert_eq!(parse(&["larder", "purge", "shop"]).unwrap_err().exit_code(), 2);
        let Ok(Command::Purge(purge)) =
            parse(&["larder", "purge", "shop", "--tag", "a", "--tag", "b", "--path", "/a"])
        else {
            panic!("not a purge");
        };
        assert_eq!((purge.tags.len(), purge.paths.len(), purge.keys.len()), (2, 1, 0));
    }

    #[test]
    fn filters_of_requests_are_checked_before_anything_is_asked() {
        let code = |arguments: &[&str]| {
            let all = [&["larder", "tail", "shop"], arguments].concat();
            Args::try_parse_from(all).map_err(|error| error.exit_code()).map(|_| ())
        };
        assert_eq!(code(&["--status", "5xx", "--outcome", "hit", "--sample", "10"]), Ok(()));
        for wrong in [["--status", "5x"], ["--outcome", "maybe"], ["--sample", "0"]] {
            assert_eq!(code(&wrong), Err(2), "{wrong:?}");
        }
    }

    #[test]
    fn all_namespaces_outdo_one() {
        let parse = |arguments: &[&str]| Args::try_parse_from(arguments);
        assert!(parse(&["larder", "status", "-n", "shop", "-A"]).is_ok());
        assert_eq!(parse(&["larder", "status", "shop", "-A"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn headers_are_names_and_values() {
        assert_eq!(header("Accept-Language:  de"), Ok(("accept-language".into(), "de".into())));
        assert!(header("Accept-Language").is_err());
    }

    #[test]
    fn number_of_top_keys_is_bounded() {
        assert_eq!(top_keys("10"), Ok(10));
        assert!(top_keys("0").is_err() && top_keys("101").is_err());
    }
}
