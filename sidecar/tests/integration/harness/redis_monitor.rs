//! Commands as a Redis server sees them.

use std::{fmt, pin::Pin};

use futures::{Stream, StreamExt};

use super::{RedisServer, unique};

/// A look at the commands that clients send to a server, one by one.
pub(crate) struct RedisMonitor<'a> {
    server: &'a RedisServer,
    lines: Pin<Box<dyn Stream<Item = String> + Send>>,
}

/// A command that a client sent.
#[derive(Clone, Debug)]
pub(crate) struct SeenCommand {
    /// Address of the client.
    pub(crate) client: String,
    words: Vec<String>,
}

impl RedisServer {
    /// Begins to look at the commands of clients.
    pub(crate) async fn monitor(&self) -> RedisMonitor<'_> {
        let lines = Box::pin(self.client().get_async_monitor().await.unwrap().into_on_message());
        RedisMonitor { server: self, lines }
    }
}

impl RedisMonitor<'_> {
    /// Returns the commands since the last call, without those that scripts run.
    pub(crate) async fn seen(&mut self) -> Vec<SeenCommand> {
        let (mark, mut seen) = (unique("mark"), Vec::new());
        self.server.say(&["ECHO", &mark]).await;
        loop {
            let line = self.lines.next().await.unwrap();
            if line.contains(&mark) {
                return seen;
            }
            // `1700000000.123456 [0 127.0.0.1:50000] "GET" "key"`
            let (source, words) = line.split_once("] ").unwrap();
            let client = source.rsplit_once(' ').unwrap().1.to_owned();
            if client != "lua" {
                let words = words.trim_matches('"').split("\" \"").map(str::to_owned).collect();
                seen.push(SeenCommand { client, words });
            }
        }
    }
}

impl SeenCommand {
    /// Returns true if the command is about keys or channels of Larder.
    pub(crate) fn is_larders(&self) -> bool {
        self.words.iter().any(|word| word.starts_with("larder:"))
    }

    /// Returns true if the command has this name.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.words[0].eq_ignore_ascii_case(name)
    }
}

impl fmt::Debug for RedisMonitor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisMonitor").finish_non_exhaustive()
    }
}
