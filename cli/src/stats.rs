//! `larder stats`.

use std::collections::{BTreeMap, HashMap};

use larder_api::admin::{Stats, TierCounters, TopKey, path};

use crate::{
    args,
    cluster::Cluster,
    error::{Error, Result},
    figures::{PodFigures, Report},
    outcome::Outcome,
    output::Output,
    paint::{Paint, Tone},
    sidecar::{Sidecar, ask_all},
    table::{Cell, Table},
    wording,
};

/// Shows the counters of a policy's sidecars.
pub(crate) async fn run(args: &args::Stats, cluster: &Cluster, output: &Output) -> Result<Outcome> {
    let policy = cluster.policy(&args.policy).await?;
    let mut pods = cluster.sidecar_pods(&policy).await?;
    pods.retain(|pod| pod.running);
    if pods.is_empty() {
        return Err(Error::NoSidecar(args.policy.clone()));
    }
    let token = cluster.token(&policy).await?;
    let path = format!("{}?top={}", path::STATS, args.top);
    let asked =
        ask_all(&pods, async |pod| Sidecar { cluster, pod, token: Some(&token) }.get::<Stats>(&path).await);
    let asked = asked.await?.into_iter();
    let pods: Vec<_> = asked.map(|(pod, stats)| PodFigures::of(&pod.name, stats.map(Some))).collect();
    let total = sum(pods.iter().filter_map(|pod| pod.figures.as_ref()), args.top);
    let report = Report { namespace: cluster.namespace.clone(), policy: args.policy.clone(), total, pods };
    output.print(&report, |paint| text(&report, paint))?;
    Ok(report.outcome())
}

/// Returns the sum of counters, with the keys that have the most hits in all pods together.
fn sum<'a>(all: impl Iterator<Item = &'a Stats>, top: usize) -> Stats {
    let mut sum = Stats::default();
    let mut keys = HashMap::<&str, u64>::new();
    let mut tiers_of_all = BTreeMap::<&str, (u64, f64)>::new();
    for one in all {
        // A new counter must not be forgotten.
        let Stats {
            hits,
            misses,
            hit_rate: _,
            l1_hits,
            l2_hits,
            cache_misses,
            collapsed,
            revalidated,
            stale,
            bypassed,
            passed,
            errors,
            l1_entries,
            l1_bytes,
            l1_evictions,
            total_cached_keys,
            bytes,
            top_keys,
            tiers,
            // Not asked for.
            routes: _,
        } = one;
        sum.hits += hits;
        sum.misses += misses;
        sum.l1_hits += l1_hits;
        sum.l2_hits += l2_hits;
        sum.cache_misses += cache_misses;
        sum.collapsed += collapsed;
        sum.revalidated += revalidated;
        sum.stale += stale;
        sum.bypassed += bypassed;
        sum.passed += passed;
        sum.errors += errors;
        sum.l1_entries += l1_entries;
        sum.l1_bytes += l1_bytes;
        sum.l1_evictions += l1_evictions;
        sum.total_cached_keys =
            sum.total_cached_keys.into_iter().chain(*total_cached_keys).reduce(|a, b| a + b);
        sum.bytes += bytes;
        for TierCounters { tier, responses, seconds } in tiers {
            let (all, took) = tiers_of_all.entry(tier.as_str()).or_default();
            *all += responses;
            *took += seconds;
        }
        top_keys.iter().for_each(|TopKey { hits, key }| *keys.entry(key).or_default() += hits);
    }
    let lookups = sum.hits + sum.misses;
    sum.hit_rate = if lookups == 0 { 0.0 } else { sum.hits as f64 / lookups as f64 };
    let mut keys: Vec<_> = keys.into_iter().map(|(key, hits)| TopKey { hits, key: key.to_owned() }).collect();
    keys.sort_by(|a, b| b.cmp(a));
    keys.truncate(top);
    sum.top_keys = keys;
    let tiers = tiers_of_all.into_iter();
    let counters =
        |(tier, (responses, seconds))| TierCounters { tier: str::to_owned(tier), responses, seconds };
    sum.tiers = tiers.map(counters).collect();
    sum
}

