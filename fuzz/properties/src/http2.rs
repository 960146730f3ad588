//! Requests on an HTTP/2 connection. The input is a client's bytes behind its preface.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::{Reason, server};
use http::Request;
use larder_policy::Fields;
use larder_sidecar::{
    budget::{Budget, Kind},
    http2_guard::{ErrorCode, Http2Guard, Http2Responder, Interims, MAX_LIST, PlainRequest, Shared, status},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Path of requests that the guard responds to itself.
const IN_MEMORY: &str = "/now";

/// Number of reads for which a client without further bytes stays, beside one for each byte that it sent: a server gives up the
/// requests that it has not looked at when its client leaves.
const STAYS: usize = 16;

/// Number of turns in which a connection comes to its end, beside two for each byte.
const MAX_TURNS: usize = 1000;

/// The guard and the server behind it see together what the same server sees without a guard, whatever the pieces are in
/// which the bytes come: each request once, in order and with the same fields. Less is seen only by a connection that ends with an error.
pub fn check(data: &[u8]) {
    let input = [PREFACE, data].concat();
    // Byte by byte, because a server that finds an error forgets the requests that it has not looked at.
    let direct = served(Wire::new(&input, 1, &Cell::default()), input.len(), false);
    let whole = guarded(&input, input.len());
    whole.check_against(&direct);
    for piece in [1, 2 + data.len() / 16] {
        let cut = guarded(&input, piece);
        cut.check_against(&direct);
        if !whole.ended_by_server() && !cut.ended_by_server() {
            assert_eq!(cut.rejection, whole.rejection, "in pieces of {piece}");
        }
        if !whole.is_cut && !cut.is_cut {
            assert_eq!(
                (&cut.by_guard, &cut.by_server.requests),
                (&whole.by_guard, &whole.by_server.requests)
            );
        }
    }
}

/// A request as a server has read it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    method: String,
    authority: String,
    path: String,
    /// Sorted by name. Lines of one name are in their order.
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    has_content: bool,
}

impl Seen {
    fn fields_of(fields: &impl Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut fields: Vec<_> =
            fields.lines().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        fields.sort_by(|(name, _), (other, _)| name.cmp(other));
        fields
    }

    fn of_server<B>(request: &Request<B>, has_content: bool) -> Self {
        let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
        Self {
            method: request.method().to_string(),
            authority: text(request.uri().authority().map(|authority| authority.as_str())),
            path: text(request.uri().path_and_query().map(|path| path.as_str())),
            fields: Self::fields_of(request.headers()),
            has_content,
        }
    }

    /// Returns the size of the header list, without a scheme (RFC 9113, section 6.5.2).
    fn size(&self) -> usize {
        let pseudo = [(7, self.method.len()), (10, self.authority.len()), (5, self.path.len())];
        let fields = self.fields.iter().map(|(name, value)| (name.len(), value.len()));
        pseudo.into_iter().chain(fields).map(|(name, value)| name + value + 32).sum()
    }
}

/// Requests that a server has read from a connection, and how it ended.
#[derive(Debug)]
struct Served {
    /// The requests, with their streams.
    requests: Vec<(u32, Seen)>,
    /// Set if the connection ended with an error.
    failure: Option<h2::Error>,
}

/// Outcome of a connection with a guard.
#[derive(Debug)]
struct Guarded {
    by_guard: Vec<Seen>,
    by_server: Served,
    /// Reason why the guard ended the connection.
    rejection: Option<ErrorCode>,
    /// True if the connection ended before its client left, so that requests may be lost.
    is_cut: bool,
}

impl Guarded {
    fn ended_by_server(&self) -> bool {
        self.is_cut && self.rejection.is_none()
    }

    fn check_against(&self, direct: &Served) {
        let mut by_guard = VecDeque::from_iter(&self.by_guard);
        let mut by_server = VecDeque::from_iter(&self.by_server.requests);
        for (stream, request) in &direct.requests {
            if let Some((_, seen)) = by_server.pop_front_if(|(next, _)| next == stream) {
                assert_eq!(seen, request, "stream {stream}");
            } else if let Some(seen) = by_guard.pop_front_if(|seen| *seen == request) {
                assert!(seen.method == "GET" && !seen.has_content && seen.path.starts_with(IN_MEMORY));
            } else {
                // The server applies its limit only when the client has acknowledged it.
                let is_too_large = request.size() + 32 >= MAX_LIST;
                assert!(self.is_cut || is_too_large, "stream {stream} is not served: {request:?}, {self:?}");
            }
        }
        // The guard may respond before the server has read an error in what came earlier.
        assert!(
            direct.failure.is_some() || by_guard.is_empty(),
            "nobody asked for this: {by_guard:?}, {direct:?}"
        );
        // The windows of answered streams are the guard's business.
        let is_of_windows = |error: &h2::Error| error.reason() == Some(Reason::FLOW_CONTROL_ERROR);
        let is_whole = !direct.failure.as_ref().is_some_and(is_of_windows);
        assert!(!is_whole || by_server.is_empty(), "nobody asked for this: {by_server:?}, {direct:?}");
    }
}

