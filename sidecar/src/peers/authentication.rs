//! Proof that both sides of a connection between pods know the policy's token, which is never sent.
//!
//! As Digest authentication (RFC 7616) does it, with keyed BLAKE3 and over the bodies, too:
//! 1. A request without credentials gets a 401 with `WWW-Authenticate: Larder-Peer challenge=…`, which is random.
//! 2. A request bears `Authorization: Larder-Peer nonce=…, body=…, mac=…`. The MAC is over the last challenge of the connection, the address that
//!    was dialled, a random nonce, and the hash of the body, which the header says.
//! 3. Its reply bears `Authentication-Info: mac=…, challenge=…`, with a MAC over that of the request and the body of the reply, and the challenge
//!    for the next request.
//!
//! # Guarantees
//! - A request is believed by the pod that it is for, and once: a recorded one is for a challenge that is used up, and one that is passed on to
//!   another pod, or back to its sender, is for another address.
//! - A request is refused before its body is read.
//! - A reply is believed if it is the one to this request. A request is no reply, because each has a key of its own.
//!
//! # Assumptions
//! Addresses are not translated between pods, as Kubernetes requires of networks, or a pod knows the one that others dial (`--pod-ip`).
//! Whoever delays or suppresses messages can do so: that looks like a pod that does not respond. A proxy between, such as a mesh's, may send the
//! requests of one connection over several: a challenge that is another connection's is refused with the one to use.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use blake3::{Hash, Hasher, KEY_LEN, OUT_LEN};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};

/// Name of the scheme.
pub const SCHEME: &str = "Larder-Peer";
/// Field of a reply (RFC 9110, section 11.6.3).
const AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("authentication-info");

const REQUEST_CONTEXT: &str = "larder 2026-11 requests between pods of a policy";
const REPLY_CONTEXT: &str = "larder 2026-11 replies between pods of a policy";

/// Time for which a token counts as the one in its file.
const READ_FOR: Duration = Duration::from_secs(1);

/// Keys of the messages between pods that have one token.
pub struct Keys {
    requests: [u8; KEY_LEN],
    replies: [u8; KEY_LEN],
}

impl Keys {
    /// Derives the keys from a token without its surrounding white space; `None` for an empty one.
    pub fn from_token(token: &[u8]) -> Option<Self> {
        let token = token.trim_ascii();
        (!token.is_empty()).then(|| Self {
            requests: blake3::derive_key(REQUEST_CONTEXT, token),
            replies: blake3::derive_key(REPLY_CONTEXT, token),
        })
    }

    /// Returns true if a reply with these fields and this body is the one to a request.
    pub(super) fn have_made(&self, fields: &HeaderMap, to: &Credentials, body: &[u8]) -> bool {
        let given = fields.get(AUTHENTICATION_INFO).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| parameter(value, "mac"));
        // Hashes are compared in constant time.
        given.is_some_and(|given| given == self.of_reply(to, body))
    }

    fn of_reply(&self, to: &Credentials, body: &[u8]) -> Hash {
        let mut hasher = Hasher::new_keyed(&self.replies);
        hasher.update(to.mac.as_bytes()).update(body).finalize()
    }

    /// The parts are of fixed length, so that no two requests are hashed alike.
    fn of_request(&self, challenge: &Hash, address: SocketAddr, nonce: &Hash, body: &Hash) -> Hash {
        // Whether a listener sees an address of IPv4 as itself or as one of IPv6 depends on its own.
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Hasher::new_keyed(&self.requests)
            .update(challenge.as_bytes())
            .update(&ip.octets())
            .update(&address.port().to_le_bytes())
            .update(nonce.as_bytes())
            .update(body.as_bytes())
            .finalize()
    }
}

/// The file with the token, which may change at any time.
pub struct KeyFile {
    path: PathBuf,
    /// Keys of the token, and the time at which it was read.
    keys: Mutex<Option<(Instant, Arc<Keys>)>>,
}

impl KeyFile {
    /// Creates one that is read when it is needed.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, keys: Mutex::new(None) }
    }

    /// Returns the keys of the token that was there within the last second; `None` if there was none.
    pub async fn read(&self) -> Option<Arc<Keys>> {
        let now = Instant::now();
        let last = self.keys.lock().clone().filter(|(at, _)| now.duration_since(*at) < READ_FOR);
        if let Some((_, keys)) = last {
            return Some(keys);
        }
        let keys = Arc::new(Keys::from_token(&tokio::fs::read(&self.path).await.ok()?)?);
        *self.keys.lock() = Some((now, Arc::clone(&keys)));
        Some(keys)
    }
}

