//! The sidecar under callgrind, with a fixed number of requests over one connection.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Counts, Record, callgrind};
use crate::{
    answer, cpu, origin,
    probe::{Answer, Connection},
    process::{Process, free_ports},
    server::{Behind, Place, Role, Running, Server, display},
};

/// Number of requests that count.
const REQUESTS: u64 = 2000;

/// Number of requests before them: work that is done once, or for the first requests of a connection, does not count.
const BEFORE: u64 = 200;

/// Number of responses in Redis, which are requested in turn.
const SHARED: u64 = 50;

/// Size of a response's body in bytes.
const BYTES: usize = 1 << 10;

/// Maximum time of a response, under callgrind.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Variable that has the C library copy without `rep movsb`, of which callgrind counts each byte as an instruction.
const TUNABLES: &str = "GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824";

/// Headers of a usual client.
const HEADERS: [&str; 2] = ["Accept: */*", "User-Agent: bench/1.0"];

/// A path that is measured.
struct Case {
    name: &'static str,
    role: Role,
    /// Returns the target of the request with a number.
    target: fn(u64) -> String,
    is_conditional: bool,
    /// Text that `Cache-Status` has.
    says: &'static str,
}

/// Returns the paths.
fn cases() -> [Case; 5] {
    let case = |name, role, target, says| Case { name, role, target, is_conditional: false, says };
    let same: fn(u64) -> String = |_| format!("/{BYTES}");
    [
        case("hit", Role::Cache, same, "hit"),
        Case { is_conditional: true, ..case("304", Role::Cache, same, "hit") },
        case("miss", Role::Cache, |number| format!("/{BYTES}/{number:08}"), "fwd=uri-miss"),
        case("pass", Role::Pass, same, "fwd=bypass"),
        case("l2", Role::Shared, |number| format!("/shared/{BYTES}/{:08}", number % SHARED), "detail=l2"),
    ]
}

/// Counts the instructions of each path in this sidecar, with its files in a folder.
///
/// # Errors
/// If a program can't be run, or if a response is not the expected one.
pub fn measure(sidecar: &Path, scratch: &Path) -> Result<Record> {
    let ports = free_ports(2)?;
    let behind = Behind { origin: ports[0], near: 0, calls: 0, redis: ports[1] };
    let cores = cpu::allowed()?;
    let listen = ([127, 0, 0, 1], behind.origin).into();
    thread::spawn(move || origin::serve(listen));
    let redis = ["redis-server", "--bind", "127.0.0.1", "--save", "", "--port", &behind.redis.to_string()];
    let redis = redis.map(str::to_owned);
    let _redis = Process::start(&cores, &redis, scratch.join("redis.log"), behind.redis)?;
    let mut record = Record::default();
    for role in [Role::Cache, Role::Pass, Role::Shared] {
        let profile = scratch.join(format!("profile-{}", role.as_str()));
        let place = Place {
            programs: scratch.to_owned(),
            larder: under_callgrind(&profile, sidecar),
            envoy: None,
            scratch: scratch.to_owned(),
            cores: cores.clone(),
            threads: 1,
        };
        let running = Server::Larder.start(role, &place, behind, &[])?;
        let cases = cases().into_iter().filter(|case| case.role == role);
        for (number, case) in cases.enumerate() {
            let profile = format!("{}.{}", display(&profile), number + 1);
            let counts = count(&case, &running, Path::new(&profile)).with_context(|| case.name)?;
            record.0.insert(case.name.to_owned(), counts);
        }
    }
    Ok(record)
}

/// Returns the command of the sidecar, which counts nothing yet.
fn under_callgrind(profile: &Path, sidecar: &Path) -> Vec<String> {
    let tool = ["env", TUNABLES, "valgrind", "--tool=callgrind", "--instr-atstart=no"].map(str::to_owned);
    let more = [format!("--callgrind-out-file={}", display(profile)), display(sidecar)];
    tool.into_iter().chain(more).collect()
}

/// Counts the instructions of a path, of which callgrind writes the profile into a file of this name.
fn count(case: &Case, running: &Running, profile: &Path) -> Result<Counts> {
    let mut connection = Connection::open(running.port, TIMEOUT)?;
    let mut number = 0;
    warm(case, &mut connection, &mut number)?;
    control(running, "instrumentation on")?;
    for _ in 0..REQUESTS {
        let answer = request(case, &mut connection, &mut number)?;
        ensure!(is_expected(case, &answer), "not the response: {answer:?}");
    }
    control(running, "instrumentation off")?;
    control(running, "dump")?;
    let text = fs::read_to_string(profile).with_context(|| display(profile))?;
    let functions = callgrind::self_cost(&text);
    let total = functions.values().sum::<u64>() / REQUESTS;
    ensure!(total > 0, "no instruction was counted");
    let functions = functions.into_iter().map(|(name, count)| (name, count / REQUESTS)).collect();
    Ok(Counts { total, functions })
}

/// Sends requests until so many in a row had the expected response.
fn warm(case: &Case, connection: &mut Connection, number: &mut u64) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let mut expected = 0;
    while expected < BEFORE {
        let answer = request(case, connection, number)?;
        expected = if is_expected(case, &answer) { expected + 1 } else { 0 };
        ensure!(Instant::now() < deadline, "not the response: {answer:?}");
    }
    Ok(())
}

fn request(case: &Case, connection: &mut Connection, number: &mut u64) -> Result<Answer> {
    let mut headers = HEADERS.map(str::to_owned).to_vec();
    headers.extend(case.is_conditional.then(|| format!("If-None-Match: {}", answer::tag_of(BYTES))));
    let target = (case.target)(*number);
    *number += 1;
    connection.get(&target, &headers)
}

fn is_expected(case: &Case, answer: &Answer) -> bool {
    let expected = if case.is_conditional { (304, 0) } else { (200, BYTES) };
    (answer.status, answer.length) == expected
        && answer.header("cache-status").is_some_and(|status| status.contains(case.says))
}

/// Sends a command to callgrind in a process.
fn control(running: &Running, command: &str) -> Result<()> {
    let output = Command::new("vgdb")
        .arg(format!("--pid={}", running.process.id()))
        .args(command.split(' '))
        .output()
        .context("vgdb")?;
    if output.status.success() {
        return Ok(());
    }
    bail!("vgdb {command}: {}", String::from_utf8_lossy(&output.stderr))
}
