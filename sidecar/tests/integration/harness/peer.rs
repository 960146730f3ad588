//! A pod of a policy, as others know it: the messages between pods once more, from their description.

use std::net::SocketAddr;

use serde_json::Value;

use super::wire::{Wire, header};

/// A connection of a pod to the admin API of another one.
#[derive(Debug)]
pub(crate) struct Peer {
    wire: Wire,
    address: SocketAddr,
    token: &'static str,
    challenge: blake3::Hash,
}

impl Peer {
    /// Connects as a pod with this token.
    pub(crate) async fn to(address: SocketAddr, token: &'static str) -> Self {
        let mut wire = Wire::to(address).await;
        wire.say(head("", 0)).await;
        let (head, _) = wire.answer().await;
        assert!(head.starts_with("http/1.1 401 "), "{head}");
        let challenge = header(&head, "www-authenticate").strip_prefix("larder-peer challenge=").unwrap();
        let challenge = blake3::Hash::from_hex(challenge).unwrap();
        Self { wire, address, token, challenge }
    }

    /// Has what it sends be for a pod at another address.
    pub(crate) const fn for_address(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Sends a message. Returns the status of the response, and its body.
    pub(crate) async fn send(&mut self, body: &str) -> (u16, Value) {
        let (nonce, hash) = (blake3::hash(b"a nonce"), blake3::hash(body.as_bytes()));
        let SocketAddr::V4(address) = self.address else { panic!("an address of IPv4") };
        let key =
            blake3::derive_key("larder 2026-11 requests between pods of a policy", self.token.as_bytes());
        let mac = blake3::Hasher::new_keyed(&key)
            .update(self.challenge.as_bytes())
            .update(&address.ip().to_ipv6_mapped().octets())
            .update(&address.port().to_le_bytes())
            .update(nonce.as_bytes())
            .update(hash.as_bytes())
            .finalize();
        let proof = format!("Larder-Peer nonce={nonce}, body={hash}, mac={mac}");
        let (status, fields, response) = self.send_with(&proof, body).await;
        if status == 200 {
            let key =
                blake3::derive_key("larder 2026-11 replies between pods of a policy", self.token.as_bytes());
            let expected =
                blake3::Hasher::new_keyed(&key).update(mac.as_bytes()).update(response.as_bytes()).finalize();
            let info = header(&fields, "authentication-info").split_once(", challenge=").unwrap();
            assert_eq!(info.0, format!("mac={expected}"));
            self.challenge = blake3::Hash::from_hex(info.1).unwrap();
        }
        (status, serde_json::from_str(&response).unwrap())
    }

    /// Sends a message with this `Authorization`. Returns the status of the response, its head in lower case and its body.
    pub(crate) async fn send_with(&mut self, proof: &str, body: &str) -> (u16, String, String) {
        let head = head(&format!("Authorization: {proof}\r\n"), body.len());
        self.wire.say(head + body).await;
        let (head, body) = self.wire.answer().await;
        (head[9..12].parse().unwrap(), head, body)
    }
}

fn head(fields: &str, length: usize) -> String {
    format!("POST /peer/purges HTTP/1.1\r\nHost: peer\r\n{fields}Content-Length: {length}\r\n\r\n")
}
