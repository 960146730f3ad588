//! Redis: the one that all tests share, and servers of a test's own to be stopped.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use redis::{Client, FromRedisValue, TlsCertificates, aio::MultiplexedConnection};
use rustix::process::{Pid, Signal, kill_process};

use super::{Folder, environment, free_port, until};

/// A Redis server of a test's own.
#[derive(Debug)]
pub(crate) struct RedisServer {
    pub(crate) port: u16,
    folder: Folder,
    arguments: Vec<String>,
    client: Client,
    child: Child,
}

impl RedisServer {
    /// Returns a connection to the server that all tests share.
    pub(crate) async fn shared() -> MultiplexedConnection {
        let client = Client::open(environment("LARDER_TEST_REDIS_URL")).unwrap();
        until("redis accepts connections", async || connect(&client).await.ok()).await
    }

    /// Starts a server that keeps nothing on disk unless it is told to.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with further arguments.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let port = free_port();
        let number = port.to_string();
        let own = ["--port", &number, "--save", "", "--appendonly", "no"];
        let url = format!("redis://127.0.0.1:{port}/");
        Self::launch(port, Folder::new(), [&own, arguments].concat(), Client::open(url).unwrap()).await
    }

    /// Starts a Sentinel that watches the master on a port, together with others.
    pub(super) async fn sentinel(master: u16, quorum: usize) -> Self {
        let (port, folder) = (free_port(), Folder::new());
        let lines = [
            format!("port {port}"),
            format!("sentinel monitor main 127.0.0.1 {master} {quorum}"),
            "sentinel down-after-milliseconds main 1000".to_owned(),
            "sentinel failover-timeout main 4000".to_owned(),
        ];
        fs::write(folder.join("sentinel.conf"), lines.join("\n")).unwrap();
        let file = folder.join("sentinel.conf");
        let url = format!("redis://127.0.0.1:{port}/");
        let arguments = vec![file.to_str().unwrap(), "--sentinel"];
        Self::launch(port, folder, arguments, Client::open(url).unwrap()).await
    }

    /// Starts a server that speaks only TLS and has two users: `larder`, with the rights that a sidecar needs, and `admin`.
    pub(crate) async fn start_with_tls(password: &str) -> Self {
        let (port, folder) = (free_port(), Folder::new());
        let ca = certificates(&folder);
        let (number, larder) = (port.to_string(), format!(">{password}"));
        let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let (certificate, key, bundle) = (file("server.pem"), file("server.key"), file("ca.pem"));
        let mut arguments = vec!["--port", "0", "--tls-port", &number, "--save", "", "--appendonly", "no"];
        arguments.extend(["--tls-cert-file", &certificate, "--tls-key-file", &key]);
        arguments.extend(["--tls-ca-cert-file", &bundle, "--tls-auth-clients", "no"]);
        arguments.extend(["--user", "larder", "on", &larder, "~larder:*", "&larder:*"]);
        arguments.extend(["+@all", "-@dangerous", "+info"]);
        arguments.extend(["--user", "admin", "on", ">admin", "~*", "&*", "+@all"]);
        arguments.extend(["--user", "default", "off"]);
        let certificates = TlsCertificates { client_tls: None, root_cert: Some(ca.into_bytes()) };
        let client = Client::build_with_tls(format!("rediss://admin:admin@127.0.0.1:{port}"), certificates);
        let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).collect();
        let server = Self::launch(port, folder, arguments, client.unwrap()).await;
        server.set_url(&format!("rediss://larder:{password}@127.0.0.1:{port}/"));
        server
    }

    async fn launch(port: u16, folder: Folder, arguments: Vec<impl Into<String>>, client: Client) -> Self {
        let arguments: Vec<_> = arguments.into_iter().map(Into::into).collect();
        let child = run(&folder, &arguments);
        let server = Self { port, folder, arguments, client, child };
        server.set_url(&format!("redis://127.0.0.1:{port}/"));
        server.connection().await;
        server
    }

    /// Returns a connection to the server, once there is one.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        until("redis-server accepts connections", async || connect(&self.client).await.ok()).await
    }

    /// Returns the client that reaches the server.
    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    /// Returns a policy's `spec` with this server in place of the shared one.
    pub(crate) fn serve(&self, spec: &str) -> String {
        let file = format!("{{file: {}}}", self.url_file().display());
        spec.replace("{env: LARDER_TEST_REDIS_URL}", &file)
    }

    /// Writes another URL into the file that policies read, atomically.
    pub(crate) fn set_url(&self, url: &str) {
        let written = self.folder.join("written");
        fs::write(&written, format!("{url}\n")).unwrap();
        fs::rename(written, self.url_file()).unwrap();
    }

    /// Returns the path of the file that policies read the URL from.
    pub(crate) fn url_file(&self) -> PathBuf {
        self.folder.join("url")
    }

    /// Returns the path of a certificate of the server's TLS: `ca.pem`, or `other.pem`, which has signed nothing.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs a command.
    pub(crate) async fn say(&self, words: &[&str]) {
        self.ask::<redis::Value>(words).await;
    }

    /// Runs a command and returns its reply; again if the server closes the connection, as one does that changes its role.
    pub(crate) async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::Cmd::new();
        words.iter().for_each(|word| {
            command.arg(word);
        });
        until("a reply of Redis", async || match command.query_async(&mut self.connection().await).await {
            Err(error) if error.is_io_error() => None,
            answer => Some(answer.unwrap()),
        })
        .await
    }

    /// Stops the process with SIGSTOP: connections stay open and get no replies.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Continues the process.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the process; data that is not on disk is lost.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Starts the server again on the same port, with its data on disk.
    pub(crate) async fn restart(&mut self) {
        self.child = run(&self.folder, &self.arguments);
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

fn run(folder: &Folder, arguments: &[String]) -> Child {
    Command::new(environment("LARDER_TEST_REDIS_SERVER"))
        .args(arguments)
        .args(["--bind", "127.0.0.1", "--dir"])
        .arg(&folder.0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

async fn connect(client: &Client) -> redis::RedisResult<MultiplexedConnection> {
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("PING").exec_async(&mut connection).await?;
    Ok(connection)
}

/// Writes a server's certificate, the CA that signed it, and another CA. Returns the first CA.
fn certificates(folder: &Folder) -> String {
    let new_ca = |name: &str| {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap().pem();
        (certificate, Issuer::new(parameters, key))
    };
    let (ca, issuer) = new_ca("ca.test");
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    fs::write(folder.join("ca.pem"), &ca).unwrap();
    fs::write(folder.join("other.pem"), new_ca("other.test").0).unwrap();
    fs::write(folder.join("server.pem"), certificate.pem()).unwrap();
    fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
    ca
}
