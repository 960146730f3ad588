//! Each right of the operator, taken away: what it says then, and that it goes on when it has the right again.

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    coordination::v1::Lease,
    core::v1::{Pod, Secret, Service},
    rbac::v1::{ClusterRole, PolicyRule, Role},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams},
};
use larder_api::{annotations, names};
use larder_crds::CachePolicy;
use larder_e2e::{
    Sandbox, Workload, alone_in_the_cluster, cluster, eventually, eventually::SHORT_TIMEOUT, policy::Policy,
};
use serde_json::{Value, json};

use super::{common::IN_MEMORY, owners};

/// A verb and a resource.
type Right = (&'static str, &'static str);

/// The roles of the operator, and what was taken away so far.
struct Roles {
    client: Client,
    cluster: Vec<PolicyRule>,
    own: Vec<PolicyRule>,
    tried: BTreeSet<(String, String)>,
}

impl Roles {
    async fn read(client: &Client) -> anyhow::Result<Self> {
        let cluster = Api::<ClusterRole>::all(client.clone()).get(names::OPERATOR).await?;
        let own = Api::<Role>::namespaced(client.clone(), cluster::NAMESPACE).get(names::OPERATOR).await?;
        Ok(Self {
            client: client.clone(),
            cluster: cluster.rules.unwrap_or_default(),
            own: own.rules.unwrap_or_default(),
            tried: BTreeSet::new(),
        })
    }

    /// Grants everything but some rights.
    async fn grant_all_but(&mut self, denied: &[Right]) -> anyhow::Result<()> {
        let rules = |rules: &[PolicyRule]| json!({ "rules": without(rules, denied) });
        let options = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        roles.patch(names::OPERATOR, &options, &Patch::Merge(rules(&self.cluster))).await?;
        let roles: Api<Role> = Api::namespaced(self.client.clone(), cluster::NAMESPACE);
        roles.patch(names::OPERATOR, &options, &Patch::Merge(rules(&self.own))).await?;
        eventually("API servers know the roles", SHORT_TIMEOUT, async || {
            for right in denied {
                ensure!(!self.is_granted(*right).await?, "{right:?} is still granted");
            }
            Ok(())
        })
        .await?;
        self.tried.extend(denied.iter().map(|(verb, resource)| ((*verb).to_owned(), (*resource).to_owned())));
        Ok(())
    }

    /// Restores the roles, this test's field manager included: Helm would not take a field from another one.
    async fn restore(&self) -> anyhow::Result<()> {
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        let mut role = roles.get(names::OPERATOR).await?;
        role.rules = Some(self.cluster.clone());
        role = roles.replace(names::OPERATOR, &written(), &role).await?;
        role.managed_fields_mut().retain(|entry| entry.manager.as_deref() != Some(MANAGER));
        roles.replace(names::OPERATOR, &written(), &role).await?;
        let roles: Api<Role> = Api::namespaced(self.client.clone(), cluster::NAMESPACE);
        let mut role = roles.get(names::OPERATOR).await?;
        role.rules = Some(self.own.clone());
        role = roles.replace(names::OPERATOR, &written(), &role).await?;
        role.managed_fields_mut().retain(|entry| entry.manager.as_deref() != Some(MANAGER));
        roles.replace(names::OPERATOR, &written(), &role).await?;
        Ok(())
    }

