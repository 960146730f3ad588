//! Redis deployments of several servers.

use super::{RedisServer, free_port, until};

/// A master, its replica, and three Sentinels that call the master `main`.
#[derive(Debug)]
pub(crate) struct Sentinels {
    pub(crate) master: RedisServer,
    pub(crate) replica: RedisServer,
    pub(crate) sentinels: Vec<RedisServer>,
}

impl Sentinels {
    /// Starts the servers, and waits until they know each other.
    pub(crate) async fn start() -> Self {
        let prompt = ["--repl-diskless-sync-delay", "0"];
        let master = RedisServer::start_with(&prompt).await;
        let of = format!("127.0.0.1 {}", master.port);
        let replica = RedisServer::start_with(&[&["--replicaof", &of], &prompt[..]].concat()).await;
        until("the replica is in step", async || {
            let info: String = replica.ask(&["INFO", "replication"]).await;
            info.contains("master_link_status:up").then_some(())
        })
        .await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(RedisServer::sentinel(master.port, 2).await);
        }
        for sentinel in &sentinels {
            until("the Sentinels know each other", async || {
                let words: Vec<String> = sentinel.ask(&["SENTINEL", "MASTER", "main"]).await;
                let said = |name: &str, value: &str| {
                    words.windows(2).any(|pair| pair[0] == name && pair[1] == value)
                };
                (said("num-other-sentinels", "2") && said("num-slaves", "1")).then_some(())
            })
            .await;
        }
        Self { master, replica, sentinels }
    }

    /// Returns a policy's `spec` with these servers in place of the shared one, and `login` before the hosts in the URL.
    pub(crate) fn serve(&self, spec: &str, login: &str) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
        let first = self.sentinels.first().unwrap();
        first.set_url(&format!("redis://{login}{}/0", hosts.join(",")));
        first.serve(spec).replace("redis: {", "redis: {topology: Sentinel, masterName: main, ")
    }
}

/// A Cluster of three servers without replicas.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) servers: Vec<RedisServer>,
}

/// Number of slots of a Cluster.
const SLOTS: u16 = 16_384;

impl Cluster {
    /// Starts a Cluster that goes on serving its other slots when a server is gone.
    pub(crate) async fn start() -> Self {
        let mut servers = Vec::new();
        for _ in 0..3 {
            let bus = free_port().to_string();
            let arguments = [
                ["--cluster-enabled", "yes"],
                ["--cluster-port", &bus],
                ["--cluster-node-timeout", "1500"],
                ["--cluster-require-full-coverage", "no"],
            ];
            servers.push((RedisServer::start_with(&arguments.concat()).await, bus));
        }
        for (number, (server, _)) in (0_u16..).zip(&servers) {
            let (from, to) = (first_slot(number), first_slot(number + 1) - 1);
            server.say(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]).await;
            server.say(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await;
        }
        for (server, bus) in &servers[1..] {
            servers[0].0.say(&["CLUSTER", "MEET", "127.0.0.1", &server.port.to_string(), bus]).await;
        }
        let cluster = Self { servers: servers.into_iter().map(|(server, _)| server).collect() };
        cluster.until_whole().await;
        cluster
    }

    /// Waits until every server knows the owner of each slot, and that all are up.
    pub(crate) async fn until_whole(&self) {
        for server in &self.servers {
            until("the Cluster is whole", async || {
                let info: String = server.ask(&["CLUSTER", "INFO"]).await;
                let known = ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:3"];
                known.iter().all(|line| info.contains(line)).then_some(())
            })
            .await;
        }
    }

    /// Returns a policy's `spec` with these servers in place of the shared one.
    pub(crate) fn serve(&self, spec: &str) -> String {
        let hosts: Vec<_> = self.servers.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
        let first = self.servers.first().unwrap();
        first.set_url(&format!("redis://{}", hosts.join(",")));
        first.serve(spec).replace("redis: {", "redis: {topology: Cluster, ")
    }

    /// Returns the server that holds a key.
    pub(crate) async fn server_of(&self, key: &str) -> usize {
        let slot: u16 = self.servers[0].ask(&["CLUSTER", "KEYSLOT", key]).await;
        (0..3).find(|number| slot < first_slot(number + 1)).unwrap().into()
    }
}

const fn first_slot(server: u16) -> u16 {
    (SLOTS as u32 * server as u32 / 3) as u16
}
