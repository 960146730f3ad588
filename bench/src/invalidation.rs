//! Sidecars that share one Redis, or tell one another, and purges through them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use larder_api::admin::{PolicyReport, PurgeReport};

use crate::{
    origin,
    probe::{Answer, Connection},
    process::{Process, free_ports},
};

/// Token of the admin API.
const TOKEN: &str = "a token of this run";
/// Size of each response in bytes.
const BODY: usize = 100;
/// Maximum time of a response. A purge waits 100 ms for other pods and the timeout of Redis at most.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time until all sidecars of a fleet know one another, once they run.
const MEETING_TIMEOUT: Duration = Duration::from_secs(60);

/// Sidecars of one policy, their Redis and their origin.
pub struct Fleet {
    /// The sidecars.
    pub sidecars: Vec<Sidecar>,
    /// Redis, if they share one.
    pub redis: Option<Process>,
}

/// The way in which purges travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over Redis.
    Redis,
    /// From sidecar to sidecar.
    Peers,
}

/// A running sidecar.
pub struct Sidecar {
    /// The process.
    pub process: Process,
    port: u16,
    admin: u16,
}

impl Fleet {
    /// Starts sidecars with `program` and this size of L1, their files in `scratch`.
    ///
    /// # Errors
    /// If a server does not start.
    pub fn start(program: &Path, scratch: &Path, sidecars: usize, l1: &str, way: Way) -> Result<Self> {
        let ports = free_ports(2 + 2 * sidecars)?;
        let (shared, own) = ports.split_at(2);
        let (redis, application) = (shared[0], shared[1]);
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, application));
        thread::spawn(move || origin::serve(listen));
        fs::create_dir_all(scratch)?;
        let (policy, token) = (scratch.join("policy.yaml"), scratch.join("token"));
        fs::write(&policy, document(l1, way))?;
        fs::write(&token, TOKEN)?;
        let cores = crate::cpu::allowed()?;
        let command = ["redis-server", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"];
        let command: Vec<_> = command.map(str::to_owned).into_iter().chain([redis.to_string()]).collect();
        let redis_log = scratch.join("redis.log");
        let redis_process = match way {
            Way::Redis => Some(Process::start(&cores, &command, redis_log, redis)?),
            Way::Peers => None,
        };
        let peers: Vec<_> = own.chunks(2).map(|ports| format!("127.0.0.1:{}", ports[1])).collect();
        let start = |number: usize, ports: &[u16]| {
            let (port, admin) = (ports[0], ports[1]);
            let mut command = vec![
                "env".to_owned(),
                format!("BENCH_REDIS_URL=redis://127.0.0.1:{redis}/"),
                program.display().to_string(),
                "--threads=1".into(),
                format!("--listen=127.0.0.1:{port}"),
                format!("--admin-listen=127.0.0.1:{admin}"),
                format!("--upstream=http://127.0.0.1:{application}"),
                format!("--policy={}", policy.display()),
                format!("--admin-token-file={}", token.display()),
                "--memory-limit=4Gi".into(),
            ];
            if way == Way::Peers {
                command.extend([format!("--peers={}", peers.join(",")), "--pod-ip=127.0.0.1".into()]);
            }
            let log: PathBuf = scratch.join(format!("sidecar-{number}.log"));
            Ok(Sidecar { process: Process::start(&cores, &command, log, port)?, port, admin })
        };
        let sidecars = own.chunks(2).enumerate().map(|(number, ports)| start(number, ports));
        let fleet = Self { sidecars: sidecars.collect::<Result<_>>()?, redis: redis_process };
        for sidecar in &fleet.sidecars {
            sidecar.hears_of_purges()?;
            if way == Way::Peers {
                sidecar.knows_others(fleet.sidecars.len() - 1)?;
            }
        }
        Ok(fleet)
    }
}

impl Sidecar {
    /// Opens a connection for requests of users.
    ///
    /// # Errors
    /// If the sidecar does not listen.
    pub fn client(&self) -> Result<Connection> {
        Connection::open(self.port, RESPONSE_TIMEOUT)
    }

    /// Opens a connection for purges.
    ///
    /// # Errors
    /// If the sidecar does not listen.
    pub fn purger(&self) -> Result<Purger> {
        Ok(Purger(Connection::open(self.admin, RESPONSE_TIMEOUT)?))
    }

