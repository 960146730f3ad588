//! Rates as text.

use super::rates::{Rates, RouteRates, TierRates};
use crate::{
    figures::Report,
    paint::{Paint, Tone},
    table::{Cell, Table},
    wording,
};

larder_api::labelled! {
    /// Order of routes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) enum Order {
        /// Most requests first.
        #[default]
        Rate = "rate",
        /// Lowest hit ratio first.
        HitRatio = "hit ratio",
        /// Most misses first.
        Misses = "misses",
        /// Most errors first.
        Errors = "errors",
        /// Alphabetical.
        Name = "name",
    }
}

impl Order {
    /// Returns the order after this one.
    pub(super) fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    fn sort(self, routes: &mut [&RouteRates]) {
        let most = |rate: fn(&RouteRates) -> f64| {
            move |a: &&RouteRates, b: &&RouteRates| rate(b).total_cmp(&rate(a))
        };
        // Routes of equal rates do not change places.
        routes.sort_by(|a, b| a.route.cmp(&b.route));
        match self {
            Self::Rate => routes.sort_by(most(|route| route.requests)),
            Self::HitRatio => routes.sort_by(most(|route| -route.hit_ratio.unwrap_or(f64::INFINITY))),
            Self::Misses => routes.sort_by(most(|route| route.misses)),
            Self::Errors => routes.sort_by(most(|route| route.errors)),
            Self::Name => {}
        }
    }
}

/// Choices of the person at the terminal.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct View {
    pub(super) order: Order,
    /// Index of the pod that is shown; all of them otherwise.
    pub(super) pod: Option<usize>,
}

/// Returns a report in so many lines at most.
pub(super) fn text(report: &Report<Rates>, view: View, lines: Option<usize>, paint: Paint) -> String {
    let pod = view.pod.and_then(|index| report.pods.get(index));
    let none = Rates::default();
    let rates = match pod {
        None => &report.total,
        Some(pod) => pod.figures.as_ref().unwrap_or(&none),
    };
    let all = rates.of_all_routes();
    let of = pod.map_or_else(|| format!("{} pods", report.pods.len()), |pod| format!("pod {}", pod.pod));
    let mut text = format!(
        "{}/{}: {of}, {} requests/s, hit ratio {}\n",
        report.namespace,
        report.policy,
        rate(all.requests),
        ratio(all.hit_ratio)
    );
    text = paint.apply(Tone::Heading, wording::one_line(&text).trim_end()) + "\n\n";
    let tiers = tiers(rates, paint);
    let errors = report.error_lines(paint);
    // The heading, the empty lines, the heading of the table, and a line on routes that are left out.
    let others = 5 + tiers.lines().count() + errors.lines().count();
    let most = lines.map_or(usize::MAX, |lines| lines.saturating_sub(others).max(1));
    text.push_str(&routes(rates, view.order, most, paint));
    text.push('\n');
    text.push_str(&tiers);
    text.push_str(&errors);
    text
}

fn routes(rates: &Rates, order: Order, most: usize, paint: Paint) -> String {
    let mut routes: Vec<_> = rates.routes.iter().collect();
    order.sort(&mut routes);
    let mut table =
        Table::new(&["ROUTE", "REQ/S", "HIT%", "HITS/S", "MISSES/S", "STALE/S", "BYPASSED/S", "ERRORS/S"]);
    for RouteRates { route, requests, hits, misses, stale, bypassed, errors, hit_ratio } in
        routes.iter().take(most)
    {
        let errors = match *errors > 0.0 {
            true => Cell::toned(rate(*errors), Tone::Bad),
            false => rate(*errors).into(),
        };
        table.push(vec![
            route.as_str().into(),
            rate(*requests).into(),
            ratio(*hit_ratio).into(),
            rate(*hits).into(),
            rate(*misses).into(),
            rate(*stale).into(),
            rate(*bypassed).into(),
            errors,
        ]);
    }
    let mut text = table.to_text(paint, "");
    if routes.len() > most {
        text.push_str(&format!("... {} more\n", routes.len() - most));
    }
    text
}

fn tiers(rates: &Rates, paint: Paint) -> String {
    let mut table = Table::new(&["TIER", "RESPONSES/S", "MEAN"]);
    for TierRates { tier, responses, mean_seconds } in &rates.tiers {
        let mean = mean_seconds.map_or_else(|| "-".to_owned(), milliseconds);
        table.push(vec![tier.as_str().into(), rate(*responses).into(), mean.into()]);
    }
    table.to_text(paint, "")
}

/// Returns a rate with a fraction only below ten.
fn rate(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// Returns a share in percent, rounded down so that 100 % is all.
fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.0}%", (ratio * 100.0).floor()))
}

fn milliseconds(seconds: f64) -> String {
    let milliseconds = seconds * 1000.0;
    if milliseconds < 10.0 { format!("{milliseconds:.2} ms") } else { format!("{milliseconds:.0} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::PodFigures;

    fn route(route: &str, hits: f64, misses: f64) -> RouteRates {
        let lookups = hits + misses;
        let hit_ratio = (lookups > 0.0).then(|| hits / lookups);
        RouteRates {
            route: route.into(),
            requests: lookups,
            hits,
            misses,
            hit_ratio,
            ..RouteRates::default()
        }
    }

    fn report() -> Report<Rates> {
        let tier = TierRates { tier: "l2".into(), responses: 2.5, mean_seconds: Some(0.00123) };
        let rates = Rates {
            routes: vec![route("a", 1.0, 0.0), route("b", 5.0, 15.0), route("c", 0.0, 0.0)],
            tiers: vec![tier],
        };
        let lost = PodFigures { pod: "shop-2".into(), figures: None, error: Some("can't reach it".into()) };
        let pod = PodFigures::of("shop-1", Ok(Some(rates.clone())));
        Report { namespace: "shop".into(), policy: "cache".into(), total: rates, pods: vec![pod, lost] }
    }

    fn order_of(text: &str) -> Vec<char> {
        let names = text.lines().filter_map(|line| line.split_whitespace().next());
        names.filter(|name| name.len() == 1).filter_map(|name| name.chars().next()).collect()
    }

    #[test]
    fn routes_are_in_the_order_that_was_chosen() {
        let orders = Order::ALL.map(|order| {
            let view = View { order, pod: None };
            order_of(&text(&report(), view, None, Paint::NONE)).into_iter().collect::<String>()
        });
        assert_eq!(orders, ["bac", "bac", "bac", "abc", "abc"]);
        assert_eq!(Order::Name.next(), Order::Rate);
    }

    #[test]
    fn screen_has_rates_ratios_means_and_errors() {
        let said = text(&report(), View::default(), None, Paint::NONE);
        assert!(said.starts_with("shop/cache: 2 pods, 21 requests/s, hit ratio 28%\n"), "{said}");
        assert!(said.contains("l2     2.5           1.23 ms\n"), "{said}");
        assert!(said.ends_with("can't reach it\n"), "{said}");
        let said = text(&report(), View { pod: Some(1), ..View::default() }, None, Paint::NONE);
        assert!(said.starts_with("shop/cache: pod shop-2, 0 requests/s, hit ratio -\n"), "{said}");
    }

    #[test]
    fn screen_fits_into_its_lines() {
        for lines in 10..20 {
            let said = text(&report(), View::default(), Some(lines), Paint::NONE);
            assert!(said.lines().count() <= lines, "{lines}: {said}");
        }
        assert!(text(&report(), View::default(), Some(10), Paint::NONE).contains("... 1 more\n"));
    }
}
