//! Response times under load.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures::future::{join_all, try_join_all};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::TEST_TIMEOUT;

/// Requests a path over so many connections, so many times each, and returns the 99th percentile of the response times. All
/// responses must come from memory.
pub(crate) async fn p99_of_hits(to: SocketAddr, path: &str, connections: usize, times: usize) -> Duration {
    let all = (0..connections).map(|_| async move {
        let (mut connection, mut took) = (Connection::to(to).await, Vec::with_capacity(times));
        for _ in 0..times {
            let asked_at = Instant::now();
            let head =
                timeout(TEST_TIMEOUT, connection.ask(path)).await.expect("a response in time").unwrap();
            took.push(asked_at.elapsed());
            assert!(head.starts_with("HTTP/1.1 200") && head.contains("detail=l1"), "{head}");
        }
        took
    });
    let mut all = join_all(all).await.concat();
    all.sort_unstable();
    all[all.len() * 99 / 100]
}

/// Clients that each request a different path every time, one after the other, and wait no longer than `patience`.
pub(crate) fn newcomers(
    to: SocketAddr,
    paths: &'static [&'static str],
    count: usize,
    patience: Duration,
) -> AbortOnDropHandle<()> {
    let asking = move |client: usize| async move {
        for number in 0.. {
            let path = format!("{}/{client}-{number}", paths[(client + number) % paths.len()]);
            let _ = timeout(patience, async { Connection::to(to).await.ask(&path).await }).await;
            sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, std::convert::Infallible>(())
    };
    AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = try_join_all((0..count).map(asking)).await;
    }))
}

/// A persistent connection.
struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    async fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::with_capacity(4 << 10) }
    }

    /// Requests a path of `shop.test`. Returns the head once the whole response has come.
    async fn ask(&mut self, path: &str) -> std::io::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.read.clear();
        loop {
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let text = String::from_utf8_lossy(&self.read);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.to_lowercase();
            let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Ok(head.to_owned());
            }
        }
    }
}
