//! `larder tail`.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};

use larder_api::admin::{Outcome as Part, RequestsQuery, ServedRequest, path};
use serde::Serialize;
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::{MissedTickBehavior, interval},
};

use crate::{
    args,
    cluster::Cluster,
    error::{Error, Result},
    outcome::Outcome,
    output::Output,
    paint::{Paint, Tone},
    pods::SidecarPod,
    sidecar::{Sidecar, Stream},
    wording,
};

/// Maximum number of pods that are followed: each holds a connection to the API server.
const MAX_PODS: usize = 50;
/// Time after which pods that have come, or were lost, are followed.
const LIST_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum length of a line.
const MAX_LINE: usize = 64 << 10;

/// A request to a pod.
#[derive(Debug, Serialize)]
struct Seen<'a> {
    pod: &'a str,
    #[serde(flatten)]
    request: &'a ServedRequest,
}

/// News of a pod.
enum News {
    Request(Box<ServedRequest>),
    /// The stream has ended, or did not begin.
    End(Result<()>),
}

/// State of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Followed,
    /// The pod was lost, and is followed again.
    Lost,
    /// The sidecar has refused, and does so again.
    Refused,
}

/// Shows requests until nobody reads them.
pub(crate) async fn run(args: &args::Tail, cluster: &Cluster, output: &Output) -> Result<Outcome> {
    let policy = cluster.policy(&args.policy).await?;
    let pods = async || {
        let mut pods = cluster.sidecar_pods(&policy).await?;
        pods.retain(|pod| pod.running && args.pod.as_ref().is_none_or(|name| *name == pod.name));
        Ok::<_, Error>(pods)
    };
    let first = pods().await?;
    if first.is_empty() {
        return Err(match &args.pod {
            Some(pod) => Error::NoSuchPod { pod: pod.clone(), policy: args.policy.clone() },
            None => Error::NoSidecar(args.policy.clone()),
        });
    }
    let mut tail = Tail::new(cluster, cluster.token(&policy).await?, path_of(args));
    let mut lines = Lines::default();
    tail.follow(first);
    let mut ticks = interval(LIST_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => match pods().await {
                Ok(pods) => tail.follow(pods),
                Err(error) => note(&format!("can't look for further pods: {error}")),
            },
            Some((pod, news)) = tail.news.recv() => match news {
                News::Request(request) => {
                    let seen = Seen { pod: &pod, request: &request };
                    if output.print_next(&seen, |paint| lines.text(&seen, paint))?.is_break() {
                        return Ok(Outcome::Good);
                    }
                }
                News::End(end) => tail.end(pod, end)?,
            },
        }
    }
}

/// The pods that are followed.
struct Tail {
    cluster: Cluster,
    token: Arc<str>,
    path: Arc<str>,
    states: BTreeMap<String, State>,
    /// Number of pods that are not followed because there are too many.
    left_out: usize,
    sender: Sender<(String, News)>,
    news: Receiver<(String, News)>,
}

impl Tail {
    fn new(cluster: &Cluster, token: String, path: String) -> Self {
        let (sender, news) = mpsc::channel(MAX_PODS);
        let (token, path) = (token.into(), path.into());
        Self { cluster: cluster.clone(), token, path, states: BTreeMap::new(), left_out: 0, sender, news }
    }

    /// Follows the pods that are not followed already.
    fn follow(&mut self, pods: Vec<SidecarPod>) {
        let names: HashSet<_> = pods.iter().map(|pod| pod.name.as_str()).collect();
        self.states.retain(|pod, state| *state == State::Followed || names.contains(pod.as_str()));
        let mut left_out = 0;
        for pod in pods {
            match self.states.get(&pod.name) {
                Some(State::Followed | State::Refused) => continue,
                None if self.states.len() >= MAX_PODS => left_out += 1,
                Some(State::Lost) | None => {
                    self.states.insert(pod.name.clone(), State::Followed);
                    let (cluster, token, path) =
                        (self.cluster.clone(), Arc::clone(&self.token), Arc::clone(&self.path));
                    tokio::spawn(follow(cluster, pod, token, path, self.sender.clone()));
                }
            }
        }
        if mem::replace(&mut self.left_out, left_out) != left_out && left_out > 0 {
            note(&format!("{left_out} more pods are not followed: choose one by --pod"));
        }
    }

    /// Notes that a pod is followed no more.
    ///
    /// # Errors
    /// If no other is, and none will be.
    fn end(&mut self, pod: String, end: Result<()>) -> Result<()> {
        let state = match &end {
            Err(Error::SidecarRefused { .. }) => State::Refused,
            _ => State::Lost,
        };
        self.states.insert(pod, state);
        match end {
            Ok(()) => Ok(()),
            Err(error @ Error::Forbidden(_)) => Err(error),
            Err(error) if self.states.values().all(|state| *state == State::Refused) => Err(error),
            Err(error) => {
                note(&error.to_string());
                Ok(())
            }
        }
    }
}

