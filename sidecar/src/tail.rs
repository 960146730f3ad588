//! Requests as they are served, for readers of `GET /requests`.
//!
//! # Guarantees
//! - While nobody reads, a request costs a relaxed load, and nothing of it is remembered.
//! - A request never waits for a reader: where a queue is full, it is left out and counted.
//! - A reader gets at most [`MAX_QUEUED`] requests per [`INTERVAL`], and the memory of its queue is reserved in the budget.
//!
//! Requests that are refused before they are understood are not shown; the log and a metric have them.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use larder_api::{
    admin::{ServedRequest, StatusFilter},
    json::in_ascii,
};
use larder_policy::storing::NotStored;
use tokio::sync::mpsc;

use crate::{
    budget::{Budget, Kind, Reservation},
    cache_status::{Forward, Tier},
    clock::wall_ms,
    stats::Outcome,
};

/// Maximum number of readers at a time.
pub const MAX_READERS: usize = 4;
/// Maximum number of requests that wait for a reader.
pub const MAX_QUEUED: usize = 256;
/// Time after which a reader gets what has come.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// Maximum length of a path, and of a query, in bytes.
const MAX_TEXT: usize = 512;
/// Maximum length of a method in bytes.
const MAX_METHOD: usize = 32;
/// Memory of a full queue, and of the lines that are made of it.
const QUEUE_BYTES: u64 = (MAX_QUEUED * 10 * MAX_TEXT) as u64;

/// Readers of requests.
#[derive(Debug)]
pub struct Tails {
    /// Number of readers.
    count: AtomicUsize,
    readers: ArcSwap<Vec<Arc<Reader>>>,
    budget: Arc<Budget>,
}

/// Requests that a reader wants to see.
#[derive(Debug)]
pub struct Filter {
    /// Name of the route.
    pub route: Option<String>,
    /// The cache's part.
    pub outcome: Option<Outcome>,
    /// Statuses.
    pub status: Option<StatusFilter>,
    /// Start of the path.
    pub path: Option<String>,
    /// One of so many is shown.
    pub sample: NonZeroU32,
    /// True if the values of queries are shown.
    pub shows_query: bool,
}

/// Arrival of a request.
#[derive(Debug)]
pub struct Arrival {
    /// Time at which its head was read.
    pub at: Instant,
    /// The request line, if somebody reads.
    line: Option<Box<OwnedLine>>,
}

/// Method and target of a request, as far as they are shown.
#[derive(Clone, Copy, Debug)]
struct RequestLine<'a> {
    method: &'a str,
    path: &'a str,
    query: Option<&'a str>,
}

/// A request line that waits for the response.
#[derive(Debug)]
struct OwnedLine {
    method: Box<str>,
    path: Box<str>,
    query: Option<Box<str>>,
}

/// A response whose head is ready.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// Route that took the request.
    pub route: Option<&'a str>,
    /// The cache's part.
    pub outcome: Outcome,
    /// Origin of the response.
    pub tier: Tier,
    /// Status of the response.
    pub status: u16,
    /// Reason why no stored response was used.
    pub forward: Option<Forward>,
    /// Reason why the response is not stored.
    pub not_stored: Option<NotStored>,
    /// Time that the response took, if it was measured.
    pub took: Option<Duration>,
}

#[derive(Debug)]
struct Reader {
    filter: Filter,
    /// Number of requests to which the filter applies.
    matching: AtomicU64,
    /// Number of requests that are left out since the reader was last told.
    dropped: AtomicU64,
    queue: mpsc::Sender<Arc<Record>>,
}

/// A request as it is shown.
#[derive(Debug)]
struct Record {
    at: u64,
    method: Box<str>,
    path: Box<str>,
    query: Option<Box<str>>,
    route: Option<Box<str>>,
    outcome: Outcome,
    tier: Tier,
    status: u16,
    forward: Option<Forward>,
    not_stored: Option<NotStored>,
    took: Option<Duration>,
}

/// A reader's end, which stops the recording for it when it is dropped.
#[derive(Debug)]
pub struct Tail {
    tails: Arc<Tails>,
    reader: Arc<Reader>,
    queue: mpsc::Receiver<Arc<Record>>,
    _room: Reservation,
}

