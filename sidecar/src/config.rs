//! The configuration, which is read again when it changes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use larder_api::config_map;
use larder_policy::{Coverage, Document, Metadata, Policy, document};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    entry::authentication::Authentication,
    snapshot::{Configuration, Context, Permission, Snapshot},
    telemetry::Telemetry,
};

/// Interval at which the files are read. The kubelet swaps a directory's symbolic link, which watchers of a file don't see.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The policy in force, and the error that keeps a newer one out of force.
#[derive(Debug)]
pub struct ConfigWatcher {
    snapshot: ArcSwap<Snapshot>,
    /// Contents of the files when they were last read.
    seen: Mutex<Option<(PolicyFile, Option<String>)>>,
    error: ArcSwapOption<String>,
    context: Context,
}

/// Contents of the policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PolicyFile {
    Missing,
    Unreadable(String),
    Text(String),
}

impl ConfigWatcher {
    /// Loads a policy file, or the policy of a plain shared cache without one. The token in `token_file` authenticates records in Redis.
    pub async fn load(policy: Option<&Path>, token_file: Option<PathBuf>, telemetry: Arc<Telemetry>) -> Self {
        let first = match policy {
            None => Configuration::bare(),
            Some(_) => Configuration::absent(),
        };
        let config = Self::of(first, token_file, telemetry);
        if let Some(policy) = policy {
            config.refresh(policy).await;
        }
        config
    }

    /// Puts a first configuration in force.
    pub(crate) fn of(first: Configuration, token_file: Option<PathBuf>, telemetry: Arc<Telemetry>) -> Self {
        let context = Context { telemetry, authentication: Arc::new(Authentication::new(token_file)) };
        let snapshot = ArcSwap::from_pointee(Snapshot::start(first, &context, None));
        Self { snapshot, seen: Mutex::default(), error: ArcSwapOption::empty(), context }
    }

    /// Returns the policy in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Returns the policy in force without a reference of its own, for code that does not hold it across an `await`.
    pub fn snapshot_guard(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Returns the error that keeps the policy file out of force, if there is one.
    pub fn error(&self) -> Option<Arc<String>> {
        self.error.load_full()
    }

    /// Reads the files again until the process ends. A file that is refused is reported and tried again when it changes; without a
    /// file everything passes.
    pub async fn watch(self: Arc<Self>, policy: Option<PathBuf>) {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.context.authentication.refresh();
            if let Some(policy) = &policy {
                self.refresh(policy).await;
            }
            let snapshot = self.snapshot.load();
            let (tiers, last_errors) = (snapshot.tiers(), snapshot.last_errors());
            let has_error = |name: &String| last_errors.iter().any(|(known, _)| known == name);
            let degraded = tiers.iter().map(|(name, _)| (name.clone(), has_error(name))).collect();
            self.context.telemetry.stats.set_mode(snapshot.mode());
            self.context.telemetry.stats.set_degraded(degraded);
            self.context.telemetry.stats.set_tiers(tiers);
        }
    }

    async fn refresh(&self, policy: &Path) {
        let now = (read(policy).await, coverage_beside(policy).await);
        let before = self.seen.lock().replace(now.clone());
        if before.as_ref() != Some(&now) {
            let (policy, coverage) = now;
            self.apply(policy, coverage.as_deref());
        }
    }

