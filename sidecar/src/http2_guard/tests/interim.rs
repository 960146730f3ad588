//! Interim responses between hyper's frames.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::*;
use crate::http2_guard::interim::STREAM_FIELD;

/// Sends the interim responses that a path such as `/hints/2` asks for.
pub(super) fn send_hints(stream: Option<InterimStream>, path: &str) {
    let Some(stream) = stream.filter(|_| path.starts_with("/hints")) else { return };
    let count = path.rsplit('/').next().and_then(|count| count.parse().ok()).unwrap_or(0);
    let length = if path.starts_with("/hints-large") { 20_000 } else { 20 };
    let link = HeaderValue::from_str(&"x".repeat(length)).unwrap();
    let headers = HeaderMap::from_iter([(HeaderName::from_static("link"), link)]);
    (0..count).for_each(|_| stream.send(StatusCode::EARLY_HINTS, &headers, &[]));
}

/// Returns the status in a header block.
fn status_of(payload: &[u8]) -> String {
    fields_of(payload).into_iter().find(|(name, _)| name == ":status").unwrap().1
}

/// Returns a request as the service gets it, and the stream that it names.
fn told(interims: &Arc<Interims>, value: &'static str) -> (Request<()>, Option<InterimStream>) {
    let mut request = Request::get("/").header(STREAM_FIELD, value).body(()).unwrap();
    let stream = interims.stream_of(&mut request);
    (request, stream)
}

#[tokio::test]
async fn interim_responses_stand_before_the_final_one_of_their_stream() {
    let mut client = Client::start(b"", 1 << 20).await;
    for stream in [1, 3, 5] {
        client.get(stream, "/hints/2").await;
    }
    let mut seen = std::collections::BTreeMap::<u32, Vec<String>>::new();
    while seen.values().flatten().filter(|status| *status == "200").count() < 3 {
        let (head, payload) = client.read_next(HEADERS).await;
        assert!(head.has(END_HEADERS));
        assert!(!head.has(END_STREAM));
        seen.entry(head.stream).or_default().push(status_of(&payload));
    }
    assert!(seen.values().all(|statuses| statuses == &["103", "103", "200"]), "{seen:?}");
}

#[tokio::test]
async fn large_interim_response_is_continued_in_further_frames() {
    let mut client = Client::start(b"", 1 << 20).await;
    client.get(1, "/hints-large/1").await;
    let (head, mut block) = client.read_next(HEADERS).await;
    assert_eq!((head.flags, head.length), (0, MAX_PAYLOAD));
    let (head, rest) = client.read().await;
    assert_eq!((head.kind, head.flags, head.stream), (CONTINUATION, END_HEADERS, 1));
    block.extend_from_slice(&rest);
    assert_eq!(fields_of(&block)[1].1.len(), 20_000);
    assert_eq!(client.response(1).await.1, 1);
}

#[tokio::test]
async fn table_is_emptied_by_the_first_block_after_a_change_of_settings() {
    let mut client = Client::start(&setting(1, 100), 1 << 20).await;
    client.get(1, "/hints/1").await;
    let (_, payload) = client.read_next(HEADERS).await;
    assert_eq!((payload[0], status_of(&payload)), (hpack::EMPTY_TABLE, "103".to_owned()));
}

#[test]
fn closed_stream_takes_no_interim_response() {
    let interims = Arc::<Interims>::default();
    let (request, stream) = told(&interims, "0000002b");
    let stream = stream.unwrap();
    assert!(request.headers().is_empty());
    let open = stream.closed_on_drop();
    stream.send(StatusCode::EARLY_HINTS, &HeaderMap::new(), &[]);
    stream.go_on();
    stream.go_on();
    let taken: Vec<_> = interims.take().into_iter().map(|one| (one.stream, status_of(&one.block))).collect();
    assert_eq!(taken, [(43, "103".to_owned()), (43, "100".to_owned())]);
    drop(open);
    stream.send(StatusCode::EARLY_HINTS, &HeaderMap::new(), &[]);
    stream.go_on();
    assert!(interims.take().is_empty());
}

#[test]
fn waiting_responses_are_forgotten_with_their_stream_and_bounded() {
    let interims = Arc::<Interims>::default();
    let streams = ["00000001", "00000003"].map(|value| told(&interims, value).1.unwrap());
    streams.iter().for_each(|stream| stream.send(StatusCode::EARLY_HINTS, &HeaderMap::new(), &[]));
    interims.forget(1);
    assert_eq!(interims.take().iter().map(|one| one.stream).collect::<Vec<_>>(), [3]);
    let long = HeaderValue::from_str(&"x".repeat(1000)).unwrap();
    let headers = HeaderMap::from_iter([(HeaderName::from_static("link"), long)]);
    (0..1000).for_each(|_| streams[0].send(StatusCode::EARLY_HINTS, &headers, &[]));
    assert!((50..70).contains(&interims.take().len()));
    assert!(told(&interims, "a stream").1.is_none());
}

#[test]
fn interim_responses_that_a_client_does_not_read_are_bounded() {
    let budget = Arc::<Budget>::default();
    let interims = Arc::<Interims>::default();
    let shared = Shared {
        place: Arc::new(budget.connections.admit().unwrap()),
        in_progress: Arc::default(),
        is_used: Arc::default(),
        interims: Arc::clone(&interims),
    };
    let mut guard = Http2Guard::new(duplex(1).0, b"", Now, &budget, shared);
    let stream = told(&interims, "00000001").1.unwrap();
    let long = HeaderValue::from_str(&"x".repeat(1000)).unwrap();
    let headers = HeaderMap::from_iter([(HeaderName::from_static("link"), long)]);
    for _ in 0..1000 {
        stream.send(StatusCode::EARLY_HINTS, &headers, &[]);
        guard.take_interims();
    }
    assert!((MAX_BATCH..MAX_BATCH + 2000).contains(&guard.output.len()), "{}", guard.output.len());
}

#[test]
fn interim_responses_never_follow_the_end_of_their_stream() {
    for _ in 0..200 {
        let interims = Arc::<Interims>::default();
        let stream = told(&interims, "00000001").1.unwrap();
        let open = stream.closed_on_drop();
        let sender = std::thread::spawn(move || {
            (0..100).for_each(|_| stream.send(StatusCode::EARLY_HINTS, &HeaderMap::new(), &[]));
        });
        std::thread::yield_now();
        drop(open);
        interims.take();
        sender.join().unwrap();
        assert!(interims.take().is_empty());
    }
}
