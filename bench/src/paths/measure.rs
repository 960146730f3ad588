//! Servers, load and origin of the paths, and one round after another.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs,
    path::PathBuf,
    process, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Baseline, CONNECTIONS, Case, Subject, Tool,
    footprint::{self, Footprint},
    tools,
};
use crate::{
    cpu::{self, Tree},
    load::{Expected, Load, NUMBER, Request},
    origin::{CALL_BYTES, message},
    probe,
    process::{Process, free_ports},
    server::{Behind, Place, Role, Running, Server},
};

/// Requests of the first run of a program that sends a given number of them.
const FIRST: u64 = 4_000;

/// Share of the time for which the origin may be busy while a cache responds by itself.
const ORIGIN_AT_REST: f64 = 0.02;

/// Seconds of a run that only warms up.
const WARM_UP: f64 = 0.2;

/// Maximum time until a server has warmed up.
const WARM: Duration = Duration::from_secs(20);

/// One measurement of a subject. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Number of responses.
    pub requests: u64,
    /// Duration.
    pub time: f64,
    /// CPU time of the server.
    pub server: f64,
    /// Share of its core that was idle.
    pub idle: f64,
    /// Median latency, where the tool tells.
    pub p50: Option<f64>,
    /// 99th percentile of latency, where the tool tells.
    pub p99: Option<f64>,
}

impl Sample {
    /// Returns responses for each second of the server's CPU.
    pub fn per_cpu_second(&self) -> f64 {
        self.requests as f64 / self.server
    }

    /// Returns responses per second.
    pub fn per_second(&self) -> f64 {
        self.requests as f64 / self.time
    }
}

/// The running servers, and what stands behind and before them.
pub struct Bench {
    /// Location of servers on a core of their own.
    place: Place,
    core: usize,
    load_core: usize,
    servers: HashMap<(Subject, Role), Running>,
    origin: Process,
    near: Process,
    behind: Behind,
    _others: Vec<Process>,
    /// A gRPC message.
    message: PathBuf,
    /// Responses per second that a program which sends a given number of requests can expect.
    rates: HashMap<(String, Subject), f64>,
}

impl Bench {
    /// Starts the servers of these cases on the first of two cores, and what stands behind them on the second.
    ///
    /// # Errors
    /// If one does not start, or does not serve.
    pub fn start(
        place: Place,
        [core, load_core]: [usize; 2],
        cases: &[Case],
        wanted: &[Server],
    ) -> Result<Self> {
        let ports = free_ports(4)?;
        let behind = Behind { origin: ports[0], near: ports[1], calls: ports[2], redis: ports[3] };
        let program = place.programs.join("origin").display().to_string();
        let log = |name: &str| place.scratch.join(format!("{name}.log"));
        let start = |name: &str, command: &[String], port| {
            Process::start(&load_core.to_string(), command, log(name), port)
        };
        let listen = |port| format!("--listen=127.0.0.1:{port}");
        let origin = start("origin", &[program.clone(), listen(behind.origin)], behind.origin)?;
        let command = [program.clone(), listen(behind.near)];
        let near = Process::start(&place.cores, &command, log("near"), behind.near)?;
        let mut others = Vec::new();
        if cases.iter().any(|case| case.role == Role::Calls) {
            others.push(start("calls", &[program, "--calls".into(), listen(behind.calls)], behind.calls)?);
        }
        if cases.iter().any(|case| case.role == Role::Shared) {
            let port = behind.redis.to_string();
            let command =
                ["redis-server", "--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"];
            others.push(start("redis", &command.map(str::to_owned), behind.redis)?);
            tools::store_for_redis_benchmark(core, behind.redis)?;
        }
        let two_threads = Place { cores: format!("{core},{load_core}"), threads: 2, ..place.clone() };
        let file = place.scratch.join("message");
        fs::write(&file, message())?;
        let mut bench = Self {
            place,
            core,
            load_core,
            servers: HashMap::new(),
            origin,
            near,
            behind,
            _others: others,
            message: file,
            rates: HashMap::new(),
        };
        let paths: Vec<String> = cases.iter().filter_map(path_of_hit).collect();
        for case in cases {
            for subject in case.subjects(wanted) {
                let (server, place) = match subject {
                    Subject::Server(server) => (server, &bench.place),
                    Subject::TwoThreads => (Server::Larder, &two_threads),
                    Subject::Baseline(_) => continue,
                };
                if let Entry::Vacant(entry) = bench.servers.entry((subject, case.role)) {
                    entry.insert(server.start(case.role, place, behind, &paths)?);
                }
                bench.warm(case, subject).with_context(|| format!("{}, {}", case.title, subject.as_str()))?;
            }
        }
        Ok(bench)
    }

    /// Lets a server see the requests of a case until it responds as it is expected to.
    fn warm(&self, case: &Case, subject: Subject) -> Result<()> {
        let running = &self.servers[&(subject, case.role)];
        store(case, running)?;
        if case.role == Role::Shared {
            let deadline = Instant::now() + WARM;
            let strict = self.load(&case.tool, WARM_UP).context("no load")?;
            let mut lenient = self.load(&case.tool, WARM_UP).context("no load")?;
            lenient.expected.says = None;
            while let Err(error) = strict.run(running.port, running.process.id()) {
                if Instant::now() > deadline {
                    return Err(error.context("not everything comes from Redis"));
                }
                lenient.run(running.port, running.process.id())?;
            }
        }
        Ok(())
    }

