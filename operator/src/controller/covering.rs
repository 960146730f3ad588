//! Informs a policy's sidecars when every pod that takes requests has one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::ResourceExt;
use larder_api::admin::PolicyReport;
use larder_crds::CachePolicy;
use larder_policy::{Coverage, spec::CacheSpec};

use super::{
    Context,
    writes::{Held, WriteError},
};
use crate::{
    coverage::{self, Assessment, View, Writer},
    error::Result,
    policy_pods::PolicyPods,
};

/// A policy and its location.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) namespace: &'a str,
    pub(super) policy: &'a CachePolicy,
}

/// A policy whose sidecars follow its coverage.
pub(super) struct Covered {
    /// The pods that take requests.
    pub(super) writers: Vec<Writer>,
    /// The hash of the document in the ConfigMap.
    pub(super) hash: String,
    /// The coverage in the ConfigMap now.
    pub(super) published: Option<Coverage>,
    assessment: Assessment,
}

impl Covered {
    /// Returns the coverage for the status.
    pub(super) fn view(&self, spec: &CacheSpec) -> Option<View> {
        let state = self.published.as_ref()?.state;
        Some(View { assessment: self.assessment.clone(), choice: coverage::choice(spec), state })
    }
}

impl Context {
    /// Examines the pods of a policy whose sidecars follow its coverage; returns `None` for other policies. While the
    /// policy `is_refused`, its sidecars continue to run the document in the ConfigMap, which is examined instead.
    pub(super) async fn covered(
        &self,
        Place { namespace, policy }: Place<'_>,
        held: Option<&Held>,
        is_refused: bool,
        now: Timestamp,
    ) -> Result<Option<Covered>> {
        let (name, uid) = (policy.name_any(), policy.uid().unwrap_or_default());
        let found = if held.is_none() && is_refused { self.held(namespace, &name).await? } else { None };
        let Some(held) = held.or(found.as_ref()) else { return Ok(None) };
        if !held.follows_coverage {
            if held.coverage.is_some() && !is_refused {
                // It would be of an earlier time when the policy has rules for writes again.
                self.put_coverage(namespace, &name, None).await?;
            }
            return Ok(None);
        }
        let writers = coverage::writers(&self.stores, (namespace, &name), &policy.spec.selector, now);
        Ok(Some(Covered {
            writers,
            hash: held.hash.clone(),
            published: held.coverage.as_deref().and_then(|text| Coverage::parse(text, &uid)),
            assessment: Assessment::default(),
        }))
    }

    /// Writes the coverage for the sidecars, if it has changed.
    pub(super) async fn publish_coverage(
        &self,
        Place { namespace, policy }: Place<'_>,
        covered: &mut Covered,
        policy_pods: &PolicyPods,
        answers: &BTreeMap<String, Result<PolicyReport, String>>,
        now: Timestamp,
    ) -> Result<(), WriteError> {
        let (name, uid) = (policy.name_any(), policy.uid().unwrap_or_default());
        let strategy = policy.spec.sidecar.rollout.strategy;
        covered.assessment = coverage::assess(&covered.writers, answers, &covered.hash);
        let next = coverage::next(
            covered.published.as_ref(),
            &uid,
            &covered.assessment,
            coverage::choice(&policy.spec.cache),
            coverage::awaits_restart(policy_pods, &covered.writers, strategy, now),
            now,
        );
        if covered.published.as_ref() == Some(&next) {
            return Ok(());
        }
        tracing::info!(namespace, name, state = ?next.state, "changed the coverage of the sidecars");
        let written = self.put_coverage(namespace, &name, Some(&next)).await;
        written.map_err(|error| WriteError { what: "could not write the coverage".into(), error })?;
        covered.published = Some(next);
        Ok(())
    }
}