/// Responds to some requests, and records them.
struct Responder<'a>(&'a RefCell<Vec<Seen>>);

impl Http2Responder for Responder<'_> {
    fn respond(&mut self, request: &PlainRequest<'_>, _: usize, block: &mut Vec<u8>) -> Option<Bytes> {
        if !request.path.starts_with(IN_MEMORY) {
            return None;
        }
        self.0.borrow_mut().push(Seen {
            method: "GET".to_owned(),
            authority: request.authority.to_owned(),
            path: request.path.to_owned(),
            fields: Seen::fields_of(&request.lines),
            has_content: false,
        });
        status(block, b"200");
        Some(Bytes::new())
    }
}

fn guarded(input: &[u8], piece: usize) -> Guarded {
    let budget = Arc::<Budget>::default();
    let place = Arc::new(budget.connections.admit().expect("the first connection"));
    let interims = Arc::default();
    let shared = Shared { place, in_progress: Arc::default(), is_used: Arc::default(), interims };
    let (beginning, rest) = input.split_at(piece.min(input.len()));
    let (by_guard, has_left) = (RefCell::default(), Cell::default());
    let wire = Wire::new(rest, piece, &has_left);
    let mut guard = Http2Guard::new(wire, beginning, Responder(&by_guard), &budget, shared);
    let by_server = served(&mut guard, input.len(), true);
    let rejection = guard.failure();
    assert!(rejection.is_none() || by_server.failure.is_some(), "the server is told");
    drop(guard);
    assert_eq!((budget.reserved(Kind::Heads), budget.reserved(Kind::Unread)), (0, 0), "all is given back");
    Guarded { by_guard: by_guard.into_inner(), by_server, rejection, is_cut: !has_left.get() }
}

/// Serves a connection with so many bytes until its end.
fn served(stream: impl AsyncRead + AsyncWrite + Unpin, length: usize, is_guarded: bool) -> Served {
    // Protections against floods count what the guard keeps from the server.
    let handshake = server::Builder::new()
        .max_header_list_size(u32::try_from(MAX_LIST).expect("a small limit"))
        .max_pending_accept_reset_streams(usize::MAX)
        .max_local_error_reset_streams(None)
        .handshake::<_, Bytes>(stream);
    let mut handshake = Box::pin(handshake);
    let mut served = Served { requests: vec![], failure: None };
    let mut context = Context::from_waker(Waker::noop());
    let mut turns = 0..MAX_TURNS + 2 * length;
    let mut connection = match turns.find_map(|_| ready(handshake.as_mut().poll(&mut context))) {
        Some(Ok(connection)) => connection,
        Some(Err(error)) => return Served { failure: Some(error), ..served },
        None => panic!("the connection hangs"),
    };
    // Requests are held, because a response would end streams sooner or later.
    let mut held = vec![];
    loop {
        match turns.find_map(|_| ready(connection.poll_accept(&mut context))) {
            Some(Some(Ok((mut request, respond)))) => {
                // The guard's own field.
                let told = Arc::<Interims>::default().stream_of(&mut request);
                let stream = respond.stream_id().as_u32();
                assert!(told.is_none_or(|told| told.number() == stream || !is_guarded), "stream {stream}");
                let seen = Seen::of_server(&request, !request.body().is_end_stream());
                served.requests.push((stream, seen));
                held.push((request, respond));
            }
            Some(Some(Err(error))) => return Served { failure: Some(error), ..served },
            Some(None) => return served,
            None => panic!("the connection hangs: {served:?}"),
        }
    }
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

/// A connection that sends its bytes in pieces and ends later, and accepts everything.
struct Wire<'a> {
    input: &'a [u8],
    piece: usize,
    /// True if the next read has to wait.
    waits: bool,
    /// Number of reads until it ends, and whether it has ended.
    stays: usize,
    has_left: &'a Cell<bool>,
}

impl<'a> Wire<'a> {
    fn new(input: &'a [u8], piece: usize, has_left: &'a Cell<bool>) -> Self {
        Self { input, piece, waits: false, stays: STAYS + input.len(), has_left }
    }
}

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.input.is_empty() && self.stays > 0 {
            self.stays -= 1;
            return Poll::Pending;
        }
        if std::mem::replace(&mut self.waits, true) {
            self.waits = false;
            return Poll::Pending;
        }
        self.has_left.set(self.input.is_empty());
        let length = self.piece.min(self.input.len()).min(buffer.remaining());
        let (now, later) = self.input.split_at(length);
        buffer.put_slice(now);
        self.input = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