/// Credentials of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    nonce: Hash,
    body: Hash,
    mac: Hash,
}

impl Credentials {
    /// Returns those of a request to an address, with the last challenge of the connection.
    pub(super) fn sign(keys: &Keys, challenge: &Hash, address: SocketAddr, body: &[u8]) -> Self {
        let (nonce, body) = (random(), blake3::hash(body));
        Self { nonce, body, mac: keys.of_request(challenge, address, &nonce, &body) }
    }

    /// Reads the credentials in the fields of a request; `None` if they are of another scheme.
    pub fn read(fields: &HeaderMap) -> Option<Self> {
        let value = fields.get(header::AUTHORIZATION)?.to_str().ok()?;
        let parameters = value.strip_prefix(SCHEME)?.strip_prefix(' ')?;
        let [nonce, body, mac] = ["nonce", "body", "mac"].map(|name| parameter(parameters, name));
        Some(Self { nonce: nonce?, body: body?, mac: mac? })
    }

    /// Returns the value of `Authorization`.
    pub(super) fn value(&self) -> HeaderValue {
        let [nonce, body, mac] = [self.nonce, self.body, self.mac].map(|hash| hash.to_hex());
        visible(&format!("{SCHEME} nonce={nonce}, body={body}, mac={mac}"))
    }

    /// Returns true if this is the body that the credentials are for.
    pub fn are_for(&self, body: &[u8]) -> bool {
        self.body == blake3::hash(body)
    }
}

/// The receiving side of a connection.
#[derive(Debug)]
pub struct Accepted {
    /// Address at which the connection came in.
    address: SocketAddr,
    /// Challenge for the next request.
    challenge: Mutex<Hash>,
}

impl Accepted {
    /// Begins with a connection that came in at this address.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, challenge: Mutex::new(random()) }
    }

    /// Returns the value of `WWW-Authenticate`.
    pub fn challenge(&self) -> HeaderValue {
        visible(&format!("{SCHEME} challenge={}", self.challenge.lock().to_hex()))
    }

    /// Returns true if a request with these credentials is the next one on the connection, from a pod that knows the token, and for this
    /// pod. `announced` is the address that it says of itself.
    pub fn believes(&self, keys: &Keys, credentials: &Credentials, announced: Option<SocketAddr>) -> bool {
        let Credentials { nonce, body, mac } = credentials;
        let mut challenge = self.challenge.lock();
        let mut addresses = [Some(self.address), announced].into_iter().flatten();
        // Hashes are compared in constant time.
        let is_believed = addresses.any(|address| keys.of_request(&challenge, address, nonce, body) == *mac);
        if is_believed {
            *challenge = random();
        }
        is_believed
    }

    /// Returns the field that proves a reply with this body to the sender of a request, with the challenge for the next one.
    pub fn proof(&self, keys: &Keys, to: &Credentials, body: &[u8]) -> (HeaderName, HeaderValue) {
        let (mac, challenge) = (keys.of_reply(to, body).to_hex(), self.challenge.lock().to_hex());
        (AUTHENTICATION_INFO, visible(&format!("mac={mac}, challenge={challenge}")))
    }
}

/// Returns the challenge in the fields of a response, for the next request on the connection.
pub(super) fn challenge(fields: &HeaderMap) -> Option<Hash> {
    let text = |name| fields.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let challenged =
        text(header::WWW_AUTHENTICATE).and_then(|value| value.strip_prefix(SCHEME)?.strip_prefix(' '));
    parameter(challenged.or_else(|| text(AUTHENTICATION_INFO))?, "challenge")
}

/// Returns the value of a parameter.
fn parameter(parameters: &str, name: &str) -> Option<Hash> {
    let mut parameters = parameters.split(',').filter_map(|parameter| parameter.trim().split_once('='));
    let (_, value) = parameters.find(|(key, _)| *key == name)?;
    Hash::from_hex(value).ok()
}

