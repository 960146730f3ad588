//! Rates: differences of counters over time.

use std::{collections::BTreeMap, time::Instant};

use larder_api::admin::{RouteCounters, Stats, TierCounters};
use serde::Serialize;

/// Counters of a pod, and when they were read.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) stats: Stats,
}

/// Events per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rates {
    pub(super) routes: Vec<RouteRates>,
    pub(super) tiers: Vec<TierRates>,
}

/// Requests of a route per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RouteRates {
    pub(super) route: String,
    pub(super) requests: f64,
    pub(super) hits: f64,
    pub(super) misses: f64,
    pub(super) stale: f64,
    pub(super) bypassed: f64,
    pub(super) errors: f64,
    /// Hits among hits and misses, 0 to 1; none without either.
    pub(super) hit_ratio: Option<f64>,
}

/// Responses of a tier per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TierRates {
    pub(super) tier: String,
    pub(super) responses: f64,
    /// Mean time until their heads were ready; none without responses.
    pub(super) mean_seconds: Option<f64>,
}

impl Sample {
    /// Returns the rates since an earlier sample. Counters that went back are of a process that has begun since.
    pub(super) fn since(&self, before: &Self) -> Rates {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return Rates::default();
        }
        let rate = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now) as f64 / seconds;
        let routes: BTreeMap<_, _> =
            before.stats.routes.iter().map(|route| (route.route.as_str(), route)).collect();
        let none = RouteCounters::default();
        let routes = self.stats.routes.iter().map(|now| {
            let before = routes.get(now.route.as_str()).copied().unwrap_or(&none);
            RouteRates {
                route: now.route.clone(),
                requests: rate(now.requests, before.requests),
                hits: rate(now.hits, before.hits),
                misses: rate(now.misses, before.misses),
                stale: rate(now.stale, before.stale),
                bypassed: rate(now.bypassed, before.bypassed),
                errors: rate(now.errors, before.errors),
                hit_ratio: None,
            }
            .with_ratio()
        });
        let none = TierCounters::default();
        let tiers = self.stats.tiers.iter().map(|now| {
            let before = before.stats.tiers.iter().find(|tier| tier.tier == now.tier).unwrap_or(&none);
            let (took, responses) = match now.responses.checked_sub(before.responses) {
                Some(responses) => (now.seconds - before.seconds, responses),
                None => (now.seconds, now.responses),
            };
            TierRates {
                tier: now.tier.clone(),
                responses: responses as f64 / seconds,
                mean_seconds: (responses > 0).then(|| took.max(0.0) / responses as f64),
            }
        });
        Rates { routes: routes.collect(), tiers: tiers.collect() }
    }
}

impl RouteRates {
    fn with_ratio(mut self) -> Self {
        let lookups = self.hits + self.misses;
        self.hit_ratio = (lookups > 0.0).then(|| self.hits / lookups);
        self
    }
}

impl Rates {
    /// Returns the sum of the rates of several pods.
    pub(super) fn sum<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let mut routes = BTreeMap::<&str, RouteRates>::new();
        let mut tiers = BTreeMap::<&str, (f64, f64)>::new();
        for one in all {
            for route in &one.routes {
                let sum = routes.entry(&route.route).or_default();
                // A new rate must not be forgotten.
                let RouteRates { route: _, requests, hits, misses, stale, bypassed, errors, hit_ratio: _ } =
                    route;
                sum.requests += requests;
                sum.hits += hits;
                sum.misses += misses;
                sum.stale += stale;
                sum.bypassed += bypassed;
                sum.errors += errors;
            }
            for TierRates { tier, responses, mean_seconds } in &one.tiers {
                let (sum, seconds) = tiers.entry(tier).or_default();
                *sum += responses;
                *seconds += responses * mean_seconds.unwrap_or_default();
            }
        }
        let routes =
            routes.into_iter().map(|(route, sum)| RouteRates { route: route.to_owned(), ..sum }.with_ratio());
        let tiers = tiers.into_iter().map(|(tier, (responses, seconds))| {
            let mean_seconds = (responses > 0.0).then(|| seconds / responses);
            TierRates { tier: tier.to_owned(), responses, mean_seconds }
        });
        Self { routes: routes.collect(), tiers: tiers.collect() }
    }

    /// Returns the sum of all routes.
    pub(super) fn of_all_routes(&self) -> RouteRates {
        let named = |route: &RouteRates| RouteRates { route: String::new(), ..route.clone() };
        let unnamed = Self { routes: self.routes.iter().map(named).collect(), tiers: vec![] };
        let one_by_one: Vec<_> =
            unnamed.routes.into_iter().map(|route| Self { routes: vec![route], tiers: vec![] }).collect();
        Self::sum(one_by_one.iter()).routes.into_iter().next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample(at: Instant, requests: u64, hits: u64, responses: u64, seconds: f64) -> Sample {
        let route = RouteCounters {
            route: "user".into(),
            requests,
            hits,
            misses: requests - hits,
            ..RouteCounters::default()
        };
        let tier = TierCounters { tier: "l2".into(), responses, seconds };
        Sample { at, stats: Stats { routes: vec![route], tiers: vec![tier], ..Stats::default() } }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let at = Instant::now();
        let (before, now) =
            (sample(at, 100, 90, 10, 1.0), sample(at + Duration::from_secs(2), 120, 105, 14, 1.2));
        let rates = now.since(&before);
        let user = &rates.routes[0];
        assert_eq!((user.requests, user.hits, user.misses, user.hit_ratio), (10.0, 7.5, 2.5, Some(0.75)));
        let tier = &rates.tiers[0];
        assert_eq!(tier.responses, 2.0);
        assert!((tier.mean_seconds.unwrap() - 0.05).abs() < 1e-9);
        assert_eq!(before.since(&before), Rates::default());
    }

    #[test]
    fn sidecar_that_began_again_counts_from_zero() {
        let at = Instant::now();
        let rates = sample(at + Duration::from_secs(1), 3, 3, 1, 0.5).since(&sample(at, 100, 90, 10, 9.0));
        assert_eq!((rates.routes[0].requests, rates.tiers[0].mean_seconds), (3.0, Some(0.5)));
    }

    #[test]
    fn sum_weighs_ratios_and_means() {
        let at = Instant::now();
        let zero = sample(at, 0, 0, 0, 0.0);
        let after = at + Duration::from_secs(1);
        let pods = [sample(after, 10, 10, 9, 0.9).since(&zero), sample(after, 30, 0, 1, 1.1).since(&zero)];
        let sum = Rates::sum(pods.iter());
        assert_eq!((sum.routes[0].requests, sum.routes[0].hit_ratio), (40.0, Some(0.25)));
        assert!((sum.tiers[0].mean_seconds.unwrap() - 0.2).abs() < 1e-9);
        assert_eq!(sum.of_all_routes().requests, 40.0);
    }
}
