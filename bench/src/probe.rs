//! A single request, to check that a server responds, and from where.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Result, bail};

/// A response as received.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    head: String,
    /// Length of the body.
    pub length: usize,
    /// The body.
    pub body: Vec<u8>,
}

/// Sends one request to a server on the loopback interface.
///
/// # Errors
/// If it cannot be reached or its response is not HTTP.
pub fn get(port: u16, path: &str, headers: &[String]) -> Result<Answer> {
    Connection::open(port, Duration::from_secs(5))?.get(path, headers)
}

/// A connection for one request after another.
pub struct Connection {
    stream: TcpStream,
    port: u16,
}

impl Connection {
    /// Connects to a server on the loopback interface, of which each response may take so long.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub fn open(port: u16, timeout: Duration) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, port })
    }

    /// Sends a request, and waits for the whole response.
    ///
    /// # Errors
    /// If there is none, or it is not HTTP with a `Content-Length`.
    pub fn get(&mut self, path: &str, headers: &[String]) -> Result<Answer> {
        self.send("GET", path, headers, &[])
    }

    /// Sends a POST with content, and waits for the whole response.
    ///
    /// # Errors
    /// If there is none, or it is not HTTP with a `Content-Length`.
    pub fn post(&mut self, path: &str, headers: &[String], content: &[u8]) -> Result<Answer> {
        let length = format!("Content-Length: {}", content.len());
        self.send("POST", path, &[headers, &[length]].concat(), content)
    }

    fn send(&mut self, method: &str, path: &str, headers: &[String], content: &[u8]) -> Result<Answer> {
        let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n{more}\r\n", self.port);
        self.stream.write_all(&[request.as_bytes(), content].concat())?;
        let (mut bytes, mut piece) = (Vec::new(), [0; 16 << 10]);
        loop {
            let read = self.stream.read(&mut piece)?;
            bytes.extend_from_slice(&piece[..read]);
            match Answer::parse(&bytes) {
                Some(answer) if answer.is_whole() => {
                    let body = bytes.split_off(bytes.len() - answer.length);
                    return Ok(Answer { body, ..answer });
                }
                _ if read == 0 => bail!("not an answer: {}", String::from_utf8_lossy(&bytes)),
                _ => {}
            }
        }
    }
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?.to_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head, length: bytes.len() - end - 4, body: vec![] })
    }

    fn is_whole(&self) -> bool {
        let expected = self.header("content-length").and_then(|length| length.parse().ok());
        self.status == 304 || expected == Some(self.length)
    }

    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Returns true if the response came from a cache: `Cache-Status` (RFC 9211), or else `Age` (RFC 9111, 5.1).
    pub fn says_hit(&self) -> bool {
        match self.header("cache-status") {
            Some(status) => status.split(';').any(|parameter| parameter.trim() == "hit"),
            None => self.header("age").is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_read() {
        let answer = |more: &str| {
            Answer::parse(format!("HTTP/1.1 200 OK\r\nA: b\r\n{more}\r\nxyz").as_bytes()).unwrap()
        };
        assert_eq!((answer("").status, answer("").length, answer("").header("a")), (200, 3, Some("b")));
        assert!(!answer("").says_hit());
        assert!(answer("Age: 0\r\n").says_hit());
        assert!(answer("Cache-Status: larder; hit; detail=l1\r\n").says_hit());
        assert!(!answer("Age: 0\r\nCache-Status: larder; fwd=miss; stored\r\n").says_hit());
        assert!(Answer::parse(b"HTTP/1.1 200 OK\r\n").is_none());
        assert!(answer("Content-Length: 3\r\n").is_whole() && !answer("Content-Length: 4\r\n").is_whole());
    }
}