    /// Asks the API server for a right that a rule grants, in a namespace where it does.
    async fn is_granted(&self, (verb, resource): Right) -> anyhow::Result<bool> {
        let grants = |rule: &&PolicyRule| {
            rule.verbs.iter().any(|one| one == verb)
                && rule.resources.iter().flatten().any(|one| one == resource)
        };
        let rule = self.cluster.iter().chain(&self.own).find(grants).context("no rule grants it")?;
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(cluster::operator_account()),
                resource_attributes: Some(ResourceAttributes {
                    group: rule.api_groups.as_ref().and_then(|groups| groups.first().cloned()),
                    namespace: Some(cluster::NAMESPACE.into()),
                    name: rule.resource_names.as_ref().and_then(|names| names.first().cloned()),
                    resource: Some(resource.to_owned()),
                    subresource: Some(subresource.to_owned()),
                    verb: Some(verb.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        Ok(reviews.create(&PostParams::default(), &review).await?.status.is_some_and(|status| status.allowed))
    }

    /// Returns every right of the roles.
    fn all(&self) -> BTreeSet<(String, String)> {
        let rules = self.cluster.iter().chain(&self.own);
        let pairs = rules.flat_map(|rule| {
            let resources = rule.resources.iter().flatten();
            resources.flat_map(|resource| rule.verbs.iter().map(|verb| (verb.clone(), resource.clone())))
        });
        pairs.collect()
    }
}

/// The field manager of this test.
const MANAGER: &str = "larder-e2e-rights";

fn written() -> PostParams {
    PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
}

/// Returns rules that grant the same but for some rights.
fn without(rules: &[PolicyRule], denied: &[Right]) -> Vec<PolicyRule> {
    let of_resource = |rule: &PolicyRule, resource: &String| {
        let is_denied = |verb: &String| denied.contains(&(verb.as_str(), resource.as_str()));
        let verbs: Vec<_> = rule.verbs.iter().filter(|verb| !is_denied(verb)).cloned().collect();
        let rule = PolicyRule { resources: Some(vec![resource.clone()]), verbs, ..rule.clone() };
        (!rule.verbs.is_empty()).then_some(rule)
    };
    let each = |rule: &PolicyRule| {
        let resources = rule.resources.clone().unwrap_or_default();
        resources.iter().filter_map(|resource| of_resource(rule, resource)).collect::<Vec<_>>()
    };
    rules.iter().flat_map(each).collect()
}

/// The test's view of the operator.
struct Watcher<'a> {
    sandbox: &'a Sandbox,
    roles: Roles,
    started: Instant,
    /// Rights that are taken away as well and need not be missed.
    besides: &'static [Right],
}

impl Watcher<'_> {
    /// Takes rights away, does something, and waits until the operator says of each that it lacks it.
    async fn lacks(
        &mut self,
        denied: &[Right],
        then: impl AsyncFnOnce(&Sandbox) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let since = Timestamp::now();
        self.roles.grant_all_but(&[denied, self.besides].concat()).await?;
        then(self.sandbox).await?;
        let sandbox = self.sandbox;
        eventually(&format!("the operator misses {denied:?}"), SHORT_TIMEOUT, async || {
            let said = said(sandbox, since).await?;
            for (verb, resource) in denied {
                let refusal = format!("cannot {verb} resource \"{resource}\"");
                ensure!(said.contains(&refusal), "nobody says: {refusal}");
            }
            Ok(())
        })
        .await?;
        eprintln!("{:5.1} s: {denied:?}", self.started.elapsed().as_secs_f32());
        Ok(())
    }
}

/// Returns the operator's warnings and errors since a time, and the status of the namespace's policies.
async fn said(sandbox: &Sandbox, since: Timestamp) -> anyhow::Result<String> {
    let replicas = Api::<Pod>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    let ours = ListParams::default().labels("app.kubernetes.io/component=operator");
    let mut said = String::new();
    for replica in replicas.list(&ours).await? {
        // Some messages are logged once, and the client rounds the time to the nearest second.
        let a_little_before = Some(since - SignedDuration::from_secs(1));
        let options = LogParams { since_time: a_little_before, ..LogParams::default() };
        // It may not have begun, or have ended.
        let log = replicas.logs(&replica.name_any(), &options).await.unwrap_or_default();
        for line in log.lines().filter(|line| is_trouble(line, since)) {
            said += &line.replace("\\\"", "\"");
            said.push('\n');
        }
    }
    for policy in sandbox.api::<CachePolicy>().list(&ListParams::default()).await? {
        let conditions = policy.status.map(|status| status.conditions).unwrap_or_default();
        said.extend(conditions.into_iter().map(|condition| condition.message + "\n"));
    }
    Ok(said)
}

/// Returns true if a line of a log is a warning or an error since a time.
fn is_trouble(line: &str, since: Timestamp) -> bool {
    let Ok(line) = serde_json::from_str::<Value>(line) else { return false };
    let at = line["timestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
    at.is_some_and(|at| at >= since) && (line["level"] == "WARN" || line["level"] == "ERROR")
}

/// Replaces every replica of the operator, without waiting.
pub(super) async fn restart_operator(sandbox: &Sandbox) -> anyhow::Result<()> {
    let replicas = Api::<Pod>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    let ours = ListParams::default().labels("app.kubernetes.io/component=operator");
    let at_once = DeleteParams { grace_period_seconds: Some(1), ..DeleteParams::default() };
    replicas.delete_collection(&at_once, &ours).await?;
    Ok(())
}

/// The application in each kind of workload that is restarted.
fn workloads() -> anyhow::Result<Vec<Value>> {
    let of = |name: &str| {
        let mut template =
            Workload::deployment(name, 1).labels(json!({"app": "app", "own": name})).template()?;
        template["spec"]["containers"][0]["readinessProbe"]["initialDelaySeconds"] = json!(0);
        Ok::<_, anyhow::Error>(json!({
            "apiVersion": "apps/v1", "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"own": name}}, "template": template},
        }))
    };
    let (mut deployment, mut set, mut daemon) = (of("deployment")?, of("set")?, of("daemon")?);
    deployment["kind"] = json!("Deployment");
    set["kind"] = json!("StatefulSet");
    set["spec"]["serviceName"] = json!("set");
    daemon["kind"] = json!("DaemonSet");
    Ok(vec![deployment, set, daemon])
}

/// Kinds that are watched, the last one only where redirections are allowed.
const LISTED: [&str; 11] = [
    "cachepolicies",
    "cacheinvalidations",
    "pods",
    "configmaps",
    "daemonsets",
    "deployments",
    "statefulsets",
    "replicasets",
    "services",
    "networkpolicies",
    "namespaces",
];

const RESTARTS: [Right; 3] = [("patch", "deployments"), ("patch", "statefulsets"), ("patch", "daemonsets")];

pub(crate) async fn every_right_of_the_operator_is_missed_when_it_is_taken_away() -> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        let roles = Roles::read(&sandbox.client).await?;
        let mut watcher = Watcher { sandbox, roles, started: Instant::now(), besides: &[] };
        let outcome = try_all(&mut watcher).await;
        watcher.roles.restore().await?;
        owners::stop_serving_rollouts(sandbox).await?;
        let all = watcher.roles.all();
        outcome?;
        let untried: Vec<_> = all.difference(&watcher.roles.tried).collect();
        ensure!(untried.is_empty(), "nothing shows that the operator needs these: {untried:?}");
        cluster::operator_is_ready(&sandbox.client).await
    })
    .await
}

