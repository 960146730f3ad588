//! hyper on top of the guard, over a pipe.

use std::{convert::Infallible, time::Duration};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder_policy::Fields as _;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;
use crate::http2_guard::frame::{END_HEADERS, END_STREAM, PADDED, PRIORITY};

mod any_requests;
mod interim;

const TEST_TIMEOUT: Duration = Duration::from_secs(20);
const PREFACE_BYTES: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Responds immediately to paths that begin with `/now`, with the number of lines that the request has.
struct Now;

impl Http2Responder for Now {
    fn respond(&mut self, request: &PlainRequest<'_>, max_body: usize, block: &mut Vec<u8>) -> Option<Bytes> {
        let length = request.path.strip_prefix("/now/")?.parse().ok().filter(|length| *length <= max_body)?;
        status(block, b"200");
        field(block, b"server", b"guard");
        field(block, b"x-lines", request.lines.lines().count().to_string().as_bytes());
        Some(vec![b'n'; length].into())
    }
}

/// Responds as the guard does, or with the request's body, and before that with the hints that the path asks for.
async fn respond(
    request: Request<Incoming>,
    stream: Option<InterimStream>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    interim::send_hints(stream, &path);
    let lines = request.headers().len();
    let body = match path.rsplit('/').next().and_then(|length| length.parse().ok()) {
        Some(length) => vec![b'n'; length].into(),
        None => request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default(),
    };
    let response = Response::builder().header("server", "hyper").header("x-lines", lines.to_string());
    Ok(response.header("x-path", path).body(Full::new(body)).unwrap())
}

