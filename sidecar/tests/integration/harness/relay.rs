//! A relay that can be cut, or make a server look slow, silent or gone.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

/// A fault of a server, as seen through a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No fault.
    Nothing,
    /// Delay of the server's bytes.
    Slow(Duration),
    /// Delay of the bytes of both sides.
    Far(Duration),
    /// Bandwidth limit of the server, in bytes per second and connection.
    Narrow(u32),
    /// The server's bytes are held back until the fault is over.
    Silent,
    /// The bytes of both sides are held back until the fault is over.
    Parted,
    /// Connections are reset, and new ones too.
    Cut,
}

/// The present fault, and the connections that suffer it.
#[derive(Clone, Copy, Debug)]
struct Suffered {
    fault: Fault,
    /// Only connections with a Redis subscription.
    by_bus_alone: bool,
}

impl Suffered {
    const fn by(self, is_bus: bool) -> Fault {
        if is_bus || !self.by_bus_alone { self.fault } else { Fault::Nothing }
    }
}

/// Forwards connections to a server until it is dropped, which cuts them all and refuses new ones.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) port: u16,
    address: SocketAddr,
    suffered: watch::Sender<Suffered>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    /// Starts a relay to `server`.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), server).await
    }

    /// Starts a relay to `server` that listens at an address.
    pub(crate) async fn at(address: SocketAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let suffered = watch::Sender::new(Suffered { fault: Fault::Nothing, by_bus_alone: false });
        let seen = suffered.subscribe();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(pass(client, server, seen.clone()));
            }
        });
        Self { address, port: address.port(), suffered, _task: AbortOnDropHandle::new(task) }
    }

    /// Sets the server's fault, for existing connections, too.
    pub(crate) fn suffer(&self, fault: Fault) {
        self.suffered.send_replace(Suffered { fault, by_bus_alone: false });
    }

    /// Sets a fault of Redis connections that carry the bus, and of no others.
    pub(crate) fn bus_suffers(&self, fault: Fault) {
        self.suffered.send_replace(Suffered { fault, by_bus_alone: true });
    }

    /// Returns the relay's address.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, suffered: watch::Receiver<Suffered>) {
    let mut cut = suffered.clone();
    let is_bus = Arc::new(AtomicBool::new(false));
    let passing = async {
        let mut server = TcpStream::connect(server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let state = |side| (side, suffered.clone(), Arc::clone(&is_bus));
        tokio::try_join!(
            carry(from_client, to_server, state(Side::Client)),
            carry(from_server, to_client, state(Side::Server))
        )
    };
    tokio::select! {
        _ = passing => {}
        _ = cut.wait_for(|suffered| suffered.by(is_bus.load(Ordering::SeqCst)) == Fault::Cut) => {
            let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        }
    }
}

/// The side whose bytes are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// Forwards the bytes of one side, as far as the fault lets them.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    (side, mut suffered, is_bus): (Side, watch::Receiver<Suffered>, Arc<AtomicBool>),
) -> io::Result<()> {
    let (came, mut coming) = mpsc::unbounded_channel();
    let (subscribed, is_bus) = (Arc::clone(&is_bus), is_bus);
    let subscribes = |piece: &[u8]| piece.windows(9).any(|word| word == b"SUBSCRIBE");
    let read = async move {
        let mut piece = vec![0; 64 << 10];
        loop {
            let read = from.read(&mut piece).await?;
            if read == 0 {
                return Ok(());
            }
            if side == Side::Client && subscribes(&piece[..read]) {
                subscribed.store(true, Ordering::SeqCst);
            }
            // Writing to a side that has closed ends with an error, and so does this.
            let _ = came.send((Instant::now(), piece[..read].to_vec()));
        }
    };
    let write = async move {
        while let Some((came_at, bytes)) = coming.recv().await {
            let rate = let_pass(&mut suffered, (side, &is_bus), came_at).await;
            to.write_all(&bytes).await?;
            if let Some(rate) = rate {
                let bytes = u32::try_from(bytes.len()).expect("a piece is small");
                sleep_until(Instant::now() + Duration::from_secs(1) * bytes / rate).await;
            }
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}

/// Waits until a piece may pass. Returns the limit in bytes per second, if there is one.
async fn let_pass(
    suffered: &mut watch::Receiver<Suffered>,
    (side, is_bus): (Side, &AtomicBool),
    came_at: Instant,
) -> Option<u32> {
    loop {
        let fault = suffered.borrow_and_update().by(is_bus.load(Ordering::SeqCst));
        match fault {
            Fault::Nothing => return None,
            Fault::Far(by) => {
                sleep_until(came_at + by).await;
                return None;
            }
            // A relay that is gone takes its connections along.
            Fault::Parted | Fault::Cut => drop(suffered.changed().await),
            Fault::Slow(_) | Fault::Narrow(_) | Fault::Silent if side == Side::Client => return None,
            Fault::Slow(by) => {
                sleep_until(came_at + by).await;
                return None;
            }
            Fault::Narrow(rate) => return Some(rate),
            Fault::Silent => drop(suffered.changed().await),
        }
    }
}