async fn try_all(watcher: &mut Watcher<'_>) -> anyhow::Result<()> {
    let sandbox = watcher.sandbox;
    let granted = watcher.roles.all();
    let is_granted = |resource: &&str| granted.contains(&("list".to_owned(), (*resource).to_owned()));
    let listed: Vec<_> = LISTED.into_iter().filter(is_granted).collect();
    sandbox.apply(&workloads()?).await?;
    // What an earlier version left behind.
    let former = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": names::FORMER_WEBHOOK_CONFIGURATION}});
    let configurations = Api::<MutatingWebhookConfiguration>::all(sandbox.client.clone());
    drop(configurations.create(&PostParams::default(), &serde_json::from_value(former)?).await);

    // Watches begin with the process. Those of pods, workloads and Services wait for the policies.
    let first = ["cachepolicies", "cacheinvalidations", "configmaps", "networkpolicies", "namespaces"];
    let (before, after): (Vec<_>, Vec<_>) = listed.iter().partition(|resource| first.contains(resource));
    let all = |verb: &'static str, of: &[&'static str]| of.iter().map(|one| (verb, *one)).collect::<Vec<_>>();
    watcher.lacks(&[all("list", &before), vec![("list", "secrets")]].concat(), restart_operator).await?;
    watcher.lacks(&all("list", &after), restart_operator).await?;
    let also = [
        ("watch", "secrets"),
        ("get", "secrets"),
        ("get", "clusterroles"),
        ("delete", "mutatingwebhookconfigurations"),
    ];
    watcher.lacks(&[all("watch", &listed), also.to_vec()].concat(), restart_operator).await?;

    // A policy is applied. No workload is restarted before restarts are tried.
    watcher.besides = &RESTARTS;
    let first = [
        ("patch", "mutatingwebhookconfigurations"),
        ("create", "configmaps"),
        ("patch", "cachepolicies/status"),
    ];
    watcher.lacks(&first, async |sandbox| sandbox.policy("cache", IN_MEMORY).await.map(drop)).await?;
    watcher.lacks(&[("get", "configmaps")], async |_| Ok(())).await?;
    watcher.lacks(&[("create", "events"), ("create", "secrets")], async |_| Ok(())).await?;
    watcher.lacks(&[("list", "poddisruptionbudgets")], async |_| Ok(())).await?;
    watcher.lacks(&[("list", "resourcequotas")], async |_| Ok(())).await?;
    watcher.lacks(&[("create", "pods")], async |_| Ok(())).await?;
    // The webhooks are looked at every 10 s.
    let also = [("get", "mutatingwebhookconfigurations")];
    watcher.lacks(&[&RESTARTS[..], &also].concat(), async |_| Ok(())).await?;
    // No pod is replaced while restarts are not granted.
    let pods = i32::try_from(sandbox.pods("app").await?.len())?;
    watcher.besides = &[];
    watcher.roles.grant_all_but(&[]).await?;
    let policy = Policy::of(sandbox, "cache");
    policy.serves(pods).await?;
    let left = configurations.get_opt(names::FORMER_WEBHOOK_CONFIGURATION).await?;
    ensure!(left.is_none(), "the webhook configuration of an earlier version is left");
    stuck_pod(sandbox).await?;

    invalidation(watcher).await?;
    companion(watcher).await?;
    rollout(watcher).await?;

    // A policy is changed.
    watcher
        .lacks(&[("patch", "configmaps")], async |_| {
            policy
                .change(json!({"routes": [{"name": "all", "match": {"path": "/things/{id}"}, "ttl": "7s"}]}))
                .await
        })
        .await?;
    watcher.lacks(&[("patch", "pods")], async |_| Ok(())).await?;

    // Policies without pods, with a conflict, and deleted.
    let idle = IN_MEMORY.replace("app: app", "app: none");
    watcher
        .lacks(&[("list", "rollouts"), ("list", "cronjobs")], async |sandbox| {
            sandbox.policy("idle", &idle).await.map(drop)
        })
        .await?;
    watcher.lacks(&[("list", "jobs")], async |_| Ok(())).await?;
    watcher.roles.grant_all_but(&[]).await?;
    let selects = async |app: &str, reason: &str| {
        let idle = Policy::of(sandbox, "idle");
        idle.change(json!({"selector": {"matchLabels": {"app": app}}})).await?;
        idle.eventually("the policy is accepted or not", SHORT_TIMEOUT, |status| {
            let accepted = status.conditions.iter().find(|condition| condition.type_ == "Accepted");
            ensure!(accepted.is_some_and(|accepted| accepted.reason == reason), "{accepted:?}");
            Ok(())
        })
        .await
        .map(drop)
    };
    selects("app", "Conflict").await?;
    selects("none", "Accepted").await?;
    // An event that is repeated is counted.
    watcher.lacks(&[("patch", "events")], async |_| selects("app", "Conflict").await).await?;
    watcher
        .lacks(&[("get", "cachepolicies")], async |sandbox| Policy::of(sandbox, "idle").delete().await)
        .await?;
    watcher.lacks(&[("delete", "configmaps")], async |_| Ok(())).await?;

    // The StatefulSet waits for a pod that does not start because of its sidecar.
    watcher
        .lacks(&[("create", "pods/eviction")], async |sandbox| {
            let small = json!({"sidecar": {"resources": {"requests": {"cpu": "10m"}}}});
            Policy::of(sandbox, "stuck").change(small).await
        })
        .await?;

    // The certificate is due.
    watcher
        .lacks(&[("update", "secrets")], async |sandbox| {
            let secrets = Api::<Secret>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
            let issued = Timestamp::now() - SignedDuration::from_hours(24 * 25);
            let old =
                json!({"metadata": {"annotations": {annotations::issued_at("tls"): issued.to_string()}}});
            secrets.patch(names::TLS_SECRET, &Default::default(), &Patch::Merge(old)).await?;
            Ok(())
        })
        .await?;
    // The election goes on.
    watcher.lacks(&[("get", "leases"), ("patch", "leases")], async |_| Ok(())).await?;
    watcher
        .lacks(&[("create", "leases")], async |sandbox| {
            let leases = Api::<Lease>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
            leases.delete(names::LEASE, &Default::default()).await.map(drop).context("the Lease")
        })
        .await
}

