//! Last frame of an HTTP/2 connection that is closed for excessive load.
//!
//! hyper closes connections without stating the reason. This module follows its output frame by frame, so that a frame
//! can be added after a complete one.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::connections::Admitted;

/// Length of the head of a frame in bytes (RFC 9113, section 4.1).
const FRAME_HEAD: usize = 9;
/// GOAWAY with `ENHANCE_YOUR_CALM` (sections 6.8 and 7). All streams may have been processed.
const GOAWAY: [u8; FRAME_HEAD + 8] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 11];

/// A connection, and the position in a frame of the last byte written to it.
#[derive(Debug)]
pub(super) struct FrameWriter<IO> {
    stream: IO,
    place: Arc<Admitted>,
    head: [u8; FRAME_HEAD],
    /// Number of bytes of the head that were written.
    seen: usize,
    /// Number of bytes of the payload that are still to come.
    left: usize,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> FrameWriter<IO> {
    pub(super) fn new(stream: IO, place: &Arc<Admitted>) -> Self {
        Self { stream, place: Arc::clone(place), head: [0; FRAME_HEAD], seen: 0, left: 0 }
    }

    /// Sends `ENHANCE_YOUR_CALM`, unless in the middle of a frame, and ends the output.
    pub(super) async fn send_calm(&mut self) -> io::Result<()> {
        if self.seen == 0 && self.left == 0 {
            self.stream.write_all(&GOAWAY).await?;
        }
        self.stream.shutdown().await
    }

    /// Records whether the client reads what is sent.
    fn watched<T>(&self, written: Poll<T>) -> Poll<T> {
        let connection = self.place.connection();
        if written.is_pending() {
            connection.stalls();
        } else if connection.is_stalled() {
            connection.serves();
        }
        written
    }

    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                self.left -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            self.head[self.seen] = bytes[0];
            self.seen += 1;
            bytes = &bytes[1..];
            if self.seen == FRAME_HEAD {
                let [high, middle, low, ..] = self.head.map(usize::from);
                (self.seen, self.left) = (0, high << 16 | middle << 8 | low);
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for FrameWriter<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FrameWriter<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        let written = ready!(this.watched(written))?;
        this.follow(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        let written = ready!(this.watched(written))?;
        let mut left = written;
        for slice in slices {
            let taken = left.min(slice.len());
            this.follow(&slice[..taken]);
            left -= taken;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::Connections;

    #[test]
    fn a_frame_is_added_where_one_has_ended() {
        let place = Arc::new(Arc::new(Connections::new(1)).admit().unwrap());
        let mut writer = FrameWriter::new(tokio::io::empty(), &place);
        let frames = [&[0, 0, 2, 4, 0, 0, 0, 0, 0, 1, 2][..], &[0, 0, 0, 1, 0, 0, 0, 0, 0]].concat();
        let ends: Vec<usize> = (1..=frames.len())
            .filter(|at| {
                writer.follow(&frames[at - 1..*at]);
                writer.seen == 0 && writer.left == 0
            })
            .collect();
        assert_eq!(ends, [11, 20]);
    }
}
