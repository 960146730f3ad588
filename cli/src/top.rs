//! `larder top`.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use futures::FutureExt;
use larder_api::admin::{Stats, path};
use larder_crds::CachePolicy;
use serde::Serialize;
use tokio::time::sleep;

mod rates;
mod screen;

use rates::{Rates, Sample};
use screen::View;

use crate::{
    args,
    cluster::Cluster,
    error::{Error, Result},
    outcome::Outcome,
    output::Output,
    paint::Paint,
    sidecar::{Sidecar, ask_all},
    terminal::{Key, Terminal},
};

/// Rates of a policy's sidecars.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    namespace: String,
    policy: String,
    /// The sum of the pods that responded.
    total: Rates,
    pods: Vec<PodRates>,
}

/// Rates of a pod's sidecar.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodRates {
    pod: String,
    /// Rates; none until the pod was asked twice.
    rates: Option<Rates>,
    /// Reason that there are none.
    error: Option<String>,
}

/// Shows rates until a key ends it, or once if the output is not for a person at a terminal.
pub(crate) async fn run(args: &args::Top, cluster: &Cluster, output: &Output) -> Result<Outcome> {
    let interval = Duration::from_secs(args.interval.get().into());
    let policy = cluster.policy(&args.policy).await?;
    let token = cluster.token(&policy).await?;
    let mut source = Source { cluster, policy: &policy, token: &token, before: BTreeMap::new() };
    let first = source.report(Duration::ZERO).await?;
    if output.is_for_people() && io::stdin().is_terminal() && io::stdout().is_terminal() {
        watch(source, first, interval).await?;
        return Ok(Outcome::Good);
    }
    let report = source.report(interval).await?;
    output.print(&report, |paint| screen::text(&report, View::default(), None, paint))?;
    let all_responded = report.pods.iter().all(|pod| pod.error.is_none());
    Ok(if all_responded { Outcome::Good } else { Outcome::Failed })
}

/// Shows one report after another on the terminal.
async fn watch(source: Source<'_>, first: Report, interval: Duration) -> Result<()> {
    let mut terminal = Terminal::open()?;
    let paint = Paint::for_standard_output();
    let (mut report, mut view) = (first, View::default());
    let mut next = source.next(interval).boxed_local();
    loop {
        terminal.draw(|lines| {
            // The last line has the keys.
            let mut text = screen::text(&report, view, Some(lines.saturating_sub(2)), paint);
            let keys = format!("\nq quit   s order: {}   p pods", view.order.as_str());
            text.push_str(&keys);
            text
        })?;
        tokio::select! {
            key = terminal.key() => match key? {
                Key::Quit => return Ok(()),
                Key::Resized => {}
                Key::Character('s') => view.order = view.order.next(),
                Key::Character('p') => view.pod = match view.pod {
                    None if report.pods.is_empty() => None,
                    None => Some(0),
                    Some(pod) => Some(pod + 1).filter(|pod| *pod < report.pods.len()),
                },
                Key::Character(_) => {}
            },
            (returned, fresh) = &mut next => {
                report = fresh?;
                view.pod = view.pod.filter(|pod| *pod < report.pods.len());
                next = returned.next(interval).boxed_local();
            }
        }
    }
}

/// Counters of a policy's pods, and those before them.
struct Source<'a> {
    cluster: &'a Cluster,
    policy: &'a CachePolicy,
    token: &'a str,
    before: BTreeMap<String, Sample>,
}

impl<'a> Source<'a> {
    /// Returns the report after a time, and the source for the next one.
    async fn next(mut self, after: Duration) -> (Self, Result<Report>) {
        let report = self.report(after).await;
        (self, report)
    }

    /// Asks the pods that there are after a time.
    async fn report(&mut self, after: Duration) -> Result<Report> {
        sleep(after).await;
        let Self { cluster, policy, token, .. } = *self;
        let mut pods = cluster.sidecar_pods(policy).await?;
        pods.retain(|pod| pod.running);
        let name = policy.metadata.name.clone().unwrap_or_default();
        if pods.is_empty() {
            return Err(Error::NoSidecar(name));
        }
        let path = format!("{}?top=0&routes=true", path::STATS);
        let asked = ask_all(&pods, async |pod| {
            let stats = Sidecar { cluster, pod, token: Some(token) }.get::<Stats>(&path).await?;
            Ok(Sample { at: Instant::now(), stats })
        });
        let mut samples = BTreeMap::new();
        let mut rates_of_pods = Vec::new();
        for (pod, sample) in asked.await? {
            let (rates, error) = match sample {
                Ok(sample) => {
                    let rates = self.before.get(&pod.name).map(|before| sample.since(before));
                    samples.insert(pod.name.clone(), sample);
                    (rates, None)
                }
                Err(error) => (None, Some(error.to_string())),
            };
            rates_of_pods.push(PodRates { pod: pod.name.clone(), rates, error });
        }
        self.before = samples;
        // The order of pods is by readiness, which changes.
        rates_of_pods.sort_by(|a, b| a.pod.cmp(&b.pod));
        let total = Rates::sum(rates_of_pods.iter().filter_map(|pod| pod.rates.as_ref()));
        Ok(Report { namespace: cluster.namespace.clone(), policy: name, total, pods: rates_of_pods })
    }
}
