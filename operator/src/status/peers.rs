//! Pods that can't tell one another of purges, as their sidecars say.

use std::{collections::BTreeMap, net::SocketAddr};

use larder_api::admin::PeersReport;

use super::{Observation, Verdict};
use crate::policy_pods::PodReport;

/// Returns the verdict on ready pods that can't tell others, which are ready as well, or can't find any; `None` if there are none.
pub(super) fn apart(seen: &Observation<'_>) -> Option<Verdict> {
    let ready = || seen.policy_pods.pods.iter().filter(|pod| pod.matched && pod.injected && pod.ready);
    let by_address: BTreeMap<_, _> = ready().filter_map(|pod| Some((address(pod)?, &*pod.name))).collect();
    let reports: Vec<_> = ready().filter_map(|pod| Some((&*pod.name, report(seen, pod)?))).collect();
    let ways = reports.iter().flat_map(|(from, report)| {
        let ways = report.unreachable.iter();
        // Who is gone, or not there yet, has nothing that is stale.
        ways.filter_map(|(to, reason)| Some((*from, *by_address.get(&to.parse().ok()?)?, reason)))
    });
    let mut ways = ways.peekable();
    if let Some((from, to, reason)) = ways.next() {
        let others = match ways.count() {
            0 => String::new(),
            others => format!(", and {others} more such ways"),
        };
        let port = seen.settings.admin_port;
        let message = format!(
            "pod {from} can't tell pod {to} of purges ({reason}){others}: let the policy's pods reach one another on port {port}, \
             which a NetworkPolicy may forbid"
        );
        return Some(Verdict::new(false, "PeersUnreachable", message));
    }
    let (pod, error) = reports.iter().find_map(|(pod, report)| Some((pod, report.error.as_ref()?)))?;
    let message = format!("pod {pod} can't find the others, to tell them of purges: {error}");
    Some(Verdict::new(false, "PeersNotFound", message))
}

fn address(pod: &PodReport) -> Option<SocketAddr> {
    Some(SocketAddr::new(pod.address?, pod.admin_port?))
}

fn report<'a>(seen: &Observation<'a>, pod: &PodReport) -> Option<&'a PeersReport> {
    seen.answers.get(&pod.name)?.as_ref().ok()?.peers.as_ref()
}