/// Passes the requests of a pod on.
async fn follow(
    cluster: Cluster,
    pod: SidecarPod,
    token: Arc<str>,
    path: Arc<str>,
    news: Sender<(String, News)>,
) {
    let sidecar = Sidecar { cluster: &cluster, pod: &pod, token: Some(&token) };
    let end = match sidecar.open(&path).await {
        Ok(mut stream) => pass_on(&mut stream, &pod, &news).await,
        Err(error) => Err(error),
    };
    // The program ends if nobody hears it.
    let _ = news.send((pod.name, News::End(end))).await;
}

async fn pass_on(stream: &mut Stream, pod: &SidecarPod, news: &Sender<(String, News)>) -> Result<()> {
    let lost = |reason: String| Error::SidecarUnreachable { pod: pod.name.clone(), reason };
    let mut rest = Vec::new();
    while let Some(piece) = stream.next().await.map_err(|error| lost(error.to_string()))? {
        rest.extend_from_slice(&piece);
        for request in
            requests_in(&mut rest).map_err(|error| lost(format!("a line is not readable ({error})")))?
        {
            if news.send((pod.name.clone(), News::Request(Box::new(request)))).await.is_err() {
                return Ok(());
            }
        }
        if rest.len() > MAX_LINE {
            return Err(lost("a line is too long".to_owned()));
        }
    }
    Ok(())
}

/// Takes the complete lines and returns their requests. Lines without one are heartbeats.
fn requests_in(rest: &mut Vec<u8>) -> serde_json::Result<Vec<ServedRequest>> {
    let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(vec![]) };
    let lines: Vec<_> = rest.drain(..=end).collect();
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    lines.map(serde_json::from_slice).collect()
}

fn path_of(args: &args::Tail) -> String {
    let args::Tail { policy: _, route, status, path, outcome, pod: _, sample, query } = args;
    let query = RequestsQuery {
        route: route.clone(),
        outcome: outcome.clone(),
        status: status.map(|status| status.to_string()),
        path: path.clone(),
        sample: *sample,
        query: *query,
    };
    let query = serde_urlencoded::to_string(query).expect("texts and numbers can be written into a URL");
    format!("{}?{query}", path::REQUESTS)
}

fn note(text: &str) {
    eprintln!("{}", wording::one_line(text));
}

/// Lines for people.
#[derive(Debug, Default)]
struct Lines {
    /// Width of the longest name of a pod so far.
    pod: usize,
    /// Width of the longest name of a route so far.
    route: usize,
    has_heading: bool,
}

impl Lines {
    /// Returns the line of a request, after the headings if it is the first.
    fn text(&mut self, Seen { pod, request }: &Seen<'_>, paint: Paint) -> String {
        let ServedRequest { time, method, path, query, status, route, outcome, tier, .. } = request;
        let route = route.as_deref().unwrap_or("-");
        let pod = wording::one_line(pod);
        let route = wording::one_line(route);
        self.pod = self.pod.max(pod.chars().count()).max("POD".len());
        self.route = self.route.max(route.chars().count()).max("ROUTE".len());
        let line = |cells: [&str; 7]| {
            let [time, pod, status, outcome, tier, took, route] = cells;
            let (pods, routes) = (self.pod, self.route);
            format!(
                "{time:<12}  {pod:<pods$}  {status:<6}  {outcome:<11}  {tier:<15}  {took:<8}  {route:<routes$}  "
            )
        };
        let mut text = String::new();
        if !mem::replace(&mut self.has_heading, true) {
            let headings = line(["TIME", "POD", "STATUS", "OUTCOME", "TIER", "TOOK", "ROUTE"]);
            text = paint.apply(Tone::Heading, &(headings + "REQUEST")) + "\n";
        }
        // The date is that of today.
        let time = wording::one_line(time.get(11..23).unwrap_or(time));
        let took = request.duration_seconds.map_or_else(|| "-".to_owned(), wording::seconds);
        let cells = line([
            &time,
            &pod,
            &status.to_string(),
            &wording::one_line(outcome),
            &wording::one_line(tier),
            &took,
            &route,
        ]);
        let query = query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        let target = wording::one_line(&format!("{method} {path}{query}"));
        text.push_str(&paint.apply(tone(outcome, *status), &(cells + &target)));
        if let Some(why) = why(request) {
            text.push_str(&format!("  ({})", wording::one_line(&why)));
        }
        text.push('\n');
        if request.dropped > 0 {
            let gap = format!("... {} more, too many to show: use filters or --sample\n", request.dropped);
            text.push_str(&gap);
        }
        text
    }
}

