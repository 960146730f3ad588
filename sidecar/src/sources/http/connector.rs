//! Connections to an HTTP source whose response heads are understood as the application's are.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::Uri;
use hyper::rt::{Read, Write};
use hyper_util::{client::legacy::connect::Connection, rt::TokioIo};
use tower_service::Service;

use crate::upstream::ResponseStream;

/// A connector; what it connects to is read through a [`ResponseStream`], unless it speaks HTTP/2.
#[derive(Clone, Debug)]
pub(super) struct Connector<C>(pub(super) C);

impl<C> Service<Uri> for Connector<C>
where
    C: Service<Uri>,
    C::Response: Read + Write + Connection + Unpin,
    C::Future: Send + 'static,
{
    type Response = TokioIo<ResponseStream<TokioIo<C::Response>>>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, C::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move {
            let stream = connecting.await?;
            // Each request is a GET without a body.
            let is_http1 = !stream.connected().is_negotiated_h2();
            Ok(TokioIo::new(ResponseStream::new(TokioIo::new(stream), is_http1)))
        })
    }
}
