//! Any requests, through a pipe that passes any pieces.

use proptest::{collection::vec, prelude::*};
use tokio::io::{ReadHalf, WriteHalf, split};

use super::*;

#[derive(Clone, Debug)]
struct Ask {
    is_now: bool,
    length: usize,
    fields: Vec<(String, String)>,
    body: Option<usize>,
}

fn ask() -> impl Strategy<Value = Ask> {
    let name = prop_oneof![Just("cookie".to_owned()), Just("accept".to_owned()), "x-[a-d]"];
    let fields = vec((name, "[!-~]{0,60}"), 0..5);
    let length = prop_oneof![0..100_usize, 0..5_000_usize, 0..100_000_usize];
    let body = prop::option::weighted(0.2, 0..50_000_usize);
    (any::<bool>(), length, fields, body).prop_map(|(is_now, length, fields, body)| Ask {
        is_now,
        length,
        fields,
        body,
    })
}

/// A pipe that passes bytes in pieces of this length. Its directions do not wait for each other.
async fn pieces(near: DuplexStream, far: DuplexStream, length: usize) {
    let ((near_out, near_in), (far_out, far_in)) = (split(near), split(far));
    tokio::join!(pass(near_out, far_in, length), pass(far_out, near_in, length));
}

async fn pass(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, length: usize) {
    let mut piece = vec![0; length];
    while let Ok(read @ 1..) = from.read(&mut piece).await
        && to.write_all(&piece[..read]).await.is_ok()
    {}
    let _ = to.shutdown().await;
}

async fn exchange(asks: Vec<Ask>, window: u32, piece: usize, at_once: usize) -> Result<usize, TestCaseError> {
    let (client, near) = duplex(1 << 16);
    let (far, theirs) = duplex(1 << 16);
    tokio::spawn(pieces(near, far, piece));
    let served = tokio::spawn(serve(theirs, std::future::pending()));
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(window.max((64 << 10) - 1)).initial_window_size(window);
    let (mut sender, connection) = builder.handshake::<_, Bytes>(client).await.unwrap();
    let driven = tokio::spawn(connection);
    let mut answered = 0;
    for batch in asks.chunks(at_once) {
        let mut responses = vec![];
        for ask in batch {
            let kind = if ask.is_now { "now" } else { "later" };
            let mut request = Request::get(format!("http://shop/{kind}/{}", ask.length)).body(()).unwrap();
            for (name, value) in &ask.fields {
                let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
                request.headers_mut().append(name, value.parse().unwrap());
            }
            sender = sender.ready().await.unwrap();
            let (response, mut body) = sender.send_request(request, ask.body.is_none()).unwrap();
            if let Some(length) = ask.body {
                body.send_data(vec![b'b'; length].into(), true).unwrap();
            }
            responses.push((ask, response, body));
        }
        // All at once: a response that nobody reads takes up the window of the others.
        let reads = responses.into_iter().map(async |(ask, response, _body)| {
            let response = response.await.unwrap();
            let is_of_guard = response.headers()["server"] == "guard";
            let lines: usize = response.headers()["x-lines"].to_str().unwrap().parse().unwrap();
            prop_assert_eq!(lines, ask.fields.len());
            let mut body = response.into_body();
            let mut length = 0;
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                prop_assert!(data.iter().all(|byte| *byte == b'n'));
                length += data.len();
                body.flow_control().release_capacity(data.len()).unwrap();
            }
            prop_assert_eq!(length, ask.length);
            Ok(usize::from(is_of_guard))
        });
        answered += futures::future::try_join_all(reads).await?.into_iter().sum::<usize>();
    }
    drop(sender);
    prop_assert!(driven.await.unwrap().is_ok());
    prop_assert_eq!(served.await.unwrap(), None);
    Ok(answered)
}

#[test]
fn every_request_gets_its_response() {
    let answered = std::cell::Cell::new(0);
    let config = ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let windows = prop_oneof![Just(1_000_u32), Just((64 << 10) - 1), Just(1 << 20)];
    let pieces = prop_oneof![1..30_usize, Just(10_000)];
    runner
        .run(&(vec(ask(), 1..40), windows, pieces, 1..20_usize), |(asks, window, piece, at_once)| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let exchanged = exchange(asks, window, piece, at_once);
            let done = runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, exchanged).await });
            answered.set(answered.get() + done.expect("responses in time")?);
            Ok(())
        })
        .unwrap();
    assert!(answered.get() > 100, "{}", answered.get());
}
