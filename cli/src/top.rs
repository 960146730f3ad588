//! `larder top`.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use futures::FutureExt;
use larder_api::admin::{Stats, path};
use larder_crds::CachePolicy;
use tokio::time::sleep;

mod rates;
mod screen;

use rates::{Rates, Sample};
use screen::View;

use crate::{
    args,
    cluster::Cluster,
    error::{Error, Result},
    figures::{PodFigures, Report},
    outcome::Outcome,
    output::Output,
    paint::Paint,
    sidecar::{Connection, Sidecar, ask_all},
    terminal::{Key, Terminal},
};

/// Shows rates until a key ends it, or once if the output is not for a person at a terminal.
pub(crate) async fn run(args: &args::Top, cluster: &Cluster, output: &Output) -> Result<Outcome> {
    let interval = Duration::from_secs(args.interval.get().into());
    let policy = cluster.policy(&args.policy).await?;
    let token = cluster.token(&policy).await?;
    let mut source = Source {
        cluster,
        policy: &policy,
        token: &token,
        before: BTreeMap::new(),
        connections: RefCell::default(),
    };
    let first = source.report(Duration::ZERO).await?;
    if output.is_for_people() && io::stdin().is_terminal() && io::stdout().is_terminal() {
        watch(source, first, interval).await?;
        return Ok(Outcome::Good);
    }
    let report = source.report(interval).await?;
    output.print(&report, |paint| screen::text(&report, View::default(), None, paint))?;
    Ok(report.outcome())
}

/// Shows one report after another on the terminal.
async fn watch(source: Source<'_>, first: Report<Rates>, interval: Duration) -> Result<()> {
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
    /// Connections to pods by their names, but those in use.
    connections: RefCell<BTreeMap<String, Connection>>,
}

impl<'a> Source<'a> {
    /// Returns the report after a time, and the source for the next one.
    async fn next(mut self, after: Duration) -> (Self, Result<Report<Rates>>) {
        let report = self.report(after).await;
        (self, report)
    }

    /// Asks the pods that there are after a time.
    async fn report(&mut self, after: Duration) -> Result<Report<Rates>> {
        sleep(after).await;
        let Self { cluster, policy, token, .. } = *self;
        let mut pods = cluster.sidecar_pods(policy).await?;
        pods.retain(|pod| pod.running);
        let name = policy.metadata.name.clone().unwrap_or_default();
        if pods.is_empty() {
            return Err(Error::NoSidecar(name));
        }
        let path = format!("{}?top=0&routes=true", path::STATS);
        let connections = &self.connections;
        let asked = ask_all(&pods, async |pod| {
            let mut connection = connections.borrow_mut().remove(&pod.name);
            let sidecar = Sidecar { cluster, pod, token: Some(token) };
            let stats = sidecar.get_over::<Stats>(&mut connection, &path).await?;
            if let Some(connection) = connection {
                connections.borrow_mut().insert(pod.name.clone(), connection);
            }
            Ok(Sample { at: Instant::now(), stats })
        });
        let mut samples = BTreeMap::new();
        let mut rates_of_pods = Vec::new();
        for (pod, sample) in asked.await? {
            let rates = sample.map(|sample| {
                let rates = self.before.get(&pod.name).map(|before| sample.since(before));
                samples.insert(pod.name.clone(), sample);
                rates
            });
            rates_of_pods.push(PodFigures::of(&pod.name, rates));
        }
        self.connections.get_mut().retain(|pod, _| samples.contains_key(pod));
        self.before = samples;
        // The order of pods is by readiness, which changes.
        rates_of_pods.sort_by(|a, b| a.pod.cmp(&b.pod));
        let total = Rates::sum(rates_of_pods.iter().filter_map(|pod| pod.figures.as_ref()));
        Ok(Report { namespace: cluster.namespace.clone(), policy: name, total, pods: rates_of_pods })
    }
}
