//! Churn at full load: clients that ask for responses of many sizes, and the memory of the sidecar meanwhile.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time,
};

use crate::{
    memory::{resident, varied},
    traces::{Random, Zipf},
};

/// Number of objects of each phase.
const OBJECTS: u32 = 3_000;

/// Time after which the sizes change: what one kind of responses leaves must serve for the next.
const PHASE: Duration = Duration::from_secs(15);

/// A run.
pub struct Soak {
    /// Port of the sidecar.
    pub port: u16,
    /// Process id of the sidecar.
    pub process: u32,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Duration.
    pub span: Duration,
}

/// Responses, and the memory meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Number of responses.
    pub responses: u64,
    /// Number of those that were hits.
    pub hits: u64,
    /// Number of connections that were cut off, or refused, because the budget was exhausted.
    pub cut: u64,
    /// Bytes of bodies.
    pub bytes: u64,
    /// Maximum of all resident memory, sampled each second, in bytes.
    pub resident: u64,
    /// Maximum of the resident memory without pages of files, in bytes.
    pub anonymous: u64,
}

#[derive(Default)]
struct Counters {
    responses: AtomicU64,
    hits: AtomicU64,
    cut: AtomicU64,
    bytes: AtomicU64,
}

impl Soak {
    /// Runs, and shows each ten seconds what was seen since.
    ///
    /// # Errors
    /// If the sidecar ends, or a response is not the object.
    pub fn run(&self, mut show: impl FnMut(Duration, &Seen) -> Result<()>) -> Result<Seen> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (counters, zipf) = (Arc::<Counters>::default(), Arc::new(Zipf::new(OBJECTS, 0.7)));
            let began = Instant::now();
            let mut clients = JoinSet::new();
            for number in 0..self.connections {
                let client = Client { random: Random(number as u64), zipf: Arc::clone(&zipf), began };
                clients.spawn(client.ask_until(began + self.span, self.port, Arc::clone(&counters)));
            }
            let (mut all, mut seconds) = (Seen::default(), time::interval(Duration::from_secs(1)));
            while began.elapsed() < self.span {
                tokio::select! {
                    _ = seconds.tick() => {}
                    Some(ended) = clients.join_next() => ended??,
                }
                all.resident = all.resident.max(resident(self.process, "VmRSS")?);
                all.anonymous = all.anonymous.max(resident(self.process, "RssAnon")?);
                counters.read(&mut all);
                show(began.elapsed(), &all)?;
            }
            while let Some(ended) = clients.join_next().await {
                ended??;
            }
            counters.read(&mut all);
            Ok(all)
        })
    }
}

impl Counters {
    fn read(&self, seen: &mut Seen) {
        seen.responses = self.responses.load(Ordering::Relaxed);
        seen.hits = self.hits.load(Ordering::Relaxed);
        seen.cut = self.cut.load(Ordering::Relaxed);
        seen.bytes = self.bytes.load(Ordering::Relaxed);
    }
}

struct Client {
    random: Random,
    zipf: Arc<Zipf>,
    began: Instant,
}

impl Client {
    async fn ask_until(mut self, end: Instant, port: u16, counters: Arc<Counters>) -> Result<()> {
        let mut buffer = vec![0; 64 << 10];
        while Instant::now() < end {
            let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
            stream.set_nodelay(true)?;
            while Instant::now() < end {
                let path = self.next();
                let request = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\n\r\n");
                let response = match stream.write_all(request.as_bytes()).await {
                    Ok(()) => read_response(&mut stream, &mut buffer).await.context(path)?,
                    Err(_) => None,
                };
                let Some((is_hit, length)) = response else {
                    // The budget was exhausted, and this client the slowest: that is how its bound is kept.
                    counters.cut.fetch_add(1, Ordering::Relaxed);
                    break;
                };
                counters.responses.fetch_add(1, Ordering::Relaxed);
                counters.hits.fetch_add(is_hit.into(), Ordering::Relaxed);
                counters.bytes.fetch_add(length, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Returns the path of an object. Its number says its size, so that each object is one response.
    fn next(&mut self) -> String {
        let phase = self.began.elapsed().as_secs() / PHASE.as_secs();
        let number = self.zipf.next(&mut self.random);
        let mut own = Random(phase << 32 | u64::from(number));
        let size = match phase % 3 {
            0 => varied(&mut own),
            1 => 256 + (own.number() % 4096) as usize,
            _ => (512 << 10) + (own.number() % (512 << 10)) as usize,
        };
        format!("/{size}?{phase}-{number}")
    }
}

/// Reads a response; returns whether it was a hit, and the length of its body. `None`: the connection ended.
async fn read_response(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<Option<(bool, u64)>> {
    let mut filled = 0;
    let head = loop {
        let Ok(read @ 1..) = stream.read(&mut buffer[filled..]).await else { return Ok(None) };
        filled += read;
        if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
    if text.starts_with("http/1.1 503 ") {
        return Ok(None);
    }
    ensure!(text.starts_with("http/1.1 200 "), "{text}");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    let length: u64 = length.trim().parse()?;
    let mut left = length.checked_sub((filled - head) as u64).context("more than its length")?;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let Ok(read @ 1..) = stream.read(&mut buffer[..most]).await else { return Ok(None) };
        left -= read as u64;
    }
    Ok(Some((text.contains("larder; hit"), length)))
}

/// Returns the bytes that everything but L1 may take, as the metrics of the sidecar say.
///
/// # Errors
/// If there are no such metrics.
pub fn budget(metrics: &str) -> Result<u64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix("larder_memory_budget_bytes"));
    let number = line.and_then(|line| line.rsplit(' ').next()).context("no budget in the metrics")?;
    Ok(number.parse::<f64>()? as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_read_from_metrics() {
        let metrics =
            "# TYPE larder_memory_budget_bytes gauge\nlarder_memory_budget_bytes{a=\"b c\"} 27682406\n";
        assert_eq!(budget(metrics).unwrap(), 27_682_406);
        assert!(budget("").is_err());
    }

    #[test]
    fn object_has_one_size() {
        let client =
            || Client { random: Random(1), zipf: Arc::new(Zipf::new(OBJECTS, 0.7)), began: Instant::now() };
        let (mut one, mut other) = (client(), client());
        let paths: Vec<String> = (0..100).map(|_| one.next()).collect();
        assert!(paths.iter().all(|path| *path == other.next()));
    }
}
