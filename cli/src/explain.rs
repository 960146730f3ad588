//! `larder explain`.

use larder_api::admin::{
    EntryState, ExplainRequest, ExplainedLifetimes, ExplainedMemory, ExplainedRoute, Explanation, path,
};
use serde::Serialize;

use crate::{
    args,
    cluster::Cluster,
    error::{Error, Result},
    outcome::Outcome,
    output::Output,
    paint::{Paint, Tone},
    sidecar::{Sidecar, ask_one},
    wording,
};

/// A request and its treatment by a pod's sidecar.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    namespace: String,
    policy: String,
    pod: String,
    request: ExplainRequest,
    explanation: Explanation,
}

/// Shows the treatment of a request.
pub(crate) async fn run(args: &args::Explain, cluster: &Cluster, output: &Output) -> Result<Outcome> {
    let request = request(args)?;
    let policy = cluster.policy(&args.policy).await?;
    let mut pods = cluster.sidecar_pods(&policy).await?;
    pods.retain(|pod| pod.running && args.pod.as_ref().is_none_or(|name| pod.name == *name));
    if pods.is_empty() {
        let policy = args.policy.clone();
        return Err(match args.pod.clone() {
            Some(pod) => Error::NoSuchPod { pod, policy },
            None => Error::NoSidecar(policy),
        });
    }
    let token = cluster.token(&policy).await?;
    let asked = ask_one(&pods, async |pod| {
        let sidecar = Sidecar { cluster, pod, token: Some(&token) };
        sidecar.post::<Explanation>(path::EXPLAIN, &request).await
    });
    let (pod, response) = asked.await?.pop().expect("there is a pod, and its response or error");
    let (pod, (_, explanation)) = (pod.name.clone(), response?);
    let (namespace, policy) = (cluster.namespace.clone(), args.policy.clone());
    let report = Report { namespace, policy, pod, request, explanation };
    output.print(&report, |paint| text(&report, paint))?;
    Ok(Outcome::Good)
}

fn request(args: &args::Explain) -> Result<ExplainRequest> {
    let args::Explain { method, url, headers, data, port, .. } = args;
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(Error::Usage(format!(
            "{url:?} has no host, which may be part of the key: write it as clients do, such as http://shop/api/users/1"
        )));
    }
    let mut request = ExplainRequest {
        method: method.to_ascii_uppercase(),
        url: url.clone(),
        headers: headers.iter().cloned().collect(),
        body: data.clone(),
        port: port.map(|port| port.get().into()),
    };
    if request.headers.len() < headers.len() {
        // Fields of one name are a list (RFC 9110, section 5.3).
        request.headers.clear();
        for (name, value) in headers {
            let line = request.headers.entry(name.clone()).or_default();
            *line = if line.is_empty() { value.clone() } else { format!("{line}, {value}") };
        }
    }
    Ok(request)
}

fn text(report: &Report, paint: Paint) -> String {
    let Report { pod, request: ExplainRequest { method, url, .. }, explanation, .. } = report;
    let mut text = format!(
        "{}, in pod {pod}\n",
        paint.apply(Tone::Heading, &wording::one_line(&format!("{method} {url}")))
    );
    for (name, value) in lines(explanation) {
        text.push_str(&format!("  {:<12}{}\n", format!("{name}:"), wording::one_line(&value)));
    }
    text
}