    /// Measures a subject once.
    ///
    /// # Errors
    /// If a response is wrong, or a program can't be run.
    pub fn sample(&mut self, case: &Case, subject: Subject, seconds: f64) -> Result<Sample> {
        let awake = if case.is_alone() { vec![self.core, self.load_core] } else { Vec::new() };
        let log = self.place.scratch.join("awake.log");
        let awake = awake.into_iter().map(|core| Process::keep_awake(core, log.clone()));
        let _awake = awake.collect::<Result<Vec<_>>>()?;
        match (subject, &case.tool) {
            (Subject::Baseline(Baseline::RedisBenchmark), _) => {
                let key = (case.name.clone(), subject);
                self.counted(key, seconds, process::id(), |bench, requests| {
                    let rate = tools::redis_benchmark(bench.core, bench.behind.redis, requests)?;
                    Ok(Duration::from_secs_f64(requests as f64 / rate))
                })
            }
            (_, Tool::H2load { target, calls }) => {
                let key = (case.name.clone(), subject);
                let running = &self.servers[&(subject, case.role)];
                let (port, pid) = (running.port, running.process.id());
                let size =
                    if *calls { CALL_BYTES } else { crate::answer::size_of(target).unwrap_or_default() };
                self.counted(key, seconds, pid, |bench, requests| {
                    let file = calls.then_some(&*bench.message);
                    tools::h2load(bench.load_core, port, target, file, size, requests)
                })
            }
            (_, tool) => {
                let (port, pid) = match subject {
                    Subject::Baseline(_) => (self.behind.near, self.near.id()),
                    Subject::Server(_) | Subject::TwoThreads => {
                        let running = &self.servers[&(subject, case.role)];
                        store(case, running)?;
                        (running.port, running.process.id())
                    }
                };
                let load = self.load(tool, seconds).context("no load")?;
                let origin = Tree::of(self.origin.id());
                let before = origin.time()?;
                let report = load.run(port, pid)?;
                let origin = (origin.time()? - before).as_secs_f64();
                let time = report.time as f64 / 1e9;
                ensure!(
                    path_of_hit(case).is_none() || origin < ORIGIN_AT_REST * time,
                    "the origin was busy for {origin:.3} s: not every response was a hit"
                );
                Ok(Sample {
                    requests: report.requests,
                    time,
                    server: report.server as f64 / 1e9,
                    idle: report.idle as f64 / 1e9 / time,
                    p50: Some(report.p50 as f64 / 1e9),
                    p99: Some(report.p99 as f64 / 1e9),
                })
            }
        }
    }

    /// Runs a program that sends about as many requests as take `seconds`, and counts the CPU time of a process.
    fn counted(
        &mut self,
        key: (String, Subject),
        seconds: f64,
        pid: u32,
        run: impl Fn(&Self, u64) -> Result<Duration>,
    ) -> Result<Sample> {
        let requests = self.rates.get(&key).map_or(FIRST, |rate| ((rate * seconds) as u64).max(FIRST));
        let is_own = pid == process::id();
        let tree = Tree::of(pid);
        // The time of a child that has ended is known to a hundredth of a second.
        let spent = || if is_own { Ok(cpu::time_of_tree(pid)) } else { tree.time() };
        let (before, idle) = (spent()?, cpu::idle_time(self.core)?);
        let time = run(self, requests)?.as_secs_f64();
        let server = spent()?.saturating_sub(before).as_secs_f64();
        let idle = (cpu::idle_time(self.core)?.saturating_sub(idle).as_secs_f64() / time).min(1.0);
        ensure!(server > 0.0, "it used no CPU time that /proc shows");
        self.rates.insert(key, requests as f64 / time);
        Ok(Sample { requests, time, server, idle, p50: None, p99: None })
    }

    /// Measures the memory of servers that have had no request.
    ///
    /// # Errors
    /// If one of them does not start, or does not serve.
    pub fn footprint(&self, wanted: &[Server]) -> Result<Footprint> {
        let place = Place { scratch: self.place.scratch.join("footprint"), ..self.place.clone() };
        fs::create_dir_all(&place.scratch)?;
        footprint::measure(&place, self.behind, wanted, &|running, request| {
            let expected = Expected::whole(footprint::BYTES);
            let tool = Tool::Load { connections: CONNECTIONS, request, expected };
            self.load(&tool, 1.0).context("no load")?.run(running.port, running.process.id())
        })
    }

    fn load(&self, tool: &Tool, seconds: f64) -> Option<Load> {
        let Tool::Load { connections, request, expected } = tool else { return None };
        let (request, expected): (Request, Expected) = (request.clone(), expected.clone());
        Some(Load {
            program: self.place.programs.join("load"),
            core: self.load_core,
            server_core: self.core,
            connections: *connections,
            seconds,
            request,
            expected,
        })
    }

    /// Returns the port of Redis.
    pub fn redis(&self) -> u16 {
        self.behind.redis
    }

    /// Returns the name and version of a server.
    ///
    /// # Errors
    /// If the program does not run.
    pub fn name_of(&self, server: Server) -> Result<String> {
        server.name(&self.place)
    }
}

/// Has a cache store the response of a case whose every response comes from it: misses of another case may have evicted
/// it.
fn store(case: &Case, running: &Running) -> Result<()> {
    let Some(path) = path_of_hit(case).filter(|_| case.role == Role::Cache) else { return Ok(()) };
    let deadline = Instant::now() + WARM;
    loop {
        let answer = probe::get(running.port, &path, &[])?;
        if answer.says_hit() || !running.server.says_hit() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no hit");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the path of a case whose every response comes from a cache.
fn path_of_hit(case: &Case) -> Option<String> {
    let target = match &case.tool {
        Tool::Load { request, .. } => &request.target,
        Tool::H2load { target, .. } => target,
    };
    let is_cached = matches!(case.role, Role::Cache | Role::Http2Cache) && !target.contains(NUMBER);
    is_cached.then(|| target.clone())
}
