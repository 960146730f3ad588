//! Clients that send bodies slowly, or large ones.

use std::time::Duration;

use super::{LIMIT, limited};
use crate::integration::harness::{Origin, Policy, Wire, reply};

const SPEC: &str = r#"
routes:
- {name: search, match: {path: "/search", methods: [POST]}, ttl: 1h, key: {body: {maxSize: 1Mi}}}
- {name: small, match: {path: "/small/{number}"}, ttl: 1h}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_part_of_keys_stay_within_the_limit() {
    let policy = Policy::new(SPEC);
    let origin = Origin::start(|_| async { reply(&[], "found") }).await;
    let sidecar = limited(origin.address, &["--policy", policy.path().to_str().unwrap()]).await;
    assert_eq!(sidecar.get("/small/0").await.body, "found");
    let peak = sidecar.peak();
    let (length, sent) = (1 << 20, (1 << 20) - 1);
    let head = format!("POST /search HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {length}\r\n\r\n");
    let request = [head.as_bytes(), &vec![b'q'; sent]].concat();
    let mut wires = Vec::new();
    for number in 0..200 {
        let mut wire = Wire::to(sidecar.address).await;
        // A body that passes to the application is read only as fast as the application reads.
        let _ = tokio::time::timeout(Duration::from_millis(200), wire.try_to_say(&request)).await;
        wires.push(wire);
        if number % 20 == 0 {
            assert_eq!(sidecar.get("/small/0").await.hit(), Some("l1"));
            assert_eq!(sidecar.get(&format!("/small/{number}1")).await.body, "found");
        }
    }
    eprintln!("peak: {} MiB", peak.bytes() >> 20);
    assert!(peak.bytes() < LIMIT, "{} MiB", peak.bytes() >> 20);
    // A request without room for its body is still served.
    let last = wires.last_mut().unwrap();
    last.say("q").await;
    let (head, body) = last.answer().await;
    assert!(head.starts_with("http/1.1 200 ") && body == "found", "{head}");
}
