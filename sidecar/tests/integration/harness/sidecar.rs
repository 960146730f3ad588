//! The sidecar program under test.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use super::{Folder, Peak, Policy, peak::resident, until};

/// Token of the admin API.
pub(crate) const TOKEN: &str = "the-token";

/// A complete response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// Returns a header's value, or an empty string.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Returns the value of `Cache-Status`.
    pub(crate) fn cache_status(&self) -> &str {
        self.header("cache-status")
    }

    /// Returns the remaining freshness of a hit, in seconds.
    pub(crate) fn ttl(&self) -> Option<i64> {
        let ttl = self.cache_status().strip_prefix("larder; hit; ttl=")?;
        ttl.split(';').next()?.parse().ok()
    }

    /// Returns the tier of a hit.
    pub(crate) fn hit(&self) -> Option<&str> {
        let hit = self.cache_status().strip_prefix("larder; hit; ")?;
        hit.split("detail=").nth(1)
    }
}

/// A running sidecar, killed on drop.
#[derive(Debug)]
pub(crate) struct Sidecar {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    child: Child,
    client: Client<HttpConnector, Full<Bytes>>,
    log: Arc<Mutex<Vec<String>>>,
    folder: Folder,
}

impl Sidecar {
    /// Starts a sidecar without a policy.
    pub(crate) async fn bare(origin: SocketAddr) -> Self {
        Self::launch(origin, &[]).await
    }

    /// Starts a sidecar under a policy, and waits until every tier is up.
    pub(crate) async fn start(policy: &Policy, origin: SocketAddr) -> Self {
        let sidecar = Self::start_at_once(policy, origin).await;
        sidecar.until_tiers_are("up").await;
        sidecar
    }

    /// Starts a sidecar under a policy without waiting for its tiers.
    pub(crate) async fn start_at_once(policy: &Policy, origin: SocketAddr) -> Self {
        Self::launch(origin, &["--policy", policy.path().to_str().unwrap()]).await
    }

    /// Starts a sidecar with further arguments.
    pub(crate) async fn launch(origin: SocketAddr, arguments: &[&str]) -> Self {
        let folder = Folder::new();
        std::fs::write(folder.join("token"), format!("{TOKEN}\n")).unwrap();
        let token = folder.join("token");
        let arguments = [&["--admin-token-file", token.to_str().unwrap()], arguments].concat();
        Self::run(folder, origin, &arguments).await
    }

    /// Starts a sidecar without a token: nothing in Redis is authenticated, and the admin API tells little.
    pub(crate) async fn without_token(policy: &Policy, origin: SocketAddr) -> Self {
        let path = policy.path();
        let arguments = ["--policy", path.to_str().unwrap()];
        let sidecar = Self::run(Folder::new(), origin, &arguments).await;
        sidecar.until_tiers_are("up").await;
        sidecar
    }

    /// Starts a sidecar whose admin API is at a port, and which tells others of purges at these ports, its own possibly among them.
    /// Tiers are not waited for.
    pub(crate) async fn among(policy: &Policy, origin: SocketAddr, port: u16, peers: &[u16]) -> Self {
        let peers: Vec<_> = peers.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Self::among_addresses(policy, origin, ("127.0.0.1", port), &peers.join(",")).await
    }

    /// Starts a sidecar whose admin API is at a port and which says that others reach it at this IP address, and tells others at these
    /// addresses of purges.
    pub(crate) async fn among_addresses(
        policy: &Policy,
        origin: SocketAddr,
        (ip, port): (&str, u16),
        peers: &str,
    ) -> Self {
        let (admin, path) = (format!("127.0.0.1:{port}"), policy.path());
        let arguments = [
            ["--policy", path.to_str().unwrap()],
            ["--peers", peers],
            ["--admin-listen", &admin],
            ["--pod-ip", ip],
        ];
        let arguments = arguments.concat();
        Self::launch(origin, &arguments).await
    }

