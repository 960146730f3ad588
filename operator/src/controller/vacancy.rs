//! The reason that a policy has no pods, as far as only the API server knows it.

use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        batch::v1::{CronJob, Job},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::ResourceExt;
use larder_crds::CachePolicy;

use super::{Context, admission};
use crate::{
    error::Result,
    vacancy::{Awaited, Vacancy, is_selected, named, vacancy},
};

impl Context {
    /// Returns the reason that a policy has no pods. Where some are awaited, the API server is asked for one by a dry run.
    pub(super) async fn vacancy(&self, namespace: &str, policy: &CachePolicy) -> Result<Vacancy> {
        let own = &policy.spec.selector;
        let mut found = vacancy(&self.stores, namespace, own);
        if found == Vacancy::NoWorkload {
            self.stores.rollouts.refresh(&self.dependencies.client, namespace).await?;
            found = vacancy(&self.stores, namespace, own);
        }
        if found == Vacancy::NoWorkload {
            found = self.unwatched_without_pods(namespace, own).await?;
        }
        let Vacancy::Awaited(awaited) = found else { return Ok(found) };
        let words = admission::words_against(&self.dependencies.client, namespace, &awaited.pod).await?;
        Ok(match words {
            Some(words) => awaited.refused(&words),
            None => Vacancy::Awaited(awaited),
        })
    }

    /// Returns the reason that bare ReplicaSets, Jobs and CronJobs of a selector have no pods. They are not watched.
    async fn unwatched_without_pods(&self, namespace: &str, own: &LabelSelector) -> Result<Vacancy> {
        let client = &self.dependencies.client;
        let sets: Vec<ReplicaSet> = admission::list(client, namespace).await?;
        let is_bare =
            |set: &&ReplicaSet| set.owner_references().iter().all(|owner| owner.controller != Some(true));
        let sets = sets.iter().filter(is_bare).filter_map(|set| {
            let spec = set.spec.as_ref()?;
            Some((named("ReplicaSet", &set.metadata), spec.template.clone()?, spec.replicas.unwrap_or(1)))
        });
        let mut idle = None;
        for (owner, template, wanted) in sets.filter(|(_, template, _)| is_selected(own, template)) {
            if wanted > 0 {
                return Ok(Vacancy::Awaited(Awaited::new(owner, &template)));
            }
            idle.get_or_insert(owner);
        }
        match idle {
            Some(owner) => Ok(Vacancy::Idle(format!("{owner} wants no pods"))),
            None => self.jobs_without_pods(namespace, own).await,
        }
    }

    /// Returns the reason that the Jobs and CronJobs of a selector have no pods.
    async fn jobs_without_pods(&self, namespace: &str, own: &LabelSelector) -> Result<Vacancy> {
        let client = &self.dependencies.client;
        let jobs: Vec<Job> = admission::list(client, namespace).await?;
        let mut ended = None;
        for job in &jobs {
            let Some(spec) = job.spec.as_ref().filter(|spec| is_selected(own, &spec.template)) else {
                continue;
            };
            let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let has_ended = conditions.into_iter().any(|condition| {
                matches!(condition.type_.as_str(), "Complete" | "Failed" | "Suspended")
                    && condition.status == "True"
            });
            let owner = named("Job", &job.metadata);
            if !has_ended && spec.suspend != Some(true) {
                return Ok(Vacancy::Awaited(Awaited::new(owner, &spec.template)));
            }
            ended.get_or_insert(owner);
        }
        let timed: Vec<CronJob> = admission::list(client, namespace).await?;
        let timed = timed.into_iter().find(|job| {
            let template = job.spec.as_ref().and_then(|spec| spec.job_template.spec.as_ref());
            template.is_some_and(|spec| is_selected(own, &spec.template))
        });
        Ok(match (timed, ended) {
            (Some(job), _) => {
                Vacancy::Idle(format!("{} has no pods between its runs", named("CronJob", &job.metadata)))
            }
            (None, Some(owner)) => Vacancy::Idle(format!("{owner} has no running pods")),
            (None, None) => Vacancy::NoWorkload,
        })
    }
}