fn lines(explanation: &Explanation) -> Vec<(&'static str, String)> {
    let Explanation {
        route,
        bypass,
        ends_here,
        on_write,
        on_write_soft,
        on_write_unknown,
        key,
        tiers,
        purge,
        l1,
    } = explanation;
    let mut lines = Vec::new();
    if let Some(reason) = ends_here {
        lines.push(("Response", format!("the sidecar's own, nothing is forwarded ({reason})")));
        return lines;
    }
    match route {
        Some(route) => lines.push(("Route", route_words(route))),
        None => lines.push(("Route", "none: the request passes through".to_owned())),
    }
    if let Some(key) = key {
        lines.push(("Key", key.clone()));
    }
    if !tiers.is_empty() {
        lines.push(("Tiers", tiers.join(", then ")));
    }
    if let Some(l1) = l1 {
        lines.push(("Memory", memory_words(l1)));
    }
    match (route, bypass) {
        (Some(_), Some(reason)) => {
            lines.push(("Stored", format!("no, and no stored response is used: {reason}")));
        }
        (Some(route), None) => lines.push(("Stored", lifetime_words(&route.lifetimes))),
        (None, _) => {}
    }
    if let Some(mut names) = purge.as_ref().map(wording::names).filter(|names| !names.is_empty()) {
        let headers = route.iter().flat_map(|route| &route.tags_from);
        headers.for_each(|header| names.push_str(&format!(", tags in {header}")));
        lines.push(("Purged by", names));
    }
    if let Some(hard) = on_write {
        let soft = on_write_soft.as_ref().map(|soft| format!("softly {}", wording::names(soft)));
        let hard = Some(wording::names(hard)).filter(|names| !names.is_empty());
        let names: Vec<_> = hard.into_iter().chain(soft).collect();
        let names = if names.is_empty() { "nothing".to_owned() } else { names.join("; ") };
        lines.push(("Purges", format!("{names}, once the application has carried it out")));
    }
    if !on_write_unknown.is_empty() {
        let unknown = on_write_unknown.join(", ");
        lines.push(("Unknown", format!("{unknown}: all that could be meant is purged")));
    }
    lines
}

fn route_words(route: &ExplainedRoute) -> String {
    let ExplainedRoute { name, index, path, parameters, .. } = route;
    let mut words = format!("{name}, number {} of the policy", index + 1);
    if let Some(path) = path {
        words.push_str(&format!(": {path}"));
    }
    for (name, value) in parameters {
        words.push_str(&format!(", {name} = {value}"));
    }
    words
}

fn memory_words(memory: &ExplainedMemory) -> String {
    let ExplainedMemory { hit, forward, state, response } = memory;
    let mut words = match (hit, forward) {
        (true, _) => "hit".to_owned(),
        (false, Some(reason)) => format!("no hit ({reason})"),
        (false, None) => "no hit".to_owned(),
    };
    if let Some(state) = state.filter(|state| *state != EntryState::Fresh) {
        let name = serde_json::to_value(state).ok();
        let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or("unknown").to_owned();
        words.push_str(&format!(", {name}"));
    }
    if let Some(response) = response {
        words.push_str(&format!(
            ", status {}, age {}",
            response.status,
            wording::seconds(response.age_seconds)
        ));
        if let Some(ttl) = response.ttl_seconds {
            words.push_str(&format!(", fresh for another {}", wording::seconds(ttl.max(0.0))));
        }
    }
    words
}