/// Has a purge end and go.
async fn invalidation(watcher: &mut Watcher<'_>) -> anyhow::Result<()> {
    let purge = json!({"apiVersion": "larder.dev/v1alpha1", "kind": "CacheInvalidation", "metadata": {"name": "all"},
        "spec": {"policy": "cache", "everything": true, "ttlSecondsAfterFinished": 0}});
    watcher
        .lacks(&[("patch", "cacheinvalidations/status")], async |sandbox| sandbox.apply(&[purge]).await)
        .await?;
    watcher.lacks(&[("delete", "cacheinvalidations")], async |_| Ok(())).await
}

/// Has a Service get a companion, change and go.
async fn companion(watcher: &mut Watcher<'_>) -> anyhow::Result<()> {
    let sandbox = watcher.sandbox;
    let spec = IN_MEMORY.replace("app: app", "app: beside") + "capture: {mode: CompanionService}\n";
    let objects = Workload::deployment("beside", 1).target_port(json!(8080)).objects()?;
    watcher
        .lacks(&[("create", "services")], async |sandbox| {
            sandbox.policy("beside", &spec).await?.injects(&objects[0]["spec"]["template"]).await?;
            sandbox.apply(&objects).await
        })
        .await?;
    watcher.roles.grant_all_but(&[]).await?;
    let services = sandbox.api::<Service>();
    eventually("the companion is there", SHORT_TIMEOUT, async || {
        services.get("beside-cached").await?;
        Ok(())
    })
    .await?;
    watcher
        .lacks(&[("patch", "services")], async |sandbox| {
            let mut changed = objects[1].clone();
            changed["spec"]["ports"][0]["port"] = json!(81);
            sandbox.apply(&[changed]).await
        })
        .await?;
    watcher
        .lacks(&[("delete", "services")], async |_| {
            services.delete("beside", &Default::default()).await.map(drop).context("the Service")
        })
        .await
}