/// Serves a connection until its end, and returns the reason if the guard ended it.
async fn serve(stream: DuplexStream, shutdown: impl Future<Output = ()>) -> Option<ErrorCode> {
    let budget = Arc::<Budget>::default();
    let place = Arc::new(budget.connections.admit().unwrap());
    let interims = Arc::<Interims>::default();
    let service = service_fn(|mut request| {
        let stream = interims.stream_of(&mut request);
        respond(request, stream)
    });
    let interims = Arc::clone(&interims);
    let shared = Shared { place, in_progress: Arc::default(), is_used: Arc::default(), interims };
    let mut guard = Http2Guard::new(stream, b"", Now, &budget, shared);
    {
        let connection = http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(MAX_LIST as u32)
            .serve_connection(TokioIo::new(&mut guard), service);
        let (mut connection, mut shutdown) = (std::pin::pin!(connection), std::pin::pin!(shutdown));
        tokio::select! {
            _ = connection.as_mut() => {}
            () = &mut shutdown => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    }
    let failure = guard.failure();
    if let Some(code) = failure {
        let _ = guard.end(code).await;
    }
    failure
}

/// A client that sends and reads frames.
struct Client {
    stream: DuplexStream,
    server: tokio::task::JoinHandle<Option<ErrorCode>>,
    shutdown: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Client {
    async fn start(settings: &[u8], window: u32) -> Self {
        let (stream, theirs) = duplex(1 << 20);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let shutdown = async {
            if receiver.await.is_err() {
                std::future::pending().await
            }
        };
        let server = tokio::spawn(serve(theirs, shutdown));
        let mut client = Self { stream, server, shutdown: Some(sender) };
        client.stream.write_all(PREFACE_BYTES).await.unwrap();
        client.send(SETTINGS, 0, 0, settings).await;
        if window > 0 {
            client.send(WINDOW_UPDATE, 0, 0, &window.to_be_bytes()).await;
        }
        assert_eq!(client.read().await.0.kind, SETTINGS);
        client.send(SETTINGS, ACK, 0, b"").await;
        client
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut bytes = vec![];
        FrameHead::append(&mut bytes, kind, flags, stream, payload);
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn get(&mut self, stream: u32, path: &str) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(path)).await;
    }

    /// Returns the next frame.
    async fn read(&mut self) -> (FrameHead, Vec<u8>) {
        let read = async {
            let mut head = [0; HEAD];
            self.stream.read_exact(&mut head).await.unwrap();
            let head = FrameHead::read(&head).unwrap();
            let mut payload = vec![0; head.length];
            self.stream.read_exact(&mut payload).await.unwrap();
            (head, payload)
        };
        tokio::time::timeout(TEST_TIMEOUT, read).await.expect("a frame in time")
    }

    /// Returns the next frame of this kind.
    async fn read_next(&mut self, kind: u8) -> (FrameHead, Vec<u8>) {
        loop {
            let (head, payload) = self.read().await;
            if head.kind == kind {
                return (head, payload);
            }
        }
    }

    /// Returns the server of the response to a GET, and its body.
    async fn ask(&mut self, stream: u32, path: &str) -> (String, usize) {
        self.get(stream, path).await;
        self.response(stream).await
    }

    async fn response(&mut self, stream: u32) -> (String, usize) {
        let (mut server, mut length) = (String::new(), 0);
        loop {
            let (head, payload) = self.read().await;
            match head.kind {
                HEADERS => {
                    assert_eq!(head.stream, stream);
                    let mut list = HeaderList::default();
                    Decoder::default().decode(&payload, &mut list).unwrap();
                    let found = list.iter().find(|(name, _)| *name == b"server").unwrap();
                    server = String::from_utf8(found.1.to_vec()).unwrap();
                }
                DATA => length += payload.len(),
                RST_STREAM | GOAWAY => panic!("{head:?} {payload:?}"),
                _ => continue,
            }
            if head.has(END_STREAM) && matches!(head.kind, HEADERS | DATA) {
                return (server, length);
            }
        }
    }

    /// Expects the guard to end the connection for this reason.
    async fn ends_for(mut self, code: ErrorCode) {
        let (_, payload) = self.read_next(GOAWAY).await;
        assert_eq!(u32_at(&payload, 4), Some(code as u32));
        assert_eq!(self.server.await.unwrap(), Some(code));
    }
}

fn block(path: &str) -> Vec<u8> {
    let mut block = vec![];
    for (name, value) in [(":method", "GET"), (":scheme", "http"), (":authority", "shop"), (":path", path)] {
        field(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

fn setting(id: u8, value: u32) -> Vec<u8> {
    [&[0, id][..], &value.to_be_bytes()].concat()
}

#[tokio::test]
async fn response_in_memory_is_sent_without_hyper() {
    let mut client = Client::start(b"", 1 << 20).await;
    assert_eq!(client.ask(1, "/now/10").await, ("guard".to_owned(), 10));
    assert_eq!(client.ask(3, "/later/10").await, ("hyper".to_owned(), 10));
    assert_eq!(client.ask(5, "/now/0").await, ("guard".to_owned(), 0));
    assert_eq!(client.ask(7, "/now/40000").await, ("guard".to_owned(), 40_000));
    assert_eq!(client.ask(9, "/now/65535").await, ("guard".to_owned(), 65_535));
    assert_eq!(client.ask(11, "/now/65535").await.0, "guard");
}

#[tokio::test]
async fn body_larger_than_a_window_is_sent_by_hyper() {
    let mut client = Client::start(&setting(4, 10), 1 << 20).await;
    assert_eq!(client.ask(1, "/now/10").await.0, "guard");
    client.get(3, "/now/11").await;
    assert_eq!(client.read_next(DATA).await.0.length, 10);
    client.send(WINDOW_UPDATE, 0, 3, &1_u32.to_be_bytes()).await;
    assert_eq!(client.read_next(DATA).await.0.length, 1);
    let mut client = Client::start(b"", 0).await;
    assert_eq!(client.ask(1, "/now/10").await.0, "hyper", "all of the window is hyper's");
    assert_eq!(client.ask(3, "/now/0").await.0, "guard");
}

#[tokio::test]
async fn frames_of_an_answered_stream_are_ignored() {
    let mut client = Client::start(b"", 1 << 20).await;
    assert_eq!(client.ask(1, "/later/1").await.0, "hyper");
    assert_eq!(client.ask(3, "/now/10").await.0, "guard");
    let dropped = [(RST_STREAM, 8), (WINDOW_UPDATE, 10)];
    for (kind, value) in dropped {
        client.send(kind, 0, 3, &u32::to_be_bytes(value)).await;
    }
    client.send(2, 0, 3, &[0, 0, 0, 1, 9]).await;
    assert_eq!(client.ask(5, "/later/1").await.0, "hyper");
    // From now on, hyper takes it for a stream that was skipped.
    for (kind, value) in dropped {
        client.send(kind, 0, 3, &u32::to_be_bytes(value)).await;
    }
    assert_eq!(client.ask(7, "/now/1").await.0, "guard");
    // hyper rejects what is malformed.
    client.send(WINDOW_UPDATE, 0, 7, &0_u32.to_be_bytes()).await;
    assert_eq!(client.read_next(GOAWAY).await.0.stream, 0);
}

#[tokio::test]
async fn answered_stream_is_not_used_again() {
    for (kind, flags) in [(DATA, END_STREAM), (HEADERS, END_HEADERS | END_STREAM)] {
        let mut client = Client::start(b"", 1 << 20).await;
        assert_eq!(client.ask(3, "/now/10").await.0, "guard");
        client.send(kind, flags, 3, &block("/later/1")).await;
        client.ends_for(ErrorCode::StreamClosed).await;
    }
    let mut client = Client::start(b"", 1 << 20).await;
    assert_eq!(client.ask(3, "/now/10").await.0, "guard");
    assert_eq!(client.ask(5, "/later/10").await.0, "hyper");
    client.get(3, "/later/1").await;
    let (_, payload) = client.read_next(GOAWAY).await;
    assert_eq!(u32_at(&payload, 4), Some(ErrorCode::Protocol as u32), "of hyper");
}

#[tokio::test]
async fn malformed_frames_end_the_connection() {
    let padded = [&[200][..], &block("/now/1")].concat();
    for (kind, flags, stream, payload, code) in [
        (HEADERS, END_HEADERS | END_STREAM, 2, block("/now/1"), ErrorCode::Protocol),
        (HEADERS, END_HEADERS | END_STREAM, 0, block("/now/1"), ErrorCode::Protocol),
        (HEADERS, END_HEADERS | END_STREAM, 1, vec![0xbe], ErrorCode::Compression),
        (HEADERS, END_HEADERS | END_STREAM | PADDED, 1, padded, ErrorCode::Protocol),
        (HEADERS, END_HEADERS | PADDED, 1, vec![], ErrorCode::FrameSize),
        (HEADERS, END_HEADERS | PRIORITY, 1, vec![0, 0], ErrorCode::FrameSize),
        (CONTINUATION, END_HEADERS, 1, block("/now/1"), ErrorCode::Protocol),
        (PUSH_PROMISE, END_HEADERS, 1, block("/now/1"), ErrorCode::Protocol),
        (DATA, 0, 1, vec![0; MAX_PAYLOAD + 1], ErrorCode::FrameSize),
        (WINDOW_UPDATE, 0, 0, MAX_31.to_be_bytes().to_vec(), ErrorCode::FlowControl),
    ] {
        let mut client = Client::start(b"", 1 << 20).await;
        client.send(kind, flags, stream, &payload).await;
        client.ends_for(code).await;
    }
    let mut client = Client::start(b"", 1 << 20).await;
    client.send(HEADERS, END_STREAM, 1, &block("/now/1")).await;
    client.send(DATA, 0, 1, b"").await;
    client.ends_for(ErrorCode::Protocol).await;
}

/// CVE-2024-27316 and its like: header blocks without an end.
#[tokio::test]
async fn header_block_without_an_end_ends_the_connection() {
    for length in [0, 10, MAX_PAYLOAD] {
        let mut client = Client::start(b"", 1 << 20).await;
        client.send(HEADERS, END_STREAM, 1, &block("/now/1")).await;
        for _ in 0..10 {
            client.send(CONTINUATION, 0, 1, &vec![0x82; length]).await;
        }
        client.ends_for(ErrorCode::EnhanceYourCalm).await;
    }
}

#[tokio::test]
async fn header_block_in_pieces_is_one_request() {
    let mut client = Client::start(b"", 1 << 20).await;
    let block = block("/now/5");
    let (first, rest) = block.split_at(3);
    let payload = [&[2, 0, 0, 0, 0, 7][..], first, &[0, 0]].concat();
    client.send(HEADERS, END_STREAM | PADDED | PRIORITY, 1, &payload).await;
    client.send(CONTINUATION, 0, 1, b"").await;
    client.send(CONTINUATION, END_HEADERS, 1, rest).await;
    assert_eq!(client.response(1).await, ("guard".to_owned(), 5));
    // A stream that depends on itself is an error, which hyper states.
    let payload = [&[0, 0, 0, 3, 7][..], &block].concat();
    client.send(HEADERS, END_HEADERS | END_STREAM | PRIORITY, 3, &payload).await;
    assert_eq!(client.read_next(RST_STREAM).await.0.stream, 3);
}

#[tokio::test]
async fn header_list_that_is_too_large_is_refused_and_the_connection_lives() {
    let mut client = Client::start(b"", 1 << 20).await;
    assert_eq!(client.ask(1, "/later/1").await.0, "hyper");
    let mut large = block("/now/1");
    large.extend([0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
    large.extend(vec![b'x'; 4000]);
    large.extend([0xbe; 30]);
    client.send(HEADERS, END_HEADERS | END_STREAM, 3, &large).await;
    let (head, payload) = client.read_next(HEADERS).await;
    let mut list = HeaderList::default();
    Decoder::default().decode(&payload, &mut list).unwrap();
    assert_eq!((head.stream, list.iter().next().unwrap().1), (3, &b"431"[..]));
    // The table is in step.
    let request = [&block("/now/1")[..], &[0xbe]].concat();
    client.send(HEADERS, END_HEADERS | END_STREAM, 5, &request).await;
    assert_eq!(client.response(5).await.0, "guard");
}

#[tokio::test]
async fn doubtful_requests_are_for_hyper() {
    let field_of = |name: &str, value: &str| {
        let mut block = block("/now/1");
        field(&mut block, name.as_bytes(), value.as_bytes());
        block
    };
    let mut client = Client::start(b"", 1 << 20).await;
    let mut stream = 1;
    for (name, value) in [("host", "shop"), ("content-length", "0"), ("te", "trailers"), ("expect", "x")] {
        client.send(HEADERS, END_HEADERS | END_STREAM, stream, &field_of(name, value)).await;
        assert_eq!(client.response(stream).await.0, "hyper", "{name}");
        stream += 2;
    }
    for (name, value) in
        [("connection", "close"), (":path", "/now/2"), (":status", "200"), ("transfer-encoding", "chunked")]
    {
        client.send(HEADERS, END_HEADERS | END_STREAM, stream, &field_of(name, value)).await;
        let (head, payload) = client.read_next(RST_STREAM).await;
        assert_eq!((head.stream, u32_at(&payload, 0)), (stream, Some(1)), "{name}");
        stream += 2;
    }
    client.send(HEADERS, END_HEADERS | END_STREAM, stream, &field_of("x", " a ")).await;
    assert_eq!(client.response(stream).await.0, "hyper");
    client.send(HEADERS, END_HEADERS | END_STREAM, stream + 2, &field_of("x", "a")).await;
    assert_eq!(client.response(stream + 2).await.0, "guard");
    client.send(HEADERS, END_HEADERS | END_STREAM, stream + 4, &field_of("X-Upper", "a")).await;
    client.read_next(GOAWAY).await;
}

#[tokio::test]
async fn table_of_the_client_is_emptied_after_each_of_its_settings() {
    let mut client = Client::start(&setting(1, 100), 1 << 20).await;
    for (stream, path) in [(1, "/now/0"), (3, "/later/0")] {
        client.get(stream, path).await;
        assert_eq!(client.read_next(HEADERS).await.1[0], 0x20, "{path}");
    }
    client.get(5, "/now/0").await;
    assert_ne!(client.read_next(HEADERS).await.1[0], 0x20);
    client.send(SETTINGS, 0, 0, &setting(1, 4096)).await;
    client.get(7, "/now/0").await;
    assert_eq!(client.read_next(HEADERS).await.1[0], 0x20);
}

#[tokio::test]
async fn last_stream_of_a_connection_that_ends_includes_answered_ones() {
    let mut client = Client::start(b"", 1 << 20).await;
    assert_eq!(client.ask(1, "/later/1").await.0, "hyper");
    assert_eq!(client.ask(9, "/now/1").await.0, "guard");
    client.shutdown.take().unwrap().send(()).unwrap();
    let (_, first) = client.read_next(GOAWAY).await;
    assert_eq!(u32_at(&first, 0), Some(MAX_31));
    // Sent in the meantime, and served by hyper.
    assert_eq!(client.ask(11, "/now/1").await.0, "hyper");
    client.send(6, ACK, 0, &[0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54]).await;
    let (_, last) = client.read_next(GOAWAY).await;
    assert_eq!((u32_at(&last, 0), u32_at(&last, 4)), (Some(11), Some(0)));
    assert_eq!(client.server.await.unwrap(), None);
}

#[tokio::test]
async fn client_that_does_not_read_is_not_read_from() {
    let mut client = Client::start(&setting(4, MAX_31), MAX_31 - (1 << 16)).await;
    let mut sent = 0;
    let request = {
        let mut bytes = vec![];
        FrameHead::append(&mut bytes, HEADERS, END_HEADERS | END_STREAM, 1, &block("/now/60000"));
        bytes
    };
    for stream in 0..1_000_000_u32 {
        let mut request = request.clone();
        request[5..9].copy_from_slice(&(2 * stream + 1).to_be_bytes());
        let writes = client.stream.write_all(&request);
        if tokio::time::timeout(Duration::from_millis(500), writes).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < 60_000, "{sent}: the pipe has 1 MiB each way");
}
