//! A fake API server.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tower_service::Service;

use super::Cluster;

struct Server<F>(F);

impl<F: Fn(&Method, &str) -> Value> Service<Request<Body>> for Server<F> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let body = (self.0)(request.method(), request.uri().path());
        let status = body["code"].as_u64().unwrap_or(200) as u16;
        let response = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
        ready(Ok(response.unwrap()))
    }
}

/// Runs a test with a cluster whose API server responds by method and path.
pub(crate) fn with_server<T>(
    respond: impl Fn(&Method, &str) -> Value + Send + 'static,
    test: impl AsyncFnOnce(&Cluster) -> T,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::new(Server(respond), "shop");
        test(&Cluster { client, namespace: "shop".to_owned() }).await
    })
}

/// Returns the API server's refusal.
pub(crate) fn refusal(code: u16, message: &str) -> Value {
    let reason = if code == 404 { "NotFound" } else { "Unknown" };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}