impl Tails {
    /// Creates the table of readers of a process with a memory budget.
    pub fn within(budget: Arc<Budget>) -> Self {
        Self { count: AtomicUsize::new(0), readers: ArcSwap::default(), budget }
    }

    /// Adds a reader; `None` if there are [`MAX_READERS`], or the budget has no room.
    pub fn open(self: &Arc<Self>, filter: Filter) -> Option<Tail> {
        let room = self.budget.reserve(Kind::Requests, QUEUE_BYTES)?;
        let more = |count| (count < MAX_READERS).then_some(count + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        let (sender, queue) = mpsc::channel(MAX_QUEUED);
        let (matching, dropped) = (AtomicU64::new(0), AtomicU64::new(0));
        let reader = Arc::new(Reader { filter, matching, dropped, queue: sender });
        self.readers.rcu(|readers| {
            let mut readers = Vec::clone(readers);
            readers.push(Arc::clone(&reader));
            readers
        });
        Some(Tail { tails: Arc::clone(self), reader, queue, _room: room })
    }

    /// Returns the arrival of a request, now.
    #[inline]
    pub fn arrival(&self, method: &str, target: &str) -> Arrival {
        Arrival { at: Instant::now(), line: self.line(method, target) }
    }

    /// Shows a response that came at once.
    #[inline]
    pub fn show_at_once(&self, method: &str, target: &str, answered: &Answered<'_>) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.offer(RequestLine::of(method, target), answered);
        }
    }

    /// Shows a response.
    #[inline]
    pub fn show(&self, arrival: &Arrival, answered: &Answered<'_>) {
        if let Some(line) = &arrival.line {
            self.offer(line.borrowed(), answered);
        }
    }

    #[inline]
    fn line(&self, method: &str, target: &str) -> Option<Box<OwnedLine>> {
        if self.count.load(Ordering::Relaxed) == 0 { None } else { self.wanted_line(method, target) }
    }

    /// Returns the request line, if a reader may want to see it.
    #[cold]
    fn wanted_line(&self, method: &str, target: &str) -> Option<Box<OwnedLine>> {
        let line = RequestLine::of(method, target);
        let is_wanted = self.readers.load().iter().any(|reader| reader.filter.accepts_path(line.path));
        is_wanted.then(|| Box::new(line.into_owned()))
    }

    /// Puts a request into the queues of those who want to see it.
    #[cold]
    fn offer(&self, line: RequestLine<'_>, answered: &Answered<'_>) {
        let mut record = None;
        for reader in self.readers.load().iter() {
            if !reader.wants(line.path, answered) {
                continue;
            }
            let Ok(place) = reader.queue.try_reserve() else {
                reader.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let record = record.get_or_insert_with(|| Arc::new(Record::of(line, answered)));
            place.send(Arc::clone(record));
        }
    }
}

impl Tail {
    /// Returns the requests that have come, each on a line in JSON.
    pub fn take(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        let mut last = None;
        for _ in 0..MAX_QUEUED {
            let Ok(record) = self.queue.try_recv() else { break };
            if let Some(record) = last.replace(record) {
                self.write(&record, 0, &mut lines);
            }
        }
        // Requests are left out while the queue is full, and so after all that were in it.
        if let Some(record) = last {
            self.write(&record, self.reader.dropped.swap(0, Ordering::Relaxed), &mut lines);
        }
        lines
    }

