//! Connections that the guard serves by itself.

use std::{
    io,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Http1Guard, ImmediateResponder, Turn};
use crate::spare;

/// The end of what a guard can do by itself.
#[derive(Debug)]
pub enum Alone {
    /// The next step is hyper's.
    NeedsHyper,
    /// The connection has ended.
    Ended,
}

impl<IO: AsyncRead + AsyncWrite + Unpin, A: ImmediateResponder + Unpin> Http1Guard<IO, A> {
    /// Serves the connection until hyper is needed, which takes memory, and time at each wake-up.
    ///
    /// # Errors
    /// If the client's connection fails or must be cut.
    pub fn poll_alone(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Alone>> {
        if self.needs_hyper() {
            return Poll::Ready(Ok(Alone::NeedsHyper));
        }
        spare::take(&mut self.input);
        spare::take(&mut self.output);
        let polled = self.poll_turns(context);
        spare::give_back(&mut self.input);
        spare::give_back(&mut self.output);
        polled
    }

    fn needs_hyper(&self) -> bool {
        matches!(self.turn, Turn::Giving(..) | Turn::Body(_) | Turn::Answering | Turn::Raw)
    }

    fn poll_turns(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Alone>> {
        loop {
            let next = match &mut self.turn {
                Turn::Exchange(_) => ready!(self.poll_exchange(context))?,
                Turn::Head => {
                    ready!(self.poll_write_own(context))?;
                    ready!(self.poll_head(context))?
                }
                Turn::Refused(left) => {
                    let left = *left;
                    ready!(self.poll_write_own(context))?;
                    ready!(self.poll_linger(left, context))?;
                    None
                }
                Turn::Giving(..) | Turn::Body(_) | Turn::Answering | Turn::Raw => {
                    return Poll::Ready(Ok(Alone::NeedsHyper));
                }
            };
            match next {
                Some(turn) => self.turn = turn,
                None => return Poll::Ready(Ok(Alone::Ended)),
            }
        }
    }
}
