//! Connections to Redis: to one server, to the master that Sentinels name, or to a Cluster.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use futures::future::{BoxFuture, select_ok};
use larder_policy::spec::{self, Topology};
use redis::{
    Arg, AsyncConnectionConfig, Client, Cmd, ConnectionInfo, InfoDict, Pipeline, ProtocolVersion,
    RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClientBuilder,
    cluster_async::ClusterConnection,
    cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo},
};
use tokio::time::timeout;

use self::{
    address::{Servers, redirected},
    sentinels::{Sentinels, never},
};
use super::{
    generation::{Mark, random},
    thread_connection::{Endpoint, ThreadConnection, ThreadConnections},
};
use crate::{resolver::Resolver, secret::Secrets};

mod address;
mod sentinels;

pub(super) use sentinels::Vouched;

/// Maximum time until a server has replied to a first command.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Maximum number of redirections of a command in a Cluster.
const MAX_REDIRECTIONS: usize = 5;
/// Number of times that a Cluster is asked again, and the first and last wait in milliseconds: enough for an entry that moved, and not
/// until a dead server is back.
const RETRIES: u32 = 2;
const RETRY_WAIT: (u64, u64) = (5, 20);

/// The identity of a Redis, as a policy and its secrets say it.
#[derive(PartialEq, Eq)]
pub(super) struct Server {
    secrets: Secrets,
    topology: spec::Topology,
    master_name: Option<String>,
}

