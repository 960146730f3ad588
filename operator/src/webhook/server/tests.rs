use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use futures::{StreamExt, future::join_all, stream};
use http_body_util::Full;
use hyper::{Request as HttpRequest, client::conn::http1 as client};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::DropGuard;

use super::*;
use crate::{health::Readiness, inject::tests::pod, tls, webhook, webhook_configuration::INJECT_PATH};

const NAME: &str = "larder-webhook.larder-system.svc";

/// The webhook on a port of its own.
struct Server {
    address: SocketAddr,
    bundle: String,
    configs: watch::Sender<Arc<ServerConfig>>,
    loaded: Loaded,
    _stop: DropGuard,
}

/// A CA and the certificate of a client.
struct Clients {
    ca: String,
    certificate: String,
    key: String,
}

impl Server {
    async fn start(client_ca: Option<&str>) -> Self {
        let material = tls::fresh(&[NAME.to_owned()]);
        let loaded = Loaded {
            certificate: material.leaf.certificate.clone(),
            key: material.leaf.key.clone(),
            bundle: material.bundle(),
        };
        let (configs, tls) = watch::channel(config(&loaded, client_ca).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let readiness = Readiness::default();
        readiness.set();
        let app = webhook::app(client_ca.is_some(), readiness, webhook::tests::webhook());
        let stopped = stop.clone();
        tokio::spawn(async move { serve(listener, tls, app, &stopped).await });
        Self { address, bundle: loaded.bundle.clone(), configs, loaded, _stop: stop.drop_guard() }
    }

    async fn connect(&self, clients: Option<&Clients>) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.bundle.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let chain = vec![CertificateDer::from_pem_slice(clients.certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(clients.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), stream).await
    }

    /// Sends a request and returns the status and the body of the response.
    async fn send(
        &self,
        clients: Option<&Clients>,
        request: HttpRequest<Full<Bytes>>,
    ) -> (StatusCode, Bytes) {
        let stream = self.connect(clients).await.unwrap();
        let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let response = sender.send_request(request).await.unwrap();
        assert!(response.headers().get("server").is_none(), "{response:?}");
        (response.status(), response.into_body().collect().await.unwrap().to_bytes())
    }

    /// Opens a connection and writes a text.
    async fn write(&self, text: &str) -> TlsStream<TcpStream> {
        let mut stream = self.connect(None).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }
}

/// Returns the first line of the response on a connection, empty if it was closed without one.
async fn status_line(stream: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = [0; 64];
    let count = stream.read(&mut bytes).await.unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).lines().next().unwrap_or_default().to_owned()
}

fn clients() -> Clients {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let certificate = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let signed = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    Clients { ca: certificate.pem(), certificate: signed.pem(), key: key.serialize_pem() }
}

fn post(path: &str, kind: &str, body: impl Into<Bytes>) -> HttpRequest<Full<Bytes>> {
    let request = HttpRequest::post(path).header("host", NAME).header("content-type", kind);
    request.body(Full::new(body.into())).unwrap()
}

fn review() -> HttpRequest<Full<Bytes>> {
    review_of(pod())
}

fn review_of(pod: Value) -> HttpRequest<Full<Bytes>> {
    let review = json!({"request": {"uid": "1", "namespace": "shop", "object": pod}});
    post(INJECT_PATH, "application/json", review.to_string())
}

/// Head of a review with a body of this length, which does not follow.
fn head(length: usize) -> String {
    format!(
        "POST {INJECT_PATH} HTTP/1.1\r\nhost: {NAME}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn review_is_decided_and_anything_else_is_refused_without_a_word() {
    let server = Server::start(None).await;
    let (status, body) = server.send(None, review()).await;
    let review: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &review["response"]["patchType"]), (StatusCode::OK, &json!("JSONPatch")));

    let get = |path: &str| HttpRequest::get(path).header("host", NAME).body(Full::default()).unwrap();
    let cases = [
        (get("/"), StatusCode::NOT_FOUND),
        (get("/metrics"), StatusCode::NOT_FOUND),
        (get("/version"), StatusCode::NOT_FOUND),
        (post("/injects", "application/json", "{}"), StatusCode::NOT_FOUND),
        (get(INJECT_PATH), StatusCode::METHOD_NOT_ALLOWED),
        (post("/readyz", "application/json", "{}"), StatusCode::METHOD_NOT_ALLOWED),
        (post(INJECT_PATH, "text/plain", "{}"), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (post(INJECT_PATH, "application/json", "{\"request\""), StatusCode::BAD_REQUEST),
        (post(INJECT_PATH, "application/json", ""), StatusCode::BAD_REQUEST),
        (get("/readyz"), StatusCode::OK),
    ];
    for (request, expected) in cases {
        let what = format!("{} {}", request.method(), request.uri());
        let (status, body) = server.send(None, request).await;
        assert_eq!((status, body.len()), (expected, 0), "{what}: {body:?}");
    }
}

