//! Tests of workloads.

use super::*;

pub(crate) fn workload_with(progress: Progress) -> Workload {
    let halt = (!progress.rolls).then_some(Halt::Paused);
    Workload { progress, halt, ..of_deployment(&deployment(json!({}))) }
}

fn deployment(status: Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "shop", "uid": "u", "generation": 2, "annotations": {annotations::ROLL_ATTEMPTS: "3"}},
        "spec": {"replicas": 2, "selector": {}, "template": {
            "metadata": {"annotations": {annotations::RESTARTED_AT: "2026-01-01T00:00:00Z"}}, "spec": {"containers": []}}},
        "status": status,
    }))
    .unwrap()
}

#[test]
fn a_rollout_is_complete_when_every_replica_is_new_and_available() {
    let complete =
        json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
    let progress = of_deployment(&deployment(complete.clone())).progress;
    assert!(progress.complete && progress.rolls);
    assert_eq!(progress.attempts, 3);
    assert_eq!(progress.restarted_at, Some("2026-01-01T00:00:00Z".parse().unwrap()));
    for (field, value) in
        [("observedGeneration", 1), ("replicas", 3), ("updatedReplicas", 1), ("availableReplicas", 1)]
    {
        let mut status = complete.clone();
        status[field] = json!(value);
        assert!(!of_deployment(&deployment(status)).progress.complete, "{field}");
    }
}

#[test]
fn a_restart_alone_leaves_the_aim_as_it_was() {
    let aim = |deployment: &Deployment, injection| {
        let mut workload = of_deployment(deployment);
        workload.aim_at(injection);
        workload
    };
    let before = deployment(json!({}));
    let first = aim(&before, Some("a"));
    assert!(first.progress.outlived);

    let mut restarted = before.clone();
    restarted.annotations_mut().insert(annotations::ROLL_AIM.into(), first.aim.clone());
    let template = &mut restarted.spec.as_mut().unwrap().template;
    let annotations = template.metadata.as_mut().unwrap().annotations.as_mut().unwrap();
    annotations.insert(annotations::RESTARTED_AT.into(), "2026-02-02T00:00:00Z".into());
    assert!(!aim(&restarted, Some("a")).progress.outlived);
    assert!(aim(&restarted, Some("b")).progress.outlived, "other settings");
    assert!(aim(&restarted, None).progress.outlived);

    let template = &mut restarted.spec.as_mut().unwrap().template;
    template.metadata.as_mut().unwrap().labels = Some([("a".to_owned(), "b".to_owned())].into());
    assert!(aim(&restarted, Some("a")).progress.outlived, "another template");
}

#[test]
fn first_restart_of_a_template_without_annotations_leaves_the_aim_as_it_was() {
    let mut before = deployment(json!({}));
    before.spec.as_mut().unwrap().template.metadata.as_mut().unwrap().annotations = None;
    let aim = |deployment: &Deployment| {
        let mut workload = of_deployment(deployment);
        workload.aim_at(Some("a"));
        workload.aim
    };
    assert_eq!(aim(&before), aim(&deployment(json!({}))));
}

#[test]
fn a_deployment_rolls_while_it_has_older_pods() {
    let rolling = |status| is_rolling(&deployment(status));
    let done = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2});
    assert!(!rolling(done.clone()));
    for (field, value) in [("observedGeneration", 1), ("replicas", 3), ("updatedReplicas", 1)] {
        let mut status = done.clone();
        status[field] = json!(value);
        assert!(rolling(status.clone()), "{field}");
        status["observedGeneration"] = json!(2);
        status["conditions"] =
            json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]);
        assert!(!rolling(status), "{field}");
    }
}

#[test]
fn surge_and_unavailability_follow_the_strategy() {
    let of = |strategy: Value| {
        let mut deployment = deployment(json!({}));
        deployment.spec.as_mut().unwrap().strategy = serde_json::from_value(strategy).unwrap();
        deployment.spec.as_mut().unwrap().replicas = Some(10);
        let Replacement { surge, unavailable } = of_deployment(&deployment).replacement;
        (surge, unavailable)
    };
    assert_eq!(of(Value::Null), (3, 2));
    assert_eq!(of(json!({"type": "Recreate"})), (0, 10));
    assert_eq!(of(json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}})), (0, 1));
    assert_eq!(of(json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})), (1, 0));
    assert_eq!(of(json!({"rollingUpdate": {"maxSurge": "50%", "maxUnavailable": "50%"}})), (5, 5));
    assert_eq!(of(json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 50}})), (0, 10), "there are 10");
}