    /// Waits until the sidecar serves from memory: until then it does not hear of purges.
    fn hears_of_purges(&self) -> Result<()> {
        let (mut client, began) = (self.client()?, Instant::now());
        while !client.get(&path(0), &[])?.says_hit() {
            ensure!(began.elapsed() < RESPONSE_TIMEOUT, "a sidecar does not serve from memory");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits until the sidecar tells so many others of purges.
    fn knows_others(&self, count: usize) -> Result<()> {
        let (mut client, began) = (Connection::open(self.admin, RESPONSE_TIMEOUT)?, Instant::now());
        loop {
            let report: PolicyReport = serde_json::from_slice(&client.get("/policy", &[])?.body)?;
            let peers = report.peers.unwrap_or_default();
            if peers.reachable == count && peers.unreachable.is_empty() {
                return Ok(());
            }
            ensure!(began.elapsed() < MEETING_TIMEOUT, "a sidecar does not find the others: {peers:?}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Returns the path of a response, which has the tag `item:<number>`.
pub fn path(number: usize) -> String {
    format!("/items/{BODY}/{number}")
}

/// A connection to the admin API.
pub struct Purger(Connection);

impl Purger {
    /// Purges tags; returns the time that it took, and false if a sidecar has not acknowledged it in time.
    ///
    /// # Errors
    /// If the purge is not in Redis, where there is one.
    pub fn purge(&mut self, tags: &[String]) -> Result<(Duration, bool)> {
        let body = serde_json::to_vec(&serde_json::json!({ "tags": tags }))?;
        let headers = [format!("Authorization: Bearer {TOKEN}"), "Content-Type: application/json".to_owned()];
        let began = Instant::now();
        let Answer { status, body, .. } = self.0.post("/purge", &headers, &body)?;
        let took = began.elapsed();
        let is_everywhere = status == 200;
        let is_told =
            || serde_json::from_slice::<PurgeReport>(&body).is_ok_and(|report| report.peers.is_some());
        ensure!(is_everywhere || status == 202 && is_told(), "a purge has status {status}");
        Ok((took, is_everywhere))
    }
}

/// Has each of a number of paths stored, by several clients at a time.
///
/// # Errors
/// If one of them is not.
pub fn fill(sidecar: &Sidecar, paths: std::ops::Range<usize>) -> Result<()> {
    const CLIENTS: usize = 8;
    thread::scope(|scope| {
        let clients = (0..CLIENTS).map(|first| {
            let paths = paths.clone();
            scope.spawn(move || {
                let mut client = sidecar.client()?;
                for number in paths.skip(first).step_by(CLIENTS) {
                    ensure!(client.get(&path(number), &[])?.status == 200, "no response");
                }
                Ok(())
            })
        });
        let clients: Vec<_> = clients.collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })
}

/// Durations, and what of them is shown.
#[derive(Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds a duration.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Returns a quantile in milliseconds: 0.5 is the median, 1 the maximum.
    ///
    /// # Errors
    /// If there are no durations.
    pub fn quantile(&mut self, share: f64) -> Result<f64> {
        self.0.sort_unstable();
        let last = self.0.len().checked_sub(1).context("nothing was measured")?;
        let index = (share * last as f64).round() as usize;
        Ok(self.0[index.min(last)].as_secs_f64() * 1e3)
    }
}

impl Extend<Duration> for Times {
    fn extend<T: IntoIterator<Item = Duration>>(&mut self, times: T) {
        self.0.extend(times);
    }
}

fn document(l1: &str, way: Way) -> String {
    let l2 = match way {
        Way::Redis => "l2: {redis: {urlFrom: {env: BENCH_REDIS_URL}, timeout: 5s}}",
        Way::Peers => "",
    };
    format!(
        r#"apiVersion: larder.dev/v1alpha1
kind: CachePolicy
metadata: {{name: bench, namespace: bench}}
spec:
  selector: {{matchLabels: {{app: bench}}}}
  targets: [{{port: http}}]
  l1: {{maxSize: {l1}}}
  {l2}
  routes:
  - {{name: item, match: {{path: "/items/{{size}}/{{number}}"}}, ttl: 1h, tags: ["item:{{number}}", all]}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_sorted_durations() {
        let mut times = Times::default();
        assert!(times.quantile(0.5).is_err());
        times.extend([3, 1, 2].map(Duration::from_millis));
        times.add(Duration::from_millis(4));
        times.add(Duration::from_millis(5));
        let quantiles = [0.0, 0.5, 1.0].map(|share| times.quantile(share).unwrap());
        assert_eq!(quantiles, [1.0, 3.0, 5.0]);
    }
}
