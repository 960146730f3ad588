//! Connections for lookups: each serving thread has one of its own, which its own runtime drives.
//!
//! A connection that another runtime drives costs a lookup two crossings between threads, and a client library that takes any command and
//! any reply costs more than the lookup. Here the commands of all requests of one turn of the runtime are written at once, and replies
//! are read where they came in.
//!
//! # Guarantees
//! - Replies are handed out in the order of commands. A lookup that was given up keeps its place.
//! - Each lookup is given up at its deadline, by the one timer of its connection.
//! - When the connection ends, for whatever reason, each lookup that waits gets an error at once, and none begins to wait.
//! - It leads to the server with the mark of the connection that hears of purges, or nowhere. It ends with that one.
//! - A server that owes a reply and is silent is given up, and so is one that replies to what nobody asked.
//! - Memory is bounded: by the number of those who wait, and by the length of the beginning of a record.
//!
//! # Assumptions
//! Without a connection of the thread's own, because it is being opened or can't be, lookups go over the one that all threads share.

use std::{collections::VecDeque, fmt, io, sync::Arc, task::Waker, time::Duration};

use parking_lot::Mutex;
use redis::{RedisError, RedisResult};
use thread_local::ThreadLocal;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use self::{
    driver::Driver,
    opening::Stream,
    resp::{Malformed, read},
};
use super::{commands::LookupReply, connection::CONNECT_DEADLINE};
use crate::clock::monotonic_ms;

mod driver;
mod opening;
mod resp;

pub(super) use opening::Endpoint;
pub(super) use resp::Expected;

/// Maximum number of replies that a server may owe, those to lookups that were given up included.
const MAX_OWED: usize = 8192;
/// Pause after an attempt to connect that failed.
const PAUSE: Duration = Duration::from_millis(500);

/// The connections of all serving threads to one server.
pub(super) struct ThreadConnections {
    endpoint: Arc<Endpoint>,
    of_threads: ThreadLocal<Mutex<Option<Running>>>,
}

/// The connection of one serving thread, and the task that drives it.
struct Running {
    connection: Arc<ThreadConnection>,
    _task: AbortOnDropHandle<()>,
}

/// A connection for lookups, as those who ask and the task that drives it share it.
pub(super) struct ThreadConnection {
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// Commands that were not written yet.
    output: Vec<u8>,
    owed: VecDeque<Owed>,
    /// No lookup is to be given up before this time; `None`: none waits.
    first_deadline: Option<Instant>,
    /// The task that drives the connection, unless it has been woken since it last looked.
    driver: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    /// Ended; another connection may take its place from this time on, in [`monotonic_ms`].
    Ended {
        next_at: u64,
    },
}

/// A reply that the server owes.
struct Owed {
    expected: Expected,
    /// The lookup that waits for it, until it is given up.
    waiting: Option<oneshot::Sender<RedisResult<LookupReply>>>,
    deadline: Instant,
}

/// Ends the connection when the task that drives it does, however it does.
struct EndOnDrop(Arc<ThreadConnection>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl ThreadConnections {
    pub(super) fn new(endpoint: Endpoint) -> Arc<Self> {
        Arc::new(Self { endpoint: Arc::new(endpoint), of_threads: ThreadLocal::new() })
    }

    /// The connection of this thread, if it is a serving thread and has one that is open. One that is missing is opened meanwhile.
    pub(super) fn of_this_thread(&self) -> Option<Arc<ThreadConnection>> {
        let mut running = self.of_threads.get_or_default().lock();
        if let Some(Running { connection, .. }) = &*running {
            match connection.phase() {
                Phase::Open => return Some(Arc::clone(connection)),
                Phase::Ended { next_at } if monotonic_ms() >= next_at => {}
                Phase::Opening | Phase::Ended { .. } => return None,
            }
        }
        // The threads of other runtimes have no requests to serve.
        let runtime = Handle::try_current().ok()?;
        if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread {
            *running = Some(Running::open(Arc::clone(&self.endpoint), &runtime));
        }
        None
    }
}

impl fmt::Debug for ThreadConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadConnections").finish_non_exhaustive()
    }
}

impl Running {
    fn open(endpoint: Arc<Endpoint>, runtime: &Handle) -> Self {
        let connection = Arc::new(ThreadConnection::new());
        let end = EndOnDrop(Arc::clone(&connection));
        let task = runtime.spawn(async move {
            let EndOnDrop(connection) = &end;
            match timeout(CONNECT_DEADLINE, endpoint.connect()).await {
                Ok(Ok(stream)) => {
                    connection.begin();
                    let connection = Arc::clone(connection);
                    let ended = match stream {
                        Stream::Plain(tcp) => Driver::new(connection, tcp, endpoint.patience).run().await,
                        Stream::Tls(tls) => Driver::new(connection, tls, endpoint.patience).run().await,
                    };
                    tracing::debug!(reason = %ended, "a connection for lookups in redis ended");
                }
                Ok(Err(error)) => {
                    let error = format!("{error:#}");
                    tracing::debug!(error, "a connection for lookups in redis can't be opened");
                }
                Err(_) => tracing::debug!("a connection for lookups in redis was not opened in time"),
            }
        });
        Self { connection, _task: AbortOnDropHandle::new(task) }
    }
}

impl State {
    const fn new() -> Self {
        Self {
            phase: Phase::Opening,
            output: Vec::new(),
            owed: VecDeque::new(),
            first_deadline: None,
            driver: None,
        }
    }

