//! Messages between pods that are not believed.

use std::{net::SocketAddr, sync::Arc};

use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    super::harness::{
        Origin, Peer, Policy, Relay, Reply, Seen, Sidecar, TOKEN, exchange, free_port, reply, until,
    },
    ALONE, report, stored,
};

/// A message by which everything of a process that nobody knows is purged.
const EVERYTHING: &str =
    r#"{"instance": 7, "purges": [{"origin": 7, "after": 0, "last": 1, "everything": true, "purges": []}]}"#;

async fn until_unreachable(sidecar: &Sidecar, address: SocketAddr, reason: &str) {
    until("it is not believed", async || {
        let unreachable = &sidecar.policy().await["peers"]["unreachable"][address.to_string()];
        unreachable.as_str().is_some_and(|is| is.contains(reason)).then_some(())
    })
    .await;
}

/// Responds as a server that does not know the token, and makes up what it can.
fn forged(seen: &Seen) -> Reply {
    let proof = seen.header("authorization");
    let Some((_, mac)) = proof.split_once("mac=") else {
        let challenge = format!("Larder-Peer challenge={}", blake3::hash(&seen.number.to_le_bytes()));
        let mut challenged = reply(&[("www-authenticate", &challenge)], "");
        *challenged.status_mut() = StatusCode::UNAUTHORIZED;
        return challenged;
    };
    let asked: Value = serde_json::from_slice(&seen.body).unwrap();
    // That of the one that asks, by turns: the address would count as its own.
    let instance = if (seen.number / 2).is_multiple_of(2) { asked["instance"].clone() } else { json!(7) };
    let everything = json!({"origin": 7, "after": 0, "last": 1u64 << 62, "everything": true, "purges": []});
    let purges =
        json!({"instance": instance, "acknowledged": 1u64 << 62, "known": {}, "purges": [everything]});
    let mac = format!("mac={mac}");
    let info: &[_] =
        if (seen.number / 4).is_multiple_of(2) { &[("authentication-info", &*mac)] } else { &[] };
    reply(info, purges.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn server_without_the_token_is_not_believed_and_not_told_it() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let all = Arc::<Mutex<Vec<Seen>>>::default();
    let seen_by_it = Arc::clone(&all);
    let stranger = Origin::start(move |seen| {
        let all = Arc::clone(&seen_by_it);
        async move {
            let forged = forged(&seen);
            all.lock().push(seen);
            forged
        }
    })
    .await;
    let [a, b] = [free_port(), free_port()];
    let first = Sidecar::among(&policy, origin.address, a, &[stranger.address.port()]).await;
    let second = Sidecar::among(&policy, origin.address, b, &[b]).await;
    let before = stored(std::slice::from_ref(&first), "/a").await;
    until_unreachable(&first, stranger.address, "does not prove that it has this pod's token").await;
    let told = report(&first.purge(r#"{"tags": ["other"]}"#).await.body);
    assert_eq!(told["peers"], json!({"acknowledged": 0, "missing": [stranger.address.to_string()]}));
    until("it was asked often", async || (stranger.calls() > 12).then_some(())).await;
    until_unreachable(&first, stranger.address, "does not prove that it has this pod's token").await;
    assert_eq!(first.get("/a").await.body, before[0], "nothing that it says holds");
    let all = all.lock().clone();
    for Seen { headers, body, .. } in all {
        let is_told = headers.values().any(|value| value.to_str().unwrap().contains(TOKEN))
            || String::from_utf8_lossy(&body).contains(TOKEN);
        assert!(!is_told);
        // Nor does anybody else believe what was said to it.
        if let Some(proof) = headers.get("authorization") {
            let body = std::str::from_utf8(&body).unwrap();
            let mut replaying = Peer::to(second.admin, "unknown").await;
            assert_eq!(replaying.send_with(proof.to_str().unwrap(), body).await.0, 401);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_at_another_address_than_was_dialled_is_not_believed() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let [a, b] = [free_port(), free_port()];
    let second = Sidecar::among(&policy, origin.address, b, &[b]).await;
    let elsewhere = Relay::to(second.admin).await;
    // What the first sends comes back to it.
    let mirror = Relay::to(([127, 0, 0, 1], a).into()).await;
    let first = Sidecar::among(&policy, origin.address, a, &[a, elsewhere.port, mirror.port]).await;
    for address in [elsewhere.address(), mirror.address()] {
        until_unreachable(&first, address, "or it is not the pod of this address").await;
    }
    let told = report(&first.purge(r#"{"tags": ["other"]}"#).await.body);
    assert_eq!(told["peers"]["missing"].as_array().unwrap().len(), 2, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn message_is_believed_once_from_a_pod_with_the_token_and_at_no_other_address() {
    let (policy, origin) = (Policy::new(ALONE), Origin::numbered(&[]).await);
    let port = free_port();
    let sidecar = Sidecar::among(&policy, origin.address, port, &[port]).await;
    let before = stored(std::slice::from_ref(&sidecar), "/a").await;

    let mut other = Peer::to(sidecar.admin, "another").await;
    let (status, problem) = other.send(EVERYTHING).await;
    assert_eq!((status, &problem["title"]), (401, &json!("Unauthorized")));
    let mut misled = Peer::to(sidecar.admin, TOKEN).await.for_address(([127, 0, 0, 9], port).into());
    assert_eq!(misled.send(EVERYTHING).await.0, 401);
    let mut by_bearer = Peer::to(sidecar.admin, TOKEN).await;
    assert_eq!(by_bearer.send_with(&format!("Bearer {TOKEN}"), EVERYTHING).await.0, 401, "the token itself");
    let of_application = sidecar.request(Method::POST, "/peer/purges", &[], "{}").await;
    assert_eq!(of_application.status, 200, "the application's");
    let unfinished =
        "POST /peer/purges HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2000000\r\n\r\n";
    assert!(
        exchange(sidecar.admin, unfinished).await.starts_with(b"HTTP/1.1 401 "),
        "before the body is there"
    );
    assert_eq!(sidecar.get("/a").await.body, before[0]);

    for broken in [
        r#"{"instance": 7, "address": "shop"}"#,
        r#"{"instance": 7, "purges": [{"origin": 7, "after": 0, "last": 1, "purges": []}]}"#,
        r#"{"instance": 7, "purges": [{"origin": 7, "after": 0, "last": 1, "purges": [{"seq": 1, "version": "x", "names": "", "number": 0, "generation": 0}]}]}"#,
        "[]",
    ] {
        assert_eq!(Peer::to(sidecar.admin, TOKEN).await.send(broken).await.0, 400, "{broken}");
    }
    assert_eq!(sidecar.get("/a").await.body, before[0]);
    let mut peer = Peer::to(sidecar.admin, TOKEN).await;
    for _ in 0..2 {
        let (status, reply) = peer.send(EVERYTHING).await;
        assert_eq!((status, &reply["acknowledged"]), (200, &json!(1)));
    }
    assert_ne!(sidecar.get("/a").await.body, before[0]);
}
