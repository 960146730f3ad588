//! The paths of a request through a proxy, measured side by side.

use crate::{
    answer,
    load::{Expected, NUMBER, Request},
    server::{Role, Server},
};

pub mod chart;
pub mod footprint;
pub mod measure;
pub mod report;
pub mod tools;

/// Sizes of bodies and their names.
const SIZES: [(usize, &str, &str); 4] = [
    (100, "100", "100 B"),
    (1 << 10, "1k", "1 KiB"),
    (16 << 10, "16k", "16 KiB"),
    (64 << 10, "64k", "64 KiB"),
];
const LARGE: (usize, &str, &str) = (256 << 10, "256k", "256 KiB");

/// Connections of paths that are not measured with several numbers of them.
pub const CONNECTIONS: usize = 64;

/// Connections of HTTP/2, and the streams of each.
pub const HTTP2_CONNECTIONS: usize = 16;
/// Streams of a connection of HTTP/2.
pub const STREAMS: usize = 8;

/// Size of a response in Redis, and how many there are: more than can be asked for while one is in memory.
pub const SHARED_BYTES: usize = 1 << 10;
/// Number of responses in Redis.
pub const SHARED: u64 = 4096;

/// A path that is measured.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name on the command line and in raw figures: words between hyphens, the general ones first.
    pub name: String,
    /// Name in the table.
    pub title: String,
    /// Role of the servers.
    pub role: Role,
    /// Client of the servers.
    pub tool: Tool,
    /// Baseline that is measured beside the servers.
    pub baseline: Option<Baseline>,
    /// True if the sidecar is measured with two threads, too.
    pub scales: bool,
}

/// Client that measures.
#[derive(Clone, Debug)]
pub enum Tool {
    /// The load of this crate.
    Load {
        /// Number of connections.
        connections: usize,
        /// The request.
        request: Request,
        /// The response to it.
        expected: Expected,
    },
    /// h2load, with a target, or with gRPC calls.
    H2load {
        /// The target.
        target: String,
        /// True for gRPC calls.
        calls: bool,
    },
}

/// A server that takes no role, in whose terms a path is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Baseline {
    /// The origin on the servers' core without anything in front of it.
    Direct,
    /// `redis-benchmark` in place of the sidecar.
    RedisBenchmark,
}

/// A server or a baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A server in the case's role.
    Server(Server),
    /// The sidecar with two threads, of which one shares its core with the load.
    TwoThreads,
    /// A baseline.
    Baseline(Baseline),
}

impl Subject {
    /// Returns the name in raw figures.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server(server) => server.as_str(),
            Self::TwoThreads => "larder-2",
            Self::Baseline(Baseline::Direct) => "direct",
            Self::Baseline(Baseline::RedisBenchmark) => "redis-benchmark",
        }
    }
}

