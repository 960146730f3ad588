//! A client that sends raw bytes.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::TEST_TIMEOUT;

/// A client connection for raw bytes. Every read and write must be done in time.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: BufReader<TcpStream>,
}

impl Wire {
    /// Connects.
    pub(crate) async fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::with_capacity(64 << 10, stream) }
    }

    /// Connects with a small receive buffer.
    pub(crate) async fn narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        Self { stream: BufReader::with_capacity(1 << 10, socket.connect(address).await.unwrap()) }
    }

    /// Connects, and requests a path of `shop.test`.
    pub(crate) async fn asking(address: SocketAddr, path: &str) -> Self {
        let mut wire = Self::to(address).await;
        wire.ask(path).await;
        wire
    }

    /// Requests a path of `shop.test`.
    pub(crate) async fn ask(&mut self, path: &str) {
        self.say(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).await;
    }

    /// Sends bytes.
    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        timeout(TEST_TIMEOUT, self.stream.write_all(bytes.as_ref())).await.expect("sent in time").unwrap();
    }

    /// Sends bytes to a peer that may have stopped listening.
    pub(crate) async fn try_to_say(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = timeout(TEST_TIMEOUT, self.stream.write_all(bytes.as_ref())).await.expect("sent in time");
    }

    /// Closes its side of the connection.
    pub(crate) async fn close_its_side(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Returns true if nothing comes for a while, not even the end.
    pub(crate) async fn is_silent_for(&mut self, time: Duration) -> bool {
        timeout(time, self.stream.fill_buf()).await.is_err()
    }

    /// Reads a head, in lower case; empty at the end.
    pub(crate) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match timeout(TEST_TIMEOUT, self.stream.read_u8()).await.expect("a head in time") {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
        String::from_utf8(head).unwrap().to_lowercase()
    }

    /// Reads so many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        timeout(TEST_TIMEOUT, self.stream.read_exact(&mut bytes)).await.expect("bytes in time").unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Reads a line, without its end.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        while !line.ends_with("\r\n") {
            line.push_str(&self.bytes(1).await);
        }
        line.trim_end().to_owned()
    }

    /// Waits until there is something to read. Cancelling the wait loses nothing.
    pub(crate) async fn until_readable(&mut self) {
        self.stream.fill_buf().await.unwrap();
    }

    /// Reads the content of one chunk.
    pub(crate) async fn chunk(&mut self) -> String {
        let size = usize::from_str_radix(&self.line().await, 16).unwrap();
        let chunk = self.bytes(size).await;
        self.bytes(2).await;
        chunk
    }

    /// Reads a chunked body.
    pub(crate) async fn chunks(&mut self) -> String {
        let mut body = String::new();
        loop {
            match self.chunk().await {
                chunk if chunk.is_empty() => return body,
                chunk => body.push_str(&chunk),
            }
        }
    }

    /// Reads a response that has a length or is chunked: its head in lower case, and its body.
    pub(crate) async fn answer(&mut self) -> (String, String) {
        let head = self.head().await;
        assert!(head.ends_with("\r\n\r\n"), "the connection ended: {head:?}");
        let body = match header(&head, "content-length") {
            "" if header(&head, "transfer-encoding") == "chunked" => self.chunks().await,
            "" => String::new(),
            length => self.bytes(length.parse().unwrap()).await,
        };
        (head, body)
    }

    /// Reads to the end of the connection, including a reset.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = timeout(TEST_TIMEOUT, self.stream.read_to_end(&mut rest)).await.expect("an end in time");
        rest
    }

    /// Reads and discards so many bytes.
    pub(crate) async fn skip(&mut self, count: usize) {
        let (mut piece, mut left) = (vec![0; 256 << 10], count);
        while left > 0 {
            let most = left.min(piece.len());
            let read =
                timeout(TEST_TIMEOUT, self.stream.read(&mut piece[..most])).await.expect("more in time");
            let read = read.unwrap();
            assert!(read > 0, "the body broke off {left} bytes before its end");
            left -= read;
        }
    }

    /// Reads a few bytes, and returns their number: 0 at the end of the connection.
    pub(crate) async fn read_some(&mut self) -> usize {
        self.stream.read(&mut [0; 4 << 10]).await.unwrap_or(0)
    }

    /// Reads to the end and returns only the number of bytes.
    pub(crate) async fn discard(&mut self) -> u64 {
        let (mut piece, mut count) = (vec![0; 256 << 10], 0);
        loop {
            match timeout(TEST_TIMEOUT, self.stream.read(&mut piece)).await.expect("more in time") {
                Ok(0) | Err(_) => return count,
                Ok(read) => count += read as u64,
            }
        }
    }
}

/// Returns a header's value in a head in lower case, or an empty string.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(has, _)| *has == name).map_or("", |(_, value)| value)
}