    fn write(&self, record: &Record, dropped: u64, lines: &mut Vec<u8>) {
        let request = record.shown(self.reader.filter.shows_query, dropped);
        let line = serde_json::to_string(&request).expect("its texts and numbers can be written to memory");
        lines.extend_from_slice(in_ascii(line).as_bytes());
        lines.push(b'\n');
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.tails.readers.rcu(|readers| {
            let others = readers.iter().filter(|reader| !Arc::ptr_eq(reader, &self.reader));
            others.cloned().collect::<Vec<_>>()
        });
        self.tails.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<'a> RequestLine<'a> {
    fn of(method: &'a str, target: &'a str) -> Self {
        let target = without_authority(target);
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let cut_text = |text| cut(text, MAX_TEXT);
        Self { method: cut(method, MAX_METHOD), path: cut_text(path), query: query.map(cut_text) }
    }

    fn into_owned(self) -> OwnedLine {
        let Self { method, path, query } = self;
        OwnedLine { method: method.into(), path: path.into(), query: query.map(Box::from) }
    }
}

impl OwnedLine {
    fn borrowed(&self) -> RequestLine<'_> {
        let Self { method, path, query } = self;
        RequestLine { method, path, query: query.as_deref() }
    }
}

impl Filter {
    fn accepts_path(&self, path: &str) -> bool {
        self.path.as_deref().is_none_or(|start| path.starts_with(start))
    }
}

impl Reader {
    fn wants(&self, shown_path: &str, answered: &Answered<'_>) -> bool {
        let Filter { route, outcome, status, path: _, sample, shows_query: _ } = &self.filter;
        let applies = route.as_deref().is_none_or(|route| answered.route == Some(route))
            && outcome.is_none_or(|outcome| answered.outcome == outcome)
            && status.is_none_or(|status| status.accepts(answered.status))
            && self.filter.accepts_path(shown_path);
        applies && self.matching.fetch_add(1, Ordering::Relaxed).is_multiple_of(sample.get().into())
    }
}

impl Record {
    fn of(line: RequestLine<'_>, answered: &Answered<'_>) -> Self {
        let OwnedLine { method, path, query } = line.into_owned();
        let Answered { route, outcome, tier, status, forward, not_stored, took } = *answered;
        Self {
            at: wall_ms(),
            method,
            path,
            query,
            route: route.map(Box::from),
            outcome,
            tier,
            status,
            forward,
            not_stored,
            took,
        }
    }