impl Case {
    /// Returns true if `name` is the case's, or its first words.
    pub fn is_named(&self, name: &str) -> bool {
        self.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    /// Returns true if there is never more than one request at a time, so that the time of a request shows.
    pub fn is_alone(&self) -> bool {
        matches!(self.tool, Tool::Load { connections: 1, .. })
    }

    /// Returns the baseline and the servers that are measured, of those that are wanted.
    pub fn subjects(&self, wanted: &[Server]) -> Vec<Subject> {
        let servers = Server::ALL.into_iter().filter(|server| server.takes(self.role));
        // The ceiling answers by path alone.
        let servers = servers.filter(|server| *server != Server::Ceiling || !self.is_conditional());
        let servers = servers.filter(|server| wanted.is_empty() || wanted.contains(server));
        let baseline = self.baseline.map(Subject::Baseline);
        let scales = self.scales && (wanted.is_empty() || wanted.contains(&Server::Larder));
        let mut subjects: Vec<_> = baseline.into_iter().chain(servers.map(Subject::Server)).collect();
        subjects.extend(scales.then_some(Subject::TwoThreads));
        subjects
    }

    fn is_conditional(&self) -> bool {
        matches!(&self.tool, Tool::Load { expected, request, .. }
            if expected.status == 304 || request.target.contains(NUMBER))
    }
}

/// Returns all cases, in the order of the table.
pub fn all() -> Vec<Case> {
    let [tiny, small, medium, large] = SIZES;
    let mut cases: Vec<Case> = [small, medium, LARGE].into_iter().map(hit).collect();
    cases.push(not_modified());
    let target = format!("/{}", small.0);
    cases.push(over_http2("http2", "L1 hit, HTTP/2, 1 KiB", Role::Http2Cache, target, false));
    for size in [tiny, small, large] {
        for connections in [1, CONNECTIONS, 1024] {
            let (bytes, word, words) = size;
            let request = Request::get(format!("/{bytes}"));
            cases.push(pass(word, words, request, bytes, connections));
        }
    }
    for connections in [1, CONNECTIONS, 1024] {
        let request = Request { method: "POST", content: 1 << 10, ..Request::get(format!("/{}", tiny.0)) };
        cases.push(pass("post", "POST of 1 KiB", request, tiny.0, connections));
    }
    cases.push(over_http2(
        "calls",
        "gRPC calls passed through, HTTP/2",
        Role::Calls,
        "/bench.Bench/Call".into(),
        true,
    ));
    cases.extend([1, CONNECTIONS, 1024].map(|connections| miss(small, connections)));
    cases.push(shared());
    let with_two_threads = ["hit-1k", "http2", "pass-1k-64", "miss-64", "l2"];
    for case in &mut cases {
        case.scales = with_two_threads.contains(&&*case.name);
    }
    cases
}

fn hit((bytes, word, words): (usize, &str, &str)) -> Case {
    Case {
        name: format!("hit-{word}"),
        title: format!("L1 hit, {words}"),
        role: Role::Cache,
        tool: Tool::Load {
            connections: CONNECTIONS,
            request: Request::get(format!("/{bytes}")),
            expected: Expected::whole(bytes),
        },
        baseline: None,
        scales: false,
    }
}

fn not_modified() -> Case {
    let bytes = 1 << 10;
    let headers = vec![format!("If-None-Match: {}", answer::tag_of(bytes))];
    Case {
        name: "304".into(),
        title: "304 from L1".into(),
        role: Role::Cache,
        tool: Tool::Load {
            connections: CONNECTIONS,
            request: Request { headers, ..Request::get(format!("/{bytes}")) },
            expected: Expected { status: 304, ..Expected::whole(0) },
        },
        baseline: None,
        scales: false,
    }
}

fn over_http2(name: &str, title: &str, role: Role, target: String, calls: bool) -> Case {
    let tool = Tool::H2load { target, calls };
    Case { name: name.into(), title: title.into(), role, tool, baseline: None, scales: false }
}

fn pass(word: &str, words: &str, request: Request, size: usize, connections: usize) -> Case {
    Case {
        name: format!("pass-{word}-{connections}"),
        title: format!("pass-through, {words}, {}", of_connections(connections)),
        role: if connections == 1 { Role::Near } else { Role::Pass },
        tool: Tool::Load { connections, request, expected: Expected::whole(size) },
        baseline: (connections == 1).then_some(Baseline::Direct),
        scales: false,
    }
}

fn of_connections(count: usize) -> String {
    format!("{count} connection{}", if count == 1 { "" } else { "s" })
}

fn miss((bytes, _, words): (usize, &str, &str), connections: usize) -> Case {
    Case {
        name: format!("miss-{connections}"),
        title: format!("miss that is stored, {words}, {}", of_connections(connections)),
        role: Role::Cache,
        tool: Tool::Load {
            connections,
            request: Request::get(format!("/{bytes}/{NUMBER}")),
            expected: Expected::whole(bytes),
        },
        baseline: None,
        scales: false,
    }
}

fn shared() -> Case {
    let request = Request { numbers: SHARED, ..Request::get(format!("/shared/{SHARED_BYTES}/{NUMBER}")) };
    Case {
        name: "l2".into(),
        title: "L2 hit, 1 KiB".into(),
        role: Role::Shared,
        tool: Tool::Load {
            connections: CONNECTIONS,
            request,
            expected: Expected { says: Some("detail=l2"), ..Expected::whole(SHARED_BYTES) },
        },
        baseline: Some(Baseline::RedisBenchmark),
        scales: false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn cases_have_names_of_their_own() {
        let cases = all();
        let names: HashSet<_> = cases.iter().map(|case| &case.name).collect();
        let titles: HashSet<_> = cases.iter().map(|case| &case.title).collect();
        assert_eq!((names.len(), titles.len()), (cases.len(), cases.len()));
    }

    #[test]
    fn first_words_name_several_cases() {
        let named = |name| all().iter().filter(|case| case.is_named(name)).count();
        assert_eq!(["pass", "pass-1k", "pass-1k-64", "pass-1", "p", "hit"].map(named), [12, 3, 1, 0, 0, 3]);
    }

    #[test]
    fn each_case_has_its_servers() {
        let servers = |name: &str| {
            let case = all().into_iter().find(|case| case.name == name).unwrap();
            case.subjects(&[]).into_iter().map(Subject::as_str).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(servers("hit-1k"), "larder haproxy nginx ceiling larder-2");
        assert_eq!(servers("304"), "larder haproxy nginx");
        assert_eq!(servers("miss-1"), "larder haproxy nginx");
        assert_eq!(servers("pass-1k-1"), "direct larder haproxy nginx envoy relay");
        assert_eq!(servers("l2"), "redis-benchmark larder larder-2");
    }
}