fn row(name: &str, stats: &Stats) -> Vec<Cell> {
    let counters = [
        stats.hits,
        stats.misses,
        stats.l1_hits,
        stats.l2_hits,
        stats.collapsed,
        stats.revalidated,
        stats.stale,
        stats.bypassed,
        stats.passed,
        stats.errors,
        stats.total_cached_keys.unwrap_or_default(),
    ];
    let mut row = vec![name.into(), wording::percent(stats.hits, stats.hits + stats.misses).into()];
    row.extend(counters.map(|counter| Cell::from(counter.to_string())));
    row.push(wording::bytes(stats.l1_bytes).into());
    row
}

fn text(report: &Report<Stats>, paint: Paint) -> String {
    let headings = [
        "POD",
        "HIT%",
        "HITS",
        "MISSES",
        "L1 HITS",
        "L2 HITS",
        "COLLAPSED",
        "REVALIDATED",
        "STALE",
        "BYPASSED",
        "PASSED",
        "ERRORS",
        "KEYS",
        "MEMORY",
    ];
    let mut table = Table::new(&headings);
    for PodFigures { pod, figures, .. } in &report.pods {
        match figures {
            Some(stats) => table.push(row(pod, stats)),
            None => table.push(vec![pod.as_str().into(), Cell::toned("?", Tone::Bad)]),
        }
    }
    table.push(row("all", &report.total));
    let mut text = table.to_text(paint, "");
    text.push_str(&report.error_lines(paint));
    if !report.total.top_keys.is_empty() {
        let mut table = Table::new(&["HITS", "KEY"]);
        for TopKey { hits, key } in &report.total.top_keys {
            table.push(vec![hits.to_string().into(), key.as_str().into()]);
        }
        text.push('\n');
        text.push_str(&table.to_text(paint, ""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(hits: u64, misses: u64, keys: &[(&str, u64)]) -> Stats {
        let top_keys =
            keys.iter().map(|(key, hits)| TopKey { hits: *hits, key: (*key).to_owned() }).collect();
        Stats { hits, misses, l1_hits: hits, l1_bytes: 1024, top_keys, ..Stats::default() }
    }

    #[test]
    fn sum_has_the_ratio_and_the_keys_of_all_pods() {
        let pods = [stats(8, 2, &[("a", 5), ("b", 3)]), stats(1, 9, &[("b", 3)])];
        let sum = sum(pods.iter(), 1);
        assert_eq!((sum.hits, sum.misses, sum.hit_rate, sum.l1_bytes), (9, 11, 0.45, 2048));
        assert_eq!(sum.top_keys, [TopKey { hits: 6, key: "b".into() }]);
        assert_eq!(super::sum([].into_iter(), 1).hit_rate, 0.0);
    }

    #[test]
    fn pods_are_followed_by_their_sum() {
        let (one, two) = (stats(8, 2, &[("GET:http://shop/\nx=y", 8)]), stats(1, 9, &[]));
        let total = sum([&one, &two].into_iter(), 10);
        let pod = |name: &str, stats| PodFigures::of(name, Ok(Some(stats)));
        let lost = PodFigures { pod: "c".into(), figures: None, error: Some("can't reach it".into()) };
        let report = Report {
            namespace: "shop".into(),
            policy: "shop".into(),
            total,
            pods: vec![pod("a", one), pod("b", two), lost],
        };
        let said = text(&report, Paint::NONE);
        let lines: Vec<_> = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[1][..4], ["a", "80%", "8", "2"]);
        assert_eq!(lines[3], ["c", "?"]);
        assert_eq!(lines[4][..4], ["all", "45%", "9", "11"]);
        assert!(
            said.contains("can't reach it\n") && said.ends_with("8      GET:http://shop/ x=y\n"),
            "{said}"
        );
    }
}