fn random() -> Hash {
    let mut bytes = [0; OUT_LEN];
    SystemRandom::new().fill(&mut bytes).expect("the system has random numbers");
    Hash::from_bytes(bytes)
}

fn visible(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("a text of letters and digits is a value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(token: &str) -> Keys {
        Keys::from_token(token.as_bytes()).unwrap()
    }

    fn address(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    fn accepted(port: u16) -> Accepted {
        Accepted::new(address(port))
    }

    /// Returns credentials for the next request on a connection, as they arrive.
    fn signed(token: &str, on: &Accepted, port: u16, body: &[u8]) -> Credentials {
        let fields = HeaderMap::from_iter([(header::WWW_AUTHENTICATE, on.challenge())]);
        let credentials = Credentials::sign(&keys(token), &challenge(&fields).unwrap(), address(port), body);
        let fields = HeaderMap::from_iter([(header::AUTHORIZATION, credentials.value())]);
        Credentials::read(&fields).unwrap()
    }

    #[test]
    fn request_is_believed_once_and_on_its_connection() {
        let (token, connection) = (keys("token"), accepted(1));
        let first = signed("token\n", &connection, 1, b"a");
        assert!(first.are_for(b"a") && !first.are_for(b"b"));
        assert!(!connection.believes(&keys("other"), &first, None));
        assert!(!accepted(1).believes(&token, &first, None), "on another connection");
        assert!(connection.believes(&token, &first, None));
        assert!(!connection.believes(&token, &first, None), "again");
        assert!(connection.believes(&token, &signed("token", &connection, 1, b"a"), None));
    }

    #[test]
    fn request_is_believed_by_the_pod_that_was_dialled() {
        let (token, connection) = (keys("token"), accepted(2));
        // By a server that passes on the challenge of another.
        let passed_on = signed("token", &connection, 1, b"");
        assert!(!connection.believes(&token, &passed_on, None));
        assert!(!connection.believes(&token, &passed_on, Some(address(3))));
        assert!(
            connection.believes(&token, &passed_on, Some(address(1))),
            "it says that this is its address"
        );
        let mapped = Accepted::new("[::ffff:10.0.0.1]:1".parse().unwrap());
        assert!(
            mapped.believes(&token, &signed("token", &mapped, 1, b""), None),
            "it listens to both families"
        );
    }

    #[test]
    fn reply_is_believed_by_the_sender_of_its_request() {
        let connection = accepted(1);
        let [request, other] = [(); 2].map(|()| signed("token", &connection, 1, b"a"));
        let reply = |keys: &Keys, body: &[u8]| HeaderMap::from_iter([connection.proof(keys, &request, body)]);
        let has =
            |fields: &HeaderMap, to: &Credentials, body: &[u8]| keys("token").have_made(fields, to, body);
        let proven = reply(&keys("token"), b"r");
        assert!(has(&proven, &request, b"r"));
        assert!(!has(&proven, &request, b"s"));
        assert!(!has(&proven, &other, b"r"), "to another request, although of one body");
        assert!(!has(&reply(&keys("other"), b"r"), &request, b"r"));
        assert!(!has(&HeaderMap::new(), &request, b"r"));
        let reflected = visible(&format!("mac={}", request.mac.to_hex()));
        let reflected = HeaderMap::from_iter([(AUTHENTICATION_INFO, reflected)]);
        assert!(!has(&reflected, &request, b"a"), "what was sent comes back");
        assert_eq!(challenge(&proven), Some(*connection.challenge.lock()), "for the next request");
    }

    #[test]
    fn other_schemes_are_no_credentials() {
        let read = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            Credentials::read(&HeaderMap::from_iter([(header::AUTHORIZATION, value)]))
        };
        let hash = blake3::hash(b"").to_hex();
        assert!(read(&format!("{SCHEME} mac={hash},nonce={hash} ,  body={hash}")).is_some());
        for other in [
            format!("Bearer nonce={hash}, body={hash}, mac={hash}"),
            format!("{SCHEME}nonce={hash}, body={hash}, mac={hash}"),
            format!("{SCHEME} nonce={hash}, mac={hash}"),
            format!("{SCHEME} nonce=0, body={hash}, mac={hash}"),
            SCHEME.to_owned(),
        ] {
            assert_eq!(read(&other), None, "{other}");
        }
        assert!(Keys::from_token(b" \n").is_none());
    }
}