    async fn run(folder: Folder, origin: SocketAddr, arguments: &[&str]) -> Self {
        let admin: &[&str] =
            if arguments.contains(&"--admin-listen") { &[] } else { &["--admin-listen", "127.0.0.1:0"] };
        let mut child = Command::new(env!("CARGO_BIN_EXE_larder-sidecar"))
            .args(["--listen", "127.0.0.1:0", "--threads", "2"])
            .args(admin)
            .arg(format!("--upstream=http://127.0.0.1:{}", origin.port()))
            .args(arguments)
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = Arc::<Mutex<Vec<String>>>::default();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let written = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                written.lock().unwrap().push(line);
            }
        });
        let address_in = |message: &str| {
            let log = log.lock().unwrap();
            log.iter().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                (line["message"] == message).then(|| line["address"].as_str().unwrap().parse().unwrap())
            })
        };
        let admin = until("the sidecar's admin address", async || address_in("admin API")).await;
        let address = until("the sidecar's address", async || address_in("listening")).await;
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { address, admin, child, client, log, folder }
    }

    /// Replaces the token atomically, as the kubelet does.
    pub(crate) fn set_token(&self, token: &str) {
        let written = self.folder.join("written");
        std::fs::write(&written, token).unwrap();
        std::fs::rename(written, self.folder.join("token")).unwrap();
    }

    /// Returns the addresses of the sidecar's listeners, once there are so many.
    pub(crate) async fn addresses(&self, count: usize) -> Vec<SocketAddr> {
        until("every listener", async || {
            let log = self.log.lock().unwrap().clone();
            let lines = log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let listening = lines.filter(|line| line["message"] == "listening");
            let addresses: Vec<_> =
                listening.map(|line| line["address"].as_str().unwrap().parse().unwrap()).collect();
            (addresses.len() == count).then_some(addresses)
        })
        .await
    }

    /// Returns the first line of the log with this text.
    pub(crate) fn logged(&self, text: &str) -> Option<String> {
        self.log.lock().unwrap().iter().find(|line| line.contains(text)).cloned()
    }

    /// Returns the lines of the log with this text.
    pub(crate) fn logged_lines(&self, text: &str) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// Requests a path of `shop.test`.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    /// Requests a path of `shop.test`, with headers.
    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.request(Method::GET, path, headers, "").await
    }

    /// Sends a PUT.
    pub(crate) async fn put(&self, path: &str) -> Answer {
        self.request(Method::PUT, path, &[], "written").await
    }

    /// Sends a request.
    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &'static str,
    ) -> Answer {
        let headers: Vec<_> = [("host", "shop.test")].into_iter().chain(headers.iter().copied()).collect();
        self.send(self.address, method, path, &headers, body).await
    }

    /// Waits until the sidecar tells this number of others of purges, and knows of none that it can't tell.
    pub(crate) async fn until_peers(&self, reachable: usize) {
        until(&format!("{reachable} peers"), async || {
            let peers = &self.policy().await["peers"];
            let is_so =
                peers["reachable"] == reachable && peers["unreachable"].as_object().unwrap().is_empty();
            is_so.then_some(())
        })
        .await;
    }

    /// Purges by the admin API.
    pub(crate) async fn purge(&self, body: &'static str) -> Answer {
        self.with_token(Method::POST, "/purge", body).await
    }

    /// Sends a request with the token to the admin API.
    pub(crate) async fn with_token(&self, method: Method, path: &str, body: &'static str) -> Answer {
        let token = format!("Bearer {TOKEN}");
        self.send(self.admin, method, path, &[("authorization", &token)], body).await
    }

    /// Requests a path of the admin API without a token.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        self.send(self.admin, Method::GET, path, &[], "").await
    }

    /// Returns the status of the admin API for a new connection, as probes make.
    pub(crate) async fn admin_anew(&self, path: &str) -> StatusCode {
        let request = format!("GET {path} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n");
        let answer = exchange(self.admin, request).await;
        let status = answer.get(9..12).unwrap_or_else(|| panic!("{path} was not answered"));
        StatusCode::from_bytes(status).unwrap()
    }

    /// Returns the sidecar's report of its policy.
    pub(crate) async fn policy(&self) -> Value {
        serde_json::from_str(&self.admin("/policy").await.body).unwrap()
    }

    /// Waits until every tier is `up` or `down`.
    pub(crate) async fn until_tiers_are(&self, state: &str) {
        until(&format!("tiers {state}"), async || {
            let policy = self.policy().await;
            policy["tiers"].as_object().unwrap().values().all(|is| is == state).then_some(())
        })
        .await;
    }

    /// Waits until the sidecar runs the policy in the file.
    pub(crate) async fn until_it_serves(&self, policy: &Policy) {
        let hash = larder_policy::document::hash(&std::fs::read_to_string(policy.path()).unwrap());
        until("the new policy", async || (self.policy().await["hash"] == hash).then_some(())).await;
        self.until_tiers_are("up").await;
    }

    /// Waits until a tier reports an error, and returns it.
    pub(crate) async fn last_error(&self, tier: &str) -> String {
        until(&format!("an error of {tier}"), async || {
            self.policy().await["last_errors"][tier].as_str().map(str::to_owned)
        })
        .await
    }

    /// Waits until memory serves a path, and returns the body.
    pub(crate) async fn stored(&self, path: &str) -> String {
        until("a stored response", async || {
            let answer = self.get(path).await;
            (answer.hit() == Some("l1")).then_some(answer.body)
        })
        .await
    }

    /// Waits until another body than the old one is served under a path.
    pub(crate) async fn until_new(&self, path: &str, old: &str) {
        until("a new response", async || (self.get(path).await.body != old).then_some(())).await;
    }

    /// Waits until no tier reports an error.
    pub(crate) async fn until_no_error(&self) {
        until("no error", async || {
            self.policy().await["last_errors"].as_object().unwrap().is_empty().then_some(())
        })
        .await;
    }

    /// Waits for a state (`serving`, `waiting`, `suspended` or `absent`) with every tier up: a response requested before a new
    /// version of a policy is listed in Redis is not stored.
    pub(crate) async fn until_state(&self, state: &str) {
        until(state, async || (self.policy().await["state"] == state).then_some(())).await;
        self.until_tiers_are("up").await;
    }

    /// Returns the sum of a metric over the series whose labels contain all of `labels`.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.admin("/metrics").await.body;
        let series = text.lines().filter_map(|line| line.split_once(' ')).filter(|(series, _)| {
            series.split('{').next() == Some(name) && labels.iter().all(|label| series.contains(label))
        });
        series.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
    }

    /// Returns the process's own resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        resident(self.child.id().unwrap()).unwrap()
    }

    /// Measures peak resident memory from now on.
    pub(crate) fn peak(&self) -> Peak {
        Peak::of(self.child.id().unwrap())
    }

    /// Ends the process at once, as a lost node does. Its ports are free when this returns.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
        // The runtime reaps it later.
        waitid(WaitId::Pid(self.pid()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops the process with SIGSTOP.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Continues the process.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap()
    }

    /// Waits until the process has ended. Returns true if it succeeded.
    pub(crate) async fn ended(&mut self) -> bool {
        tokio::time::timeout(super::TEST_TIMEOUT, self.child.wait()).await.unwrap().unwrap().success()
    }

    async fn send(
        &self,
        to: SocketAddr,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &'static str,
    ) -> Answer {
        let mut request = Request::builder().method(&method).uri(format!("http://{to}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !request.headers_ref().unwrap().contains_key(HOST) {
            request = request.header(HOST, to.to_string());
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let exchange = async {
            let (head, body) = self.client.request(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            Answer { status: head.status, headers: head.headers, body }
        };
        let answer = tokio::time::timeout(super::TEST_TIMEOUT, exchange).await;
        answer.unwrap_or_else(|_| panic!("{method} {path} was not answered within {:?}", super::TEST_TIMEOUT))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the sidecar at {} said:\n{}", self.address, self.log.lock().unwrap().join("\n"));
        }
    }
}

/// Sends bytes over a connection of its own and reads everything until the other side closes.
pub(crate) async fn exchange(to: SocketAddr, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes.as_ref()).await.unwrap();
    let mut answer = Vec::new();
    // A reset ends a response as well as any other end.
    let _ = tokio::time::timeout(super::TEST_TIMEOUT, stream.read_to_end(&mut answer)).await.unwrap();
    answer
}