/// Has an Argo Rollout lack the sidecar.
async fn rollout(watcher: &mut Watcher<'_>) -> anyhow::Result<()> {
    let sandbox = watcher.sandbox;
    owners::serve_rollouts(sandbox).await?;
    owners::apply_rollout(sandbox, "rolled", "rolled", 1).await?;
    let spec = IN_MEMORY.replace("app: app", "app: rolled");
    watcher
        .lacks(&[("list", "rollouts")], async |sandbox| sandbox.policy("rolled", &spec).await.map(drop))
        .await?;
    let policy = Policy::of(sandbox, "rolled");
    let words = [
        "pods of a Rollout are not restarted",
        "cannot list resource \"rollouts\"",
        "grant its account `list`",
    ];
    owners::says(&policy, &words).await?;
    watcher.lacks(&[("patch", "rollouts")], async |_| Ok(())).await?;
    policy.delete().await
}

/// Creates a StatefulSet whose pod no node takes because of its sidecar.
async fn stuck_pod(sandbox: &Sandbox) -> anyhow::Result<()> {
    let spec =
        IN_MEMORY.replace("app: app", "app: stuck") + "sidecar: {resources: {requests: {cpu: '100'}}}\n";
    let mut set = Workload::stateful_set("stuck", 1).objects()?.remove(0);
    set["spec"]["podManagementPolicy"] = json!("OrderedReady");
    sandbox.policy("stuck", &spec).await?.injects(&set["spec"]["template"]).await?;
    sandbox.apply(&[set]).await
}