#[test]
fn no_more_pods_are_unavailable_than_are_wanted() {
    let strategy = json!({"rollingUpdate": {"maxUnavailable": 5}});
    let template = json!({"spec": {"containers": []}});
    let set = json!({"metadata": {}, "spec": {"serviceName": "s", "selector": {}, "replicas": 2, "template": template,
        "updateStrategy": strategy}});
    assert_eq!(of_stateful_set(&serde_json::from_value(set).unwrap()).replacement.unavailable, 2);
    let status = json!({"currentNumberScheduled": 3, "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3});
    let daemons = json!({"metadata": {}, "spec": {"selector": {}, "template": template, "updateStrategy": strategy},
        "status": status});
    assert_eq!(of_daemon_set(&serde_json::from_value(daemons).unwrap()).replacement.unavailable, 3);
}

#[test]
fn volumes_of_claims_are_in_the_template_of_a_stateful_set() {
    let set = json!({"metadata": {"name": "db"}, "spec": {"serviceName": "s", "selector": {},
        "template": {"spec": {"containers": [], "volumes": [{"name": "tmp", "emptyDir": {}}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}});
    let volumes = of_stateful_set(&serde_json::from_value(set).unwrap()).template["spec"]["volumes"].clone();
    let claim = json!({"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}});
    assert_eq!(volumes, json!([{"name": "tmp", "emptyDir": {}}, claim]));
}

#[test]
fn workload_without_automatic_rollout_is_detected() {
    let set = |strategy: Value| {
        let set = json!({"metadata": {}, "spec": {"serviceName": "s", "selector": {}, "template": {}, "updateStrategy": strategy}});
        of_stateful_set(&serde_json::from_value(set).unwrap()).progress.rolls
    };
    assert!(set(json!({"type": "RollingUpdate"})));
    assert!(!set(json!({"type": "OnDelete"})));
    assert!(!set(json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}})));
}

#[test]
fn deployment_that_does_not_progress_says_so() {
    let words = "ReplicaSet \"shop-2\" has timed out progressing.";
    let condition = |reason: &str| json!({"conditions": [{"type": "Progressing", "status": "False", "reason": reason, "message": words}]});
    assert_eq!(of_deployment(&deployment(condition(DEADLINE_EXCEEDED))).stalled.as_deref(), Some(words));
    assert_eq!(of_deployment(&deployment(condition("ReplicaSetUpdated"))).stalled, None);
}

#[test]
fn change_cause_of_somebody_else_stays() {
    let with = |cause: Option<&str>| {
        let mut deployment = deployment(json!({}));
        if let Some(cause) = cause {
            deployment.annotations_mut().insert(annotations::CHANGE_CAUSE.into(), cause.into());
        }
        of_deployment(&deployment)
    };
    let clause = crate::rollout::Deviation::Missed.clause();
    let own = with(None).cause(clause).unwrap();
    assert_eq!(own, "Larder: pods have no sidecar");
    assert_eq!(with(None).own_cause(), None);
    assert_eq!(with(Some(&own)).own_cause(), Some(own.as_str()));
    assert_eq!(with(Some(&own)).cause(clause), Some(own));
    assert_eq!(with(Some("release 7")).cause(clause), None);
    assert_eq!(with(Some("release 7")).own_cause(), None);
}

#[test]
fn owner_of_another_group_is_no_workload() {
    let stores = crate::policy_pods::tests::stores(vec![]);
    let found = |api_version: &str| {
        let owner = OwnerReference {
            api_version: api_version.into(),
            kind: "ReplicaSet".into(),
            name: "shop-1".into(),
            ..OwnerReference::default()
        };
        of_owner(&stores, "shop", &owner).is_some()
    };
    assert!(found("apps/v1"));
    assert!(!found("apps.kruise.io/v1alpha1"), "another kind of the same name");
}