impl Server {
    /// The one that these secrets lead to under this part of a policy.
    pub(super) fn new(secrets: Secrets, spec: &spec::Redis) -> Self {
        Self { secrets, topology: spec.topology, master_name: spec.master_name.clone() }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

/// A connection to the server that counts purges, and to those that hold entries. Clones share the sockets.
///
/// Commands that are sent over it go to the server of their first key; those about barriers go over
/// [`Connection::counting`]. In a Cluster that is a connection to the one server that holds the barriers of this policy: if
/// another one takes over, it answers `MOVED`, and the connection has had its day.
#[derive(Clone)]
pub(super) struct Connection {
    counting: MultiplexedConnection,
    cluster: Option<ClusterConnection>,
    mark: Mark,
    asker: u64,
    vouched: Vouched,
    /// Those of serving threads for lookups, where one server has everything.
    of_threads: Option<Arc<ThreadConnections>>,
    /// When the server was last asked to take a write, and did, in [`boot_ms`](crate::clock::boot_ms).
    took_write_at: Arc<AtomicU64>,
}

impl Connection {
    /// To the server that counts purges.
    pub(super) const fn counting(&mut self) -> &mut MultiplexedConnection {
        &mut self.counting
    }

    /// To the server that counts purges and, where they are others, to those that hold entries.
    pub(super) const fn both(&mut self) -> (&mut MultiplexedConnection, Option<&mut ClusterConnection>) {
        (&mut self.counting, self.cluster.as_mut())
    }

    /// The connection of this thread's own for lookups, if it is open.
    pub(super) fn of_this_thread(&self) -> Option<Arc<ThreadConnection>> {
        self.of_threads.as_ref()?.of_this_thread()
    }

    /// Returns the mark of the server that counts purges.
    pub(super) const fn mark(&self) -> Mark {
        self.mark
    }

    /// When the server was last known to be the one that counts purges.
    pub(super) const fn vouched(&self) -> &Vouched {
        &self.vouched
    }

    /// The server has taken a write that was sent at `asked_at`.
    pub(super) fn took_write(&self, asked_at: u64) {
        self.took_write_at.fetch_max(asked_at, Ordering::AcqRel);
    }

    /// Returns the time until which every purge was known to the server, of a reply to a command that was sent at `asked_at`: no
    /// purge gets through a server that takes no writes, or that another has taken the place of, although it can be read.
    pub(super) fn date(&self, asked_at: u64) -> u64 {
        self.vouched.limit(asked_at).min(self.took_write_at.load(Ordering::Acquire))
    }

    /// The name under which other pods acknowledge what is purged over this connection.
    pub(super) const fn asker(&self) -> u64 {
        self.asker
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("cluster", &self.cluster.is_some())
            .field("mark", &self.mark)
            .finish_non_exhaustive()
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.cluster {
            None => self.counting.req_packed_command(command),
            Some(cluster) => {
                if !loads_script(command) {
                    return cluster.req_packed_command(command);
                }
                // A server that is down must not keep the others from knowing it.
                let everywhere = (MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::OneSucceeded));
                Box::pin(cluster.route_command(command.clone(), RoutingInfo::MultiNode(everywhere)))
            }
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.cluster {
            Some(cluster) => cluster.req_packed_commands(pipeline, offset, count),
            None => self.counting.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        self.counting.get_db()
    }
}

fn loads_script(command: &Cmd) -> bool {
    let mut words = command.args_iter();
    [b"SCRIPT", &b"LOAD"[..]]
        .into_iter()
        .all(|word| matches!(words.next(), Some(Arg::Simple(said)) if said == word))
}

/// An open connection.
pub(super) struct OpenConnection {
    pub(super) connection: Connection,
    /// Reaches the server that counts purges, for the bus: there, `PUBLISH` knows how many pods it has told. A Cluster passes on
    /// what is published elsewhere.
    pub(super) bus: Client,
    /// Ends when another server has become the master.
    pub(super) superseded: BoxFuture<'static, ()>,
}

/// Opens connections with the same secrets.
pub(super) struct Opener<'a> {
    spec: &'a spec::Redis,
    /// The key of the barriers.
    barriers: &'a str,
    servers: Servers,
    resolver: &'a Resolver,
}

impl<'a> Opener<'a> {
    /// # Errors
    /// If the URL or the CA can't be used. The message has no password in it.
    pub(super) fn new(
        spec: &'a spec::Redis,
        barriers: &'a str,
        secrets: &Secrets,
        resolver: &'a Resolver,
    ) -> anyhow::Result<Self> {
        let servers = Servers::read(secrets)?;
        if spec.topology == Topology::Standalone && servers.nodes.len() > 1 {
            bail!("the URL names several hosts: set topology to Sentinel or Cluster");
        }
        // Servers that Redis itself names are bounded by their addresses alone.
        for host in servers.hosts() {
            resolver.check_host(host)?;
        }
        Ok(Self { spec, barriers, servers, resolver })
    }

    /// Connects. Sentinels are asked again every `patience`.
    ///
    /// # Errors
    /// If nobody answers in time, or not as a master does. The message has no password in it.
    pub(super) async fn open(&self, patience: Duration) -> anyhow::Result<OpenConnection> {
        let opened = match self.spec.topology {
            Topology::Standalone => self.open_standalone().await,
            Topology::Sentinel => self.open_by_sentinels(patience).await,
            Topology::Cluster => self.open_cluster().await,
        };
        opened.map_err(|error| {
            let text = format!("{error:#}");
            // The client repeats the reason of a refusal.
            let refused = self.resolver.refused().filter(|refused| text.contains(refused));
            anyhow!(self.servers.censored(refused.unwrap_or(text)))
        })
    }

    fn first(&self) -> &ConnectionInfo {
        self.servers.nodes.first().expect("a URL that can be used names a host")
    }

    async fn open_standalone(&self) -> anyhow::Result<OpenConnection> {
        let client = self.servers.client(self.first().clone())?;
        let counting = connect(&client, self.resolver).await?;
        self.opened(&client, counting, None, (Vouched::always(), Box::pin(never()))).await
    }

    async fn open_by_sentinels(&self, patience: Duration) -> anyhow::Result<OpenConnection> {
        let name =
            self.spec.master_name.as_deref().context("set masterName: what the Sentinels call the master")?;
        let mut sentinels = Sentinels::new(&self.servers, name, self.resolver)?;
        let master = sentinels.master().await?;
        let client = self.servers.client(redirected(self.first(), &master)?)?;
        let counting = connect(&client, self.resolver).await?;
        let vouched = sentinels.vouched.clone();
        let superseded = Box::pin(sentinels.watch(master, patience));
        self.opened(&client, counting, None, (vouched, superseded)).await
    }

    async fn open_cluster(&self) -> anyhow::Result<OpenConnection> {
        let asked = self.servers.nodes.iter().map(|node| Box::pin(self.server_of_barriers(node)));
        let ((client, counting), _) = select_ok(asked).await?;
        let mut builder = ClusterClientBuilder::new(self.servers.nodes.clone())
            .async_dns_resolver(self.resolver.clone())
            .connection_timeout(CONNECT_DEADLINE)
            .response_timeout(CONNECT_DEADLINE.max(self.spec.hard_timeout().0))
            .retries(RETRIES)
            .min_retry_wait(RETRY_WAIT.0)
            .max_retry_wait(RETRY_WAIT.1);
        if let Some(certificates) = &self.servers.certificates {
            builder = builder.certs(certificates.clone());
        }
        let cluster = timeout(CONNECT_DEADLINE * 2, builder.build()?.get_async_connection())
            .await
            .context("the Cluster is silent")?
            .context("connecting to the Cluster")?;
        self.opened(&client, counting, Some(cluster), (Vouched::always(), Box::pin(never()))).await
    }

    /// Asks a server of the Cluster for the barriers, and those that it names in its place.
    async fn server_of_barriers(
        &self,
        node: &ConnectionInfo,
    ) -> anyhow::Result<(Client, MultiplexedConnection)> {
        let mut node = node.clone();
        for _ in 0..MAX_REDIRECTIONS {
            let client = self.servers.client(node.clone())?;
            let mut connection = connect(&client, self.resolver).await?;
            let mut exists = redis::cmd("EXISTS");
            let exists = exists.arg(self.barriers).exec_async(&mut connection);
            let Err(error) = timeout(CONNECT_DEADLINE, exists).await.context("the server is silent")? else {
                return Ok((client, connection));
            };
            let Some((address, _)) = error.redirect_node() else { return Err(error.into()) };
            node = redirected(&node, address)?;
        }
        bail!("the Cluster does not say where the barriers are")
    }

    async fn opened(
        &self,
        client: &Client,
        mut counting: MultiplexedConnection,
        cluster: Option<ClusterConnection>,
        (vouched, superseded): (Vouched, BoxFuture<'static, ()>),
    ) -> anyhow::Result<OpenConnection> {
        let mut info = redis::cmd("INFO");
        let info = info.arg("replication").query_async::<InfoDict>(&mut counting);
        let info = timeout(CONNECT_DEADLINE, info).await.context("the server is silent")??;
        let (mark, took_write_at) = (Mark::read(&info)?, Arc::default());
        let server = client.get_connection_info();
        let patience = CONNECT_DEADLINE.max(self.spec.hard_timeout().0);
        let endpoint = match cluster {
            None => Endpoint::new(server, self.servers.tls.clone(), self.resolver, mark, patience),
            // A record may be at another server, and move: the client library knows where.
            Some(_) => None,
        };
        let (of_threads, asker) = (endpoint.map(ThreadConnections::new), random());
        let connection = Connection { counting, cluster, mark, asker, vouched, of_threads, took_write_at };
        let settings = server.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let bus = self.servers.client(server.clone().set_redis_settings(settings))?;
        Ok(OpenConnection { connection, bus, superseded })
    }
}

async fn connect(client: &Client, resolver: &Resolver) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_DEADLINE))
        .set_response_timeout(None)
        .set_dns_resolver(resolver.clone());
    client.get_multiplexed_async_connection_with_config(&config).await
}
