//! The origin, which must cost less than any server in front of it: responses that are ready, over HTTP/1.1 without
//! anything that a benchmark does not send, and gRPC calls over HTTP/2.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::answer;

/// Size of a connection's buffer, which must hold a request's head.
const BUFFER: usize = 16 << 10;

/// Number of bytes of a call's response, with the five of its frame (gRPC over HTTP/2, "Length-Prefixed-Message").
pub const CALL_BYTES: usize = 5 + 100;

/// Returns a gRPC message of [`CALL_BYTES`].
pub fn message() -> Bytes {
    let length = u32::try_from(CALL_BYTES - 5).expect("a short message");
    Bytes::from([&[0][..], &length.to_be_bytes(), &[b'x'; CALL_BYTES - 5]].concat())
}

/// Serves each path over HTTP/1.1 by [`answer::over_http1`], until the process ends.
///
/// # Errors
/// If it cannot listen on the address.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        let ready = Arc::<Mutex<Ready>>::default();
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            stream.set_nodelay(true)?;
            tokio::spawn(respond(stream, Arc::clone(&ready)));
        }
    })
}

/// The responses of this second, by their size.
#[derive(Default)]
struct Ready {
    second: u64,
    by_size: HashMap<usize, Bytes>,
}

impl Ready {
    fn response(&mut self, path: &str) -> Bytes {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if now != self.second {
            *self = Self { second: now, by_size: HashMap::new() };
        }
        let size = answer::size_of(path).unwrap_or(usize::MAX);
        self.by_size.entry(size).or_insert_with(|| answer::over_http1(path, now)).clone()
    }
}

async fn respond(mut stream: TcpStream, ready: Arc<Mutex<Ready>>) -> io::Result<()> {
    let (mut buffer, mut filled) = (vec![0; BUFFER], 0);
    loop {
        let Some((length, response)) = read(&buffer[..filled], &ready) else {
            match stream.read(&mut buffer[filled..]).await? {
                0 => return Ok(()),
                more => filled += more,
            }
            continue;
        };
        buffer.copy_within(length..filled, 0);
        filled -= length;
        stream.write_all(&response).await?;
    }
}

/// Returns the length of a complete request, and the response to it.
fn read(bytes: &[u8], ready: &Mutex<Ready>) -> Option<(usize, Bytes)> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = str::from_utf8(&bytes[..end]).ok()?;
    let mut words = head.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let length = if method == "GET" { end } else { end + content_length(head) };
    (bytes.len() >= length).then(|| (length, ready.lock().response(path)))
}

fn content_length(head: &str) -> usize {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, length)| length.trim().parse().ok()).unwrap_or_default()
}

/// Serves each gRPC call over HTTP/2 with one message, until the process ends.
///
/// # Errors
/// If it cannot listen on the address.
pub fn serve_calls(listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (listener, message) = (TcpListener::bind(listen).await?, message());
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            stream.set_nodelay(true)?;
            let message = message.clone();
            let service = service_fn(move |request| call(request, message.clone()));
            tokio::spawn(async move {
                // A client that goes away ends its connection, and nobody asks how.
                let connection =
                    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
                let _ = connection.await;
            });
        }
    })
}

async fn call(
    request: Request<Incoming>,
    message: Bytes,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, hyper::Error> {
    request.into_body().collect().await?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_behind_its_content() {
        let ready = Mutex::default();
        let length = |text: &str| read(text.as_bytes(), &ready).map(|(length, _)| length);
        let get = "GET /10 HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(length(&format!("{get}GET")), Some(get.len()));
        assert_eq!(length(&get[..get.len() - 1]), None);
        let post = "POST /10 HTTP/1.1\r\nContent-length: 3\r\n\r\nabc";
        assert_eq!((length(post), length(&post[..post.len() - 1])), (Some(post.len()), None));
    }

    #[test]
    fn a_call_has_the_length_of_its_message() {
        let message = message();
        assert_eq!((message.len(), &message[..5]), (CALL_BYTES, &[0, 0, 0, 0, 100][..]));
    }
}