#[tokio::test]
async fn review_over_3_mib_is_refused_before_it_is_sent() {
    let server = Server::start(None).await;
    let mut large = pod();
    large["metadata"]["annotations"]["padding"] = json!("x".repeat(2 << 20));
    assert_eq!(server.send(None, review_of(large)).await.0, StatusCode::OK);

    let mut announced = server.write(&head(MAX_REVIEW_BYTES + 1)).await;
    assert_eq!(status_line(&mut announced).await, "HTTP/1.1 413 Payload Too Large");
    // Without a length, the size shows on the way.
    let mut chunked = server.write(&head(0).replace("content-length: 0", "transfer-encoding: chunked")).await;
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    for _ in 0..4 {
        // The server may respond and close before it has all.
        drop(chunked.write_all(chunk.as_bytes()).await);
    }
    assert_eq!(status_line(&mut chunked).await, "HTTP/1.1 413 Payload Too Large");
}

#[tokio::test]
async fn slow_body_ends_after_its_time_and_reviews_beyond_the_bound_are_told_to_come_again() {
    let server = Server::start(None).await;
    let mut slow = server.write(&(head(MAX_REVIEW_BYTES) + "{")).await;
    assert_eq!(status_line(&mut slow).await, "HTTP/1.1 408 Request Timeout");
    assert_eq!(server.send(None, review()).await.0, StatusCode::OK);

    let reader = Reader::default();
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
    let read = |size: usize| {
        let sent = stream::iter([Ok::<_, Infallible>(Bytes::from(vec![b' '; size]))]);
        let (reader, headers) = (reader.clone(), headers.clone());
        async move { reader.read(&headers, Body::from_stream(sent.chain(stream::pending()))).await.err() }
    };
    let unfinished = join_all((0..4).map(|_| read(MAX_REVIEW_BYTES)));
    let (unfinished, excess) = tokio::join!(unfinished, read(1));
    assert_eq!(excess, Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(unfinished, [Some(StatusCode::REQUEST_TIMEOUT); 4]);
    assert_eq!(read(1).await, Some(StatusCode::REQUEST_TIMEOUT), "there is room again");
}

#[tokio::test]
async fn stalled_bodies_count_with_the_bytes_that_arrived() {
    let server = Server::start(None).await;
    let asking = head(MAX_REVIEW_BYTES).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    let stalled = join_all((0..50).map(async |_| {
        let mut stream = server.write(&asking).await;
        assert_eq!(status_line(&mut stream).await, "HTTP/1.1 100 Continue");
        stream.write_all(b"{").await.unwrap();
        stream.flush().await.unwrap();
        stream
    }))
    .await;
    assert_eq!(server.send(None, review()).await.0, StatusCode::OK);
    drop(stalled);
}

#[tokio::test]
async fn idle_connections_make_room_and_calls_in_progress_do_not() {
    let server = Server::start(None).await;
    // The oldest connection, which would be the first to be closed.
    let mut busy = server.connect(None).await.unwrap();
    let mut silent: Vec<_> = join_all((1..MAX_CONNECTIONS).map(|_| server.connect(None))).await;
    let asking = head(20).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    busy.write_all(asking.as_bytes()).await.unwrap();
    assert_eq!(status_line(&mut busy).await, "HTTP/1.1 100 Continue");
    assert_eq!(server.send(None, review()).await.0, StatusCode::OK, "it has the place of a silent one");
    busy.write_all(b"{ \"request\": {} }   ").await.unwrap();
    assert_eq!(status_line(&mut busy).await, "HTTP/1.1 200 OK");
    let closed = join_all(silent.iter_mut().flatten().map(async |stream| {
        tokio::time::timeout(Duration::from_millis(500), stream.read_u8()).await.is_ok()
    }))
    .await;
    let closed = closed.into_iter().filter(|closed| *closed).count();
    assert!((1..10).contains(&closed), "{closed} silent connections were closed");
}

#[tokio::test]
async fn only_clients_of_the_client_ca_are_answered() {
    let (api_server, stranger) = (clients(), clients());
    let server = Server::start(Some(&api_server.ca)).await;
    assert_eq!(server.send(Some(&api_server), review()).await.0, StatusCode::OK);
    let (status, body) = server.send(None, review()).await;
    assert_eq!((status, body.len()), (StatusCode::FORBIDDEN, 0));
    let ready = HttpRequest::get("/readyz").header("host", NAME).body(Full::default()).unwrap();
    assert_eq!(server.send(None, ready).await.0, StatusCode::OK, "the operator's own question");
    let refused = async {
        let mut stream = server.connect(Some(&stranger)).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\n\r\n").await?;
        stream.read_u8().await
    };
    assert!(refused.await.is_err(), "a certificate of another CA");

    // A changed CA is in force for the next connection.
    server.configs.send_replace(config(&server.loaded, Some(&stranger.ca)).unwrap());
    assert_eq!(server.send(Some(&stranger), review()).await.0, StatusCode::OK);
}

#[test]
fn invalid_client_ca_is_an_error_that_names_it() {
    let material = tls::fresh(&[NAME.to_owned()]);
    let loaded =
        Loaded { certificate: material.leaf.certificate, key: material.leaf.key, bundle: String::new() };
    for pem in ["", "not PEM"] {
        let error = config(&loaded, Some(pem)).unwrap_err().to_string();
        assert!(error.contains("the client CA"), "{error}");
    }
    let error = read_client_ca(Some(Path::new("/nowhere/ca.crt"))).unwrap_err().to_string();
    assert!(error.contains("/nowhere/ca.crt"), "{error}");
}