    fn apply(&self, seen: PolicyFile, coverage: Option<&str>) {
        let current = self.snapshot.load_full();
        match seen {
            PolicyFile::Missing => {
                self.error.store(None);
                if current.configuration.hash.is_some() {
                    tracing::warn!("the policy file is missing; every request passes through");
                    self.exchange(Configuration::absent(), &current);
                }
            }
            PolicyFile::Unreadable(error) => {
                self.refuse(error);
                self.follow(&current, coverage);
            }
            PolicyFile::Text(text) => {
                let hash = document::hash(&text);
                if current.configuration.hash.as_ref() == Some(&hash) {
                    self.error.store(None);
                    self.follow(&current, coverage);
                    return;
                }
                match compile(&text) {
                    Ok((document, policy)) => {
                        let Document { metadata, follows_coverage, destinations, .. } = document;
                        let permission = permission_of(follows_coverage, &metadata, coverage);
                        tracing::info!(hash, suspended = policy.suspended, "loaded the policy");
                        let unknown = larder_lint::unknown_fields(&text);
                        if !unknown.is_empty() {
                            tracing::warn!(
                                fields = unknown.join(", "),
                                "the policy has fields that this version does not know; they have no effect"
                            );
                        }
                        if permission == Permission::Waiting {
                            tracing::info!("every request passes through until every pod has the sidecar");
                        }
                        let (hash, policy) = (Some(hash), Arc::new(policy));
                        let destinations = Arc::new(destinations);
                        self.exchange(
                            Configuration { hash, policy, metadata, permission, destinations },
                            &current,
                        );
                        self.error.store(None);
                        self.context.telemetry.stats.reloaded(true);
                    }
                    Err(error) => {
                        self.refuse(error);
                        self.follow(&current, coverage);
                    }
                }
            }
        }
    }

    /// Takes over the coverage of the policy in force, if it follows one.
    fn follow(&self, current: &Snapshot, coverage: Option<&str>) {
        if current.configuration.hash.is_none() {
            return;
        }
        let follows_coverage = current.configuration.permission != Permission::NotNeeded;
        let permission = permission_of(follows_coverage, &current.configuration.metadata, coverage);
        if permission == current.configuration.permission {
            return;
        }
        match permission {
            Permission::Waiting => {
                tracing::warn!(
                    "a pod without the sidecar may receive writes; every request passes through until every pod has the sidecar"
                );
            }
            Permission::NotNeeded | Permission::Granted(_) => {
                tracing::info!("every pod has the sidecar; serving from the cache")
            }
        }
        self.exchange(Configuration { permission, ..current.configuration.clone() }, current);
    }

    fn exchange(&self, configuration: Configuration, current: &Snapshot) {
        let endpoint = configuration.policy.otlp.as_ref().map(|otlp| otlp.endpoint.as_str());
        if let Err(error) = self.context.telemetry.export_to(endpoint, &configuration.destinations) {
            tracing::error!(error = format!("{error:#}"), "could not set up the export of metrics");
        }
        self.snapshot.store(Arc::new(Snapshot::start(configuration, &self.context, Some(current))));
    }

    fn refuse(&self, error: String) {
        tracing::error!(error, "the policy is invalid; keeping the previous configuration");
        self.error.store(Some(Arc::new(error)));
        self.context.telemetry.stats.reloaded(false);
    }
}

/// Returns the text of the coverage that the operator keeps beside a policy. An unreadable one permits nothing, as a missing one.
async fn coverage_beside(policy: &Path) -> Option<String> {
    tokio::fs::read_to_string(policy.with_file_name(config_map::COVERAGE)).await.ok()
}

/// Returns the permission to serve under a policy.
fn permission_of(follows_coverage: bool, metadata: &Metadata, coverage: Option<&str>) -> Permission {
    if !follows_coverage {
        return Permission::NotNeeded;
    }
    let coverage = coverage.and_then(|text| Coverage::parse(text, &metadata.uid));
    let round = coverage.as_ref().and_then(Coverage::round);
    round.map_or(Permission::Waiting, |round| Permission::Granted(round.to_owned()))
}

async fn read(path: &Path) -> PolicyFile {
    match tokio::fs::read_to_string(path).await {
        Ok(text) => PolicyFile::Text(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => PolicyFile::Missing,
        Err(error) => PolicyFile::Unreadable(format!("can't read {}: {error}", path.display())),
    }
}

fn compile(text: &str) -> Result<(Document, Policy), String> {
    let document = Document::parse(text).map_err(|error| error.to_string())?;
    let policy = Policy::compile(&document.spec)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    Ok((document, policy))
}