    /// Has a task woken by the next lookup.
    fn will_wake(&mut self, driver: &Waker) {
        if self.driver.as_ref().is_none_or(|known| !known.will_wake(driver)) {
            self.driver = Some(driver.clone());
        }
    }
}

impl ThreadConnection {
    fn new() -> Self {
        Self { state: Mutex::new(State::new()) }
    }

    /// Sends commands and waits for the replies to them until a deadline. It may be dropped at any time.
    ///
    /// # Errors
    /// If the time is over ([`RedisError::is_timeout`]), the connection has ended, or the server replied with an error.
    pub(super) async fn ask(
        &self,
        expected: Expected,
        deadline: Instant,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> RedisResult<LookupReply> {
        let (driver, reply) = {
            let mut state = self.state.lock();
            if state.phase != Phase::Open || state.owed.len() >= MAX_OWED {
                return Err(broken());
            }
            write(&mut state.output);
            let (waiting, reply) = oneshot::channel();
            state.owed.push_back(Owed { expected, waiting: Some(waiting), deadline });
            state.first_deadline = Some(state.first_deadline.map_or(deadline, |first| first.min(deadline)));
            (state.driver.take(), reply)
        };
        if let Some(driver) = driver {
            driver.wake();
        }
        reply.await.unwrap_or_else(|_| Err(broken()))
    }

    fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    fn begin(&self) {
        self.state.lock().phase = Phase::Open;
    }

    /// Ends the connection: each lookup that waits gets an error.
    fn end(&self) {
        let mut state = self.state.lock();
        let next_at = match state.phase {
            Phase::Open => 0,
            Phase::Opening => monotonic_ms() + PAUSE.as_millis() as u64,
            Phase::Ended { next_at } => next_at,
        };
        let ended = State { phase: Phase::Ended { next_at }, ..State::new() };
        let before = std::mem::replace(&mut *state, ended);
        drop(state);
        // The ends of the channels are the errors.
        drop(before);
    }

    /// Moves what is to be written into an empty buffer. Returns false if there is nothing: the task is woken when there is.
    fn take_output(&self, into: &mut Vec<u8>, driver: &Waker) -> bool {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.output, into);
        state.will_wake(driver);
        !into.is_empty()
    }

    /// Returns the time before which no lookup is to be given up; `None`: none waits. The task is woken when there is an earlier one.
    fn first_deadline(&self, driver: &Waker) -> Option<Instant> {
        let mut state = self.state.lock();
        state.will_wake(driver);
        state.first_deadline
    }

    /// Gives up the lookups whose deadline has come. The replies to them are still owed.
    fn give_up(&self, now: Instant) {
        let mut state = self.state.lock();
        let mut first: Option<Instant> = None;
        for owed in &mut state.owed {
            if owed.waiting.is_none() {
                continue;
            }
            if owed.deadline <= now {
                let waiting = owed.waiting.take();
                waiting.map(|waiting| waiting.send(Err(late())));
            } else {
                first = Some(first.map_or(owed.deadline, |first| first.min(owed.deadline)));
            }
        }
        state.first_deadline = first;
    }

    /// Returns true if the server owes a reply.
    fn owes(&self) -> bool {
        !self.state.lock().owed.is_empty()
    }

    /// Hands out the replies that are whole. Returns the length and the number of these.
    ///
    /// # Errors
    /// If the bytes are no reply to what was asked.
    fn hand_out(&self, input: &[u8]) -> Result<(usize, u64), Malformed> {
        let (mut length, mut replies) = (0, 0);
        let mut state = self.state.lock();
        loop {
            let rest = &input[length..];
            let Some(owed) = state.owed.front() else {
                return if rest.is_empty() { Ok((length, replies)) } else { Err(Malformed) };
            };
            let Some((read, reply)) = read(rest, owed.expected)? else { return Ok((length, replies)) };
            let Some(Owed { waiting, .. }) = state.owed.pop_front() else { return Err(Malformed) };
            length += read;
            replies += 1;
            // A lookup that was given up needs none.
            waiting.map(|waiting| waiting.send(reply));
        }
    }
}

/// The error of a lookup whose connection ends.
fn broken() -> RedisError {
    io::Error::from(io::ErrorKind::BrokenPipe).into()
}

/// The error of a lookup whose time is over.
pub(super) fn late() -> RedisError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

/// Writes a command of these words.
fn command<'a>(out: &mut Vec<u8>, words: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>) {
    let words = words.into_iter();
    header(out, b'*', words.clone().count());
    words.for_each(|each| word(out, each));
}

/// Writes a word of a command.
pub(super) fn word(out: &mut Vec<u8>, word: &[u8]) {
    header(out, b'$', word.len());
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

/// Writes the number of the words of a command, or of the bytes of a word.
pub(super) fn header(out: &mut Vec<u8>, kind: u8, number: usize) {
    // Most words are short, so most numbers have one digit or two.
    match number {
        0..10 => out.extend_from_slice(&[kind, b'0' + number as u8, b'\r', b'\n']),
        10..100 => {
            let [tens, ones] = [number / 10, number % 10].map(|digit| b'0' + digit as u8);
            out.extend_from_slice(&[kind, tens, ones, b'\r', b'\n']);
        }
        _ => {
            out.push(kind);
            out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests;
