//! The program: start, serving threads, and shutdown.

use std::{
    io,
    net::{self, SocketAddr},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing_subscriber::EnvFilter;

use crate::{
    admin::{self, Admin, AdminEndpoint},
    budget::{Budget, MemoryLimit, raise_file_limit},
    cli::{Serve, UpstreamUrl},
    config::ConfigWatcher,
    drain::Drain,
    follow, listener,
    peers::{self, Peers},
    proxy::Proxy,
    telemetry::Telemetry,
    upstream::{Dialer, Upstream},
};

/// Maximum time for requests in progress after the process was told to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until the process is told to end, then finishes the requests in progress.
///
/// # Errors
/// If an address can't be listened on.
pub async fn serve(args: Serve) -> anyhow::Result<()> {
    let Serve {
        listen,
        upstream,
        admin_listen,
        admin_token_file,
        policy,
        pod_ip,
        memory_limit,
        general_path,
        peers,
        ..
    } = args.clone();
    let threads = args.threads();
    let told_to_end = told_to_end()?;
    log_json();
    ensure!(
        peers.is_empty() || admin_token_file.is_some(),
        "--peers needs --admin-token-file: pods know one another by their token"
    );
    ensure!(
        listen.len() == upstream.len(),
        "got {} --listen and {} --upstream: give them in pairs",
        listen.len(),
        upstream.len()
    );

    raise_file_limit();
    let budget = Arc::new(Budget::new(MemoryLimit::of_process(memory_limit.map(|limit| limit.0))));
    let telemetry = Arc::new(Telemetry::within(budget)?);
    let config = Arc::new(
        ConfigWatcher::load(policy.as_deref(), admin_token_file.clone(), Arc::clone(&telemetry)).await,
    );
    let drain = Arc::new(Drain::default());
    tokio::spawn(Arc::clone(&config).watch(policy));

    let admin_listener =
        listener::bind(admin_listen).with_context(|| format!("can't listen on {admin_listen}"))?;
    let admin_address = admin_listener.local_addr()?;
    tracing::info!(address = %admin_address, "admin API");
    let peers = match &admin_token_file {
        Some(token_file) if !peers.is_empty() => {
            let address = pod_ip.map(|ip| SocketAddr::new(ip, admin_address.port()));
            let options = peers::Options { names: peers, token_file: token_file.clone(), address };
            Some(Peers::start(options, Arc::clone(&config) as _, Arc::clone(&telemetry.stats)))
        }
        _ => None,
    };
    tokio::spawn(follow::follow(Arc::clone(&config), peers.clone(), Arc::clone(&telemetry)));
    let admin = Arc::new(Admin {
        config: Arc::clone(&config),
        peers: peers.clone(),
        telemetry: Arc::clone(&telemetry),
        drain: Arc::clone(&drain),
        token_file: admin_token_file,
        targets: upstream.iter().map(UpstreamUrl::port).collect(),
        ready: AtomicBool::new(false),
    });
    let admin_mount = admin::router(Arc::clone(&admin), AdminEndpoint::Application);
    tokio::spawn(admin::serve(admin_listener, admin::router(Arc::clone(&admin), AdminEndpoint::Own)));

    if let Some(peers) = &peers {
        peers.join().await;
    }
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let several = listen.len() > 1;
    let mut endpoints = Vec::with_capacity(listen.len());
    for (address, upstream) in listen.iter().zip(upstream) {
        let listener = listener::bind(*address).with_context(|| format!("can't listen on {address}"))?;
        tracing::info!(address = %listener.local_addr()?, upstream = %upstream.authority, "listening");
        let target = several.then(|| upstream.port());
        let dialer = Arc::new(Dialer::new(&upstream, pod_ip));
        let connections = Arc::clone(&telemetry.stats.budget.connections);
        tokio::spawn(listener::end_idle(connections, target, Arc::clone(&dialer)));
        endpoints.push(Endpoint { listener: listener.into_std()?, target, dialer });
    }
    for number in 0..threads {
        let endpoints = endpoints.iter().map(Endpoint::try_clone).collect::<io::Result<Vec<_>>>()?;
        let proxy = {
            let (config, telemetry, drain) =
                (Arc::clone(&config), Arc::clone(&telemetry), Arc::clone(&drain));
            let (admin_mount, peers, token_file) =
                (admin_mount.clone(), peers.clone(), admin.token_file.clone());
            move |Endpoint { dialer, target, .. }: &Endpoint| {
                let upstream = Upstream::new(Arc::clone(dialer), Arc::clone(&telemetry.stats.budget));
                let (config, telemetry, drain) =
                    (Arc::clone(&config), Arc::clone(&telemetry), Arc::clone(&drain));
                let (admin, token_file) = (admin_mount.clone(), token_file.clone());
                Arc::new(Proxy {
                    config,
                    peers: peers.clone(),
                    upstream,
                    target: *target,
                    telemetry,
                    drain,
                    admin,
                    token_file,
                    relays: !general_path,
                })
            }
        };
        let (shutdown, tasks) = (shutdown.clone(), tasks.clone());
        thread::Builder::new().name(format!("larder-{number}")).spawn(move || {
            if let Err(error) = work(endpoints, proxy, &shutdown, &tasks) {
                tracing::error!(error = format!("{error:#}"), "a worker thread failed; exiting");
                process::exit(1);
            }
        })?;
    }
    // The sockets close when the last thread stops accepting.
    drop(endpoints);
    admin.ready.store(true, Ordering::Release);

    told_to_end.await;
    drain.end();
    shutdown.cancel();
    tasks.close();
    let has_stopped = tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_ok();
    if !has_stopped {
        tracing::warn!(connections = tasks.len(), "some connections did not close in time");
    }
    if let Some(peers) = &peers {
        peers.leave(has_stopped).await;
    }
    telemetry.shutdown().await;
    tracing::info!("stopped");
    Ok(())
}

/// A listening socket and its application.
struct Endpoint {
    listener: net::TcpListener,
    dialer: Arc<Dialer>,
    target: Option<u16>,
}

impl Endpoint {
    fn try_clone(&self) -> io::Result<Self> {
        let Self { listener, dialer, target } = self;
        Ok(Self { listener: listener.try_clone()?, dialer: Arc::clone(dialer), target: *target })
    }
}

/// Runs one serving thread, with its own connections to clients and to the application: an idle thread takes the next
/// client.
fn work(
    endpoints: Vec<Endpoint>,
    proxy: impl Fn(&Endpoint) -> Arc<Proxy>,
    shutdown: &CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for endpoint in endpoints {
            let proxy = proxy(&endpoint);
            let listener = TcpListener::from_std(endpoint.listener)?;
            tasks.spawn(listener::accept(listener, proxy, shutdown.clone(), tasks.clone()));
        }
        shutdown.cancelled().await;
        tasks.wait().await;
        Ok(())
    })
}

/// Handles the signals to end from the call on, and waits for the first one. A process that handles none dies of it at
/// once; as the first of a container, it does not notice.
fn told_to_end() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Logs JSON lines to standard error; `RUST_LOG` sets the level.
fn log_json() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,opentelemetry=warn"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
