//! Connections in other protocols, passed on unchanged.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional},
    net::TcpStream,
};

use super::detect::Other;
use crate::{proxy::Proxy, sniff::FirstLine, upstream::WhenRefused};

/// The end of a spliced connection.
pub(super) enum Spliced {
    /// Both sides have closed it.
    Ended,
    /// The first line turned out to name HTTP. The application has not seen the end of that line, and the client has
    /// received nothing.
    Http,
}

/// Passes bytes in both directions until both sides have ended.
///
/// # Errors
/// If the application can't be connected to, or the connection breaks.
pub(super) async fn splice(client: &mut TcpStream, other: Other, proxy: &Proxy) -> io::Result<Spliced> {
    let Other { beginning, application, first_line } = other;
    let mut client = Watched { client, first_line, is_http: false, was_told: false };
    if client.first_line.as_mut().is_some_and(|line| !line.admits(&beginning)) {
        return Ok(Spliced::Http);
    }
    let mut application = match application {
        Some(application) => application,
        None => proxy.upstream().connect(WhenRefused::Retry).await?,
    };
    application.write_all(&beginning).await?;
    match copy_bidirectional(&mut client, &mut application).await {
        Err(_) if client.is_http && !client.was_told => Ok(Spliced::Http),
        Err(error) => Err(error),
        Ok(_) => Ok(Spliced::Ended),
    }
}

/// A client whose first line is watched: reading fails once it names HTTP.
struct Watched<'a> {
    client: &'a mut TcpStream,
    first_line: Option<FirstLine>,
    is_http: bool,
    /// True if the application has sent the client something.
    was_told: bool,
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *this.client).poll_read(context, buffer))?;
        if this.first_line.as_mut().is_some_and(|line| !line.admits(&buffer.filled()[before..])) {
            this.is_http = true;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the first line names HTTP")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.was_told = true;
        Pin::new(&mut *this.client).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().client).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().client).poll_shutdown(context)
    }
}