fn tone(outcome: &str, status: u16) -> Tone {
    match outcome {
        _ if status >= 500 || outcome == Part::Error.as_str() => Tone::Bad,
        _ if outcome == Part::Hit.as_str() => Tone::Good,
        _ => Tone::Plain,
    }
}

/// Returns the reasons why no stored response was used, and why the response is not stored.
fn why(request: &ServedRequest) -> Option<String> {
    match (&request.forward, &request.not_stored) {
        (None, None) => None,
        (Some(forward), None) => Some(forward.clone()),
        (None, Some(reason)) => Some(format!("not stored: {reason}")),
        (Some(forward), Some(reason)) => Some(format!("{forward}, not stored: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fake::{refusal, with_server};

    fn request(path: &str) -> ServedRequest {
        ServedRequest {
            time: "2026-11-28T10:12:01.123Z".into(),
            method: "GET".into(),
            path: path.into(),
            status: 200,
            route: Some("user".into()),
            outcome: "miss".into(),
            tier: "app".into(),
            forward: Some("uri-miss".into()),
            not_stored: Some("no-store".into()),
            duration_seconds: Some(0.0123),
            ..ServedRequest::default()
        }
    }

    #[test]
    fn lines_may_come_in_pieces_and_empty() {
        let mut rest = b"\n{\"path\":\"/a\"}\n{\"path\":\"/b\"}\r\n{\"pa".to_vec();
        let paths = |rest: &mut Vec<u8>| -> Vec<_> {
            requests_in(rest).unwrap().into_iter().map(|request| request.path).collect()
        };
        assert_eq!(paths(&mut rest), ["/a", "/b"]);
        rest.extend_from_slice(b"th\":\"/c\"}\n");
        assert_eq!((paths(&mut rest), rest.len()), (vec!["/c".to_owned()], 0));
        assert!(requests_in(&mut b"no\n".to_vec()).is_err());
    }

    #[test]
    fn line_has_the_outcome_and_the_reasons() {
        let mut lines = Lines::default();
        let mut shown = |request| lines.text(&Seen { pod: "shop-1", request: &request }, Paint::NONE);
        let first = shown(request("/users/1\u{1b}[31m"));
        let words: Vec<Vec<_>> = first.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["TIME", "POD", "STATUS", "OUTCOME", "TIER", "TOOK", "ROUTE", "REQUEST"]);
        assert_eq!(words[1][..7], ["10:12:01.123", "shop-1", "200", "miss", "app", "0.012", "s"]);
        assert!(first.ends_with("user   GET /users/1 [31m  (uri-miss, not stored: no-store)\n"), "{first}");
        let hit = ServedRequest {
            query: Some("page=*".into()),
            forward: None,
            not_stored: None,
            dropped: 7,
            ..request("/users")
        };
        let second = shown(hit);
        assert!(second.contains("GET /users?page=*\n... 7 more, too many"), "{second}");
    }

    #[test]
    fn filters_are_in_the_query() {
        let args = args::Tail {
            policy: "shop".into(),
            route: Some("a b".into()),
            status: "5xx".parse().ok(),
            path: Some("/a&b".into()),
            outcome: None,
            pod: None,
            sample: 10.try_into().unwrap(),
            query: true,
        };
        assert_eq!(path_of(&args), "/requests?route=a+b&status=5xx&path=%2Fa%26b&sample=10&query=true");
    }

    #[test]
    fn only_when_every_sidecar_refuses_is_it_an_error() {
        with_server(
            |_, _| refusal(404, "not found"),
            async |cluster| {
                let mut tail = Tail::new(cluster, "token".into(), "/requests".into());
                for pod in ["a", "b"] {
                    tail.states.insert(pod.to_owned(), State::Followed);
                }
                let refused = |pod: &str| Err(Error::SidecarRefused { pod: pod.into(), detail: "no".into() });
                assert!(tail.end("a".into(), refused("a")).is_ok());
                let lost = Err(Error::SidecarUnreachable { pod: "b".into(), reason: "gone".into() });
                assert!(tail.end("b".into(), lost).is_ok());
                assert!(tail.end("b".into(), refused("b")).is_err());
            },
        );
    }

    #[test]
    fn pods_are_followed_once_and_again_when_they_were_lost() {
        with_server(
            |_, _| refusal(404, "not found"),
            async |cluster| {
                let mut tail = Tail::new(cluster, "token".into(), "/requests".into());
                let pod = |number: usize| SidecarPod::named(&format!("shop-{number}"));
                tail.follow((0..MAX_PODS + 3).map(pod).collect());
                assert_eq!((tail.states.len(), tail.left_out), (MAX_PODS, 3));
                assert!(tail.end("shop-0".into(), Ok(())).is_ok());
                assert_eq!(tail.states["shop-0"], State::Lost);
                tail.follow(vec![pod(0), pod(1)]);
                assert_eq!(tail.states["shop-0"], State::Followed);
            },
        );
    }
}