    fn shown(&self, shows_query: bool, dropped: u64) -> ServedRequest {
        let at = i64::try_from(self.at).ok().and_then(|at| Timestamp::from_millisecond(at).ok());
        let query = self.query.as_deref();
        ServedRequest {
            time: format!("{:.3}", at.unwrap_or_default()),
            method: self.method.to_string(),
            path: self.path.to_string(),
            query: query.map(|query| if shows_query { query.to_owned() } else { without_values(query) }),
            status: self.status,
            route: self.route.as_deref().map(str::to_owned),
            outcome: self.outcome.as_str().to_owned(),
            tier: self.tier.as_str().to_owned(),
            forward: self.forward.map(|forward| forward.detail().to_owned()),
            not_stored: self.not_stored.map(|reason| reason.as_str().to_owned()),
            duration_seconds: self.took.map(|took| took.as_secs_f64()),
            dropped,
        }
    }
}

/// Returns the path and query of a target, which may be a URL with a user's name and password.
fn without_authority(target: &str) -> &str {
    match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => rest.find(['/', '?']).map_or("/", |at| &rest[at..]),
        _ => target,
    }
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Returns a query with `*` for each value: what has no name is a value.
fn without_values(query: &str) -> String {
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) => format!("{name}=*"),
        None => "*".to_owned(),
    });
    parameters.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Filter = Filter {
        route: None,
        outcome: None,
        status: None,
        path: None,
        sample: NonZeroU32::MIN,
        shows_query: false,
    };

    fn tails() -> Arc<Tails> {
        Arc::new(Tails::within(Arc::default()))
    }

    fn answered(route: Option<&str>, outcome: Outcome, status: u16) -> Answered<'_> {
        let (tier, took) = (Tier::L1, None);
        Answered { route, outcome, tier, status, forward: None, not_stored: None, took }
    }

    fn lines(tail: &mut Tail) -> Vec<ServedRequest> {
        let text = String::from_utf8(tail.take()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn nothing_is_remembered_while_nobody_reads() {
        let tails = tails();
        let before = tails.arrival("GET", "/a");
        assert!(before.line.is_none());
        let mut tail = tails.open(ALL).unwrap();
        tails.show(&before, &answered(None, Outcome::Pass, 200));
        assert!(lines(&mut tail).is_empty());
        drop(tail);
        assert!(tails.arrival("GET", "/a").line.is_none());
    }

    #[test]
    fn only_requests_to_which_every_filter_applies_are_shown() {
        let tails = tails();
        let (route, outcome) = (Some("user".to_owned()), Some(Outcome::Hit));
        let (status, path) = ("2xx".parse().ok(), Some("/api".to_owned()));
        let mut tail = tails.open(Filter { route, outcome, status, path, ..ALL }).unwrap();
        for (path, route, outcome, status) in [
            ("/api/1", Some("user"), Outcome::Hit, 200),
            ("/other", Some("user"), Outcome::Hit, 200),
            ("/api/2", Some("page"), Outcome::Hit, 200),
            ("/api/3", Some("user"), Outcome::Miss, 200),
            ("/api/4", Some("user"), Outcome::Hit, 404),
            ("/api/5", None, Outcome::Hit, 200),
        ] {
            tails.show(&tails.arrival("GET", path), &answered(route, outcome, status));
        }
        let shown = lines(&mut tail);
        assert_eq!(shown.iter().map(|request| request.path.as_str()).collect::<Vec<_>>(), ["/api/1"]);
    }

    #[test]
    fn one_of_so_many_is_shown() {
        let tails = tails();
        let mut tail = tails.open(Filter { sample: NonZeroU32::new(3).unwrap(), ..ALL }).unwrap();
        for number in 0..7 {
            tails.show_at_once("GET", &format!("/{number}"), &answered(None, Outcome::Pass, 200));
        }
        let shown = lines(&mut tail);
        assert_eq!(shown.iter().map(|request| request.path.as_str()).collect::<Vec<_>>(), ["/0", "/3", "/6"]);
    }

    #[test]
    fn requests_beyond_the_queue_are_left_out_and_counted() {
        let tails = tails();
        let mut tail = tails.open(ALL).unwrap();
        for _ in 0..MAX_QUEUED + 5 {
            tails.show_at_once("GET", "/a", &answered(None, Outcome::Pass, 200));
        }
        let shown = lines(&mut tail);
        assert_eq!((shown.len(), shown.first().unwrap().dropped), (MAX_QUEUED, 0));
        assert_eq!(shown.last().unwrap().dropped, 5);
        tails.show_at_once("GET", "/a", &answered(None, Outcome::Pass, 200));
        assert_eq!(lines(&mut tail)[0].dropped, 0);
    }

    #[test]
    fn readers_are_few_and_leave_their_places() {
        let tails = tails();
        let mut readers: Vec<_> = (0..MAX_READERS).map(|_| tails.open(ALL).unwrap()).collect();
        assert!(tails.open(ALL).is_none());
        readers.pop();
        assert!(tails.open(ALL).is_some());
    }

    #[test]
    fn full_queue_fits_into_its_memory() {
        let tails = tails();
        let mut tail = tails.open(Filter { shows_query: true, ..ALL }).unwrap();
        for longest in ["\"", "é"] {
            let target = format!("/{0}?{0}", longest.repeat(9_000));
            for _ in 0..MAX_QUEUED {
                tails.show_at_once(&"M".repeat(9_000), &target, &answered(Some("a"), Outcome::Pass, 200));
            }
            let records = MAX_QUEUED * (size_of::<Record>() + 2 * MAX_TEXT + MAX_METHOD + 64);
            let bytes = records + tail.take().len();
            assert!(bytes <= usize::try_from(QUEUE_BYTES).unwrap(), "{bytes}");
        }
    }

    #[test]
    fn values_of_queries_are_shown_on_demand_only() {
        assert_eq!(without_values("page=2&token=a=b&flag&c="), "page=*&token=*&*&c=*");
        let tails = tails();
        let mut readers = [false, true].map(|shows_query| tails.open(Filter { shows_query, ..ALL }).unwrap());
        tails.show_at_once("GET", "/a?token=secret", &answered(None, Outcome::Pass, 200));
        let shown = readers.each_mut().map(|tail| lines(tail)[0].query.clone().unwrap());
        assert_eq!(shown, ["token=*", "token=secret"]);
    }

    #[test]
    fn users_and_passwords_of_targets_are_never_shown() {
        for (target, shown) in [
            ("http://jane:secret@shop/a?b", "/a?b"),
            ("http://jane:secret@shop", "/"),
            ("http://shop?b", "?b"),
            ("/a?from=http://b/c", "/a?from=http://b/c"),
            ("*", "*"),
        ] {
            assert_eq!(without_authority(target), shown);
        }
    }
}
