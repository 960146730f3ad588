//! Redis: the one that all tests share, and servers of a test's own to be stopped.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use redis::{Client, aio::MultiplexedConnection};
use rustix::process::{Pid, Signal, kill_process};

use super::{Folder, environment, until};

/// A Redis server of a test's own.
#[derive(Debug)]
pub(crate) struct RedisServer {
    port: u16,
    folder: Folder,
    child: Child,
}

impl RedisServer {
    /// The server that all tests share.
    pub(crate) async fn shared() -> MultiplexedConnection {
        connect(&environment("LARDER_TEST_REDIS_URL")).await.unwrap()
    }

    /// Starts a server that keeps nothing on disk unless it is told to.
    pub(crate) async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = Folder::new();
        fs::write(folder.join("url"), format!("redis://127.0.0.1:{port}/\n")).unwrap();
        let child = launch(port, &folder);
        let server = Self { port, folder, child };
        server.connection().await;
        server
    }

    /// A connection to it, when it answers.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        let url = format!("redis://127.0.0.1:{}/", self.port);
        until("redis-server answers", async || connect(&url).await.ok()).await
    }

    /// A policy's `spec` with this server in place of the shared one.
    pub(crate) fn serve(&self, spec: &str) -> String {
        let file = format!("{{file: {}}}", self.folder.join("url").display());
        spec.replace("{env: LARDER_TEST_REDIS_URL}", &file)
    }

    /// Says one thing to it.
    pub(crate) async fn say(&self, words: &[&str]) {
        let mut command = redis::Cmd::new();
        words.iter().for_each(|word| {
            command.arg(word);
        });
        command.exec_async(&mut self.connection().await).await.unwrap();
    }

    /// Stops it in mid-step: connections stay, nothing answers.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it at once, with whatever it has not written to disk.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port with what it has on disk.
    pub(crate) async fn restart(&mut self) {
        self.child = launch(self.port, &self.folder);
        self.connection().await;
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(port: u16, folder: &Folder) -> Child {
    Command::new(environment("LARDER_TEST_REDIS_SERVER"))
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"])
        .arg(port.to_string())
        .arg("--dir")
        .arg(&folder.0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

async fn connect(url: &str) -> redis::RedisResult<MultiplexedConnection> {
    let mut connection = Client::open(url)?.get_multiplexed_async_connection().await?;
    redis::cmd("PING").exec_async(&mut connection).await?;
    Ok(connection)
}