fn lifetime_words(lifetimes: &ExplainedLifetimes) -> String {
    let mut words = vec![match (lifetimes.ttl_seconds, &lifetimes.ttl_from) {
        (Some(ttl), _) => format!("for {}", wording::seconds(ttl)),
        (None, Some(place)) => format!("for the time in the response's {place}"),
        (None, None) => "for the time that the response's Cache-Control allows".to_owned(),
    }];
    if let Some(max) = lifetimes.max_ttl_seconds {
        words.push(format!("at most {}", wording::seconds(max)));
    }
    let statuses = lifetimes.statuses.iter().map(|one| match one.ttl_seconds {
        Some(ttl) => format!("{} for {}", one.status, wording::seconds(ttl)),
        None => one.status.to_string(),
    });
    let statuses: Vec<_> = statuses.collect();
    if !statuses.is_empty() {
        words.push(format!("statuses {}", statuses.join(" and ")));
    }
    let times = [
        ("in memory for", lifetimes.l1_seconds),
        ("in Redis for", lifetimes.l2_seconds),
        ("stale while renewed for", lifetimes.stale_while_revalidate_seconds),
        ("stale on errors for", lifetimes.stale_if_error_seconds),
    ];
    let times =
        times.iter().filter_map(|(words, time)| Some(format!("{words} {}", wording::seconds((*time)?))));
    words.extend(times);
    if !lifetimes.store_despite.is_empty() {
        words.push(format!("despite {}", lifetimes.store_despite.join(", ")));
    }
    match lifetimes.set_cookie.as_str() {
        "Strip" => words.push("without its cookies".to_owned()),
        "Store" => words.push("with its cookies".to_owned()),
        _ => {}
    }
    format!("if the response allows: {}", words.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(explanation: Value) -> String {
        let report = Report {
            namespace: "shop".into(),
            policy: "shop".into(),
            pod: "shop-1".into(),
            request: ExplainRequest {
                method: "GET".into(),
                url: "http://shop/api/users/1".into(),
                headers: Default::default(),
                body: String::new(),
                port: None,
            },
            explanation: serde_json::from_value(explanation).unwrap(),
        };
        text(&report, Paint::NONE)
    }

    fn user() -> Value {
        json!({
            "route": {
                "name": "user", "index": 0, "path": "/api/users/{id}", "parameters": {"id": "1"},
                "lifetimes": {
                    "ttl_seconds": 120.0, "max_ttl_seconds": null, "statuses": [], "ttl_from": null,
                    "jitter_percent": 0, "l1_seconds": null, "l2_seconds": null,
                    "stale_while_revalidate_seconds": 30.0, "stale_if_error_seconds": null,
                    "early_refresh": false, "store_despite": [], "set_cookie": "Refuse", "retry_interval_seconds": 5.0,
                },
                "collapse_timeout_seconds": 5.0, "envelope": false, "tags_from": ["xkey"],
            },
            "bypass": null, "ends_here": null, "on_write": null,
            "key": "GET:http://shop/api/users/1",
            "tiers": ["l1", "l2", "app"],
            "purge": {"keys": ["GET:/api/users/1"], "paths": ["/api/users/1"], "tags": ["user:1"]},
            "l1": {"hit": false, "forward": "uri-miss", "state": null, "response": null},
        })
    }

    #[test]
    fn request_of_a_route_is_explained_line_by_line() {
        let expected = "\
GET http://shop/api/users/1, in pod shop-1
  Route:      user, number 1 of the policy: /api/users/{id}, id = 1
  Key:        GET:http://shop/api/users/1
  Tiers:      l1, then l2, then app
  Memory:     no hit (uri-miss)
  Stored:     if the response allows: for 120 s; stale while renewed for 30 s
  Purged by:  key GET:/api/users/1, path /api/users/1, tag user:1, tags in xkey
";
        assert_eq!(said(user()), expected);
    }

    #[test]
    fn bypass_has_its_reason() {
        let mut bypassed = user();
        bypassed["bypass"] = json!("credentials");
        let said = said(bypassed);
        assert!(said.contains("Stored:     no, and no stored response is used: credentials"), "{said}");
    }

    #[test]
    fn write_lists_the_names_that_it_purges() {
        let write = json!({
            "route": null, "bypass": null, "ends_here": null,
            "on_write": {"keys": [], "paths": ["/api/users"], "tags": ["user:1"]},
            "on_write_soft": {"keys": [], "paths": ["/search"], "tags": [], "soft": true},
            "on_write_unknown": ["{body:/id}"],
            "key": null, "tiers": ["app"], "purge": null, "l1": null,
        });
        let said = said(write);
        let purges = "Purges:     path /api/users, tag user:1; softly path /search, once";
        assert!(said.contains(purges), "{said}");
        assert!(said.contains("Unknown:    {body:/id}: all that could be meant is purged"), "{said}");
        assert!(said.contains("Route:      none: the request passes through"), "{said}");
    }

    #[test]
    fn url_without_a_host_is_refused_and_repeated_headers_are_a_list() {
        let mut args = args::Explain {
            policy: "shop".into(),
            method: "get".into(),
            url: "/api".into(),
            headers: vec![("accept".into(), "a".into()), ("accept".into(), "b".into())],
            data: String::new(),
            port: None,
            pod: None,
        };
        assert!(request(&args).unwrap_err().to_string().contains("has no host"));
        args.url = "http://shop/api".into();
        let request = request(&args).unwrap();
        assert_eq!((request.method.as_str(), request.headers["accept"].as_str()), ("GET", "a, b"));
    }
}
