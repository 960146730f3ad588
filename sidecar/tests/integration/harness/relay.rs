//! A relay that can be cut, and through which a server looks slow, silent or gone.

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

/// What is wrong with a server, as seen through a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    Nothing,
    /// All that it says comes later by this.
    Slow(Duration),
    /// All that either side says comes later by this.
    Far(Duration),
    /// No more than so many bytes come from it in a second, over each connection.
    Narrow(u32),
    /// Nothing that it says comes, until that is over.
    Silent,
    /// Nothing that either side says comes, until that is over.
    Parted,
    /// Connections are reset, and new ones too.
    Cut,
}

/// What is wrong, and with which connections.
#[derive(Clone, Copy, Debug)]
struct Suffered {
    fault: Fault,
    /// Only those over which a subscription was asked for.
    by_bus_alone: bool,
}

impl Suffered {
    const fn by(self, is_bus: bool) -> Fault {
        if is_bus || !self.by_bus_alone { self.fault } else { Fault::Nothing }
    }
}

/// Passes connections on to a server until it is dropped, which cuts them all and refuses new ones.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) port: u16,
    suffered: watch::Sender<Suffered>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    /// A relay to `server`.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let suffered = watch::Sender::new(Suffered { fault: Fault::Nothing, by_bus_alone: false });
        let seen = suffered.subscribe();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(pass(client, server, seen.clone()));
            }
        });
        Self { port, suffered, _task: AbortOnDropHandle::new(task) }
    }

    /// From now on this is wrong with the server, for connections that there are too.
    pub(crate) fn suffer(&self, fault: Fault) {
        self.suffered.send_replace(Suffered { fault, by_bus_alone: false });
    }

    /// From now on this is wrong with the bus of a Redis, and nothing with its other connections.
    pub(crate) fn bus_suffers(&self, fault: Fault) {
        self.suffered.send_replace(Suffered { fault, by_bus_alone: true });
    }

    /// Its address.
    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
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

/// Who says what is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// Passes on what one side says, when what is suffered lets it.
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
            // Whoever takes it ends with an error, and so this ends.
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

/// Waits until a piece may pass; returns how many bytes may do so in a second, if there is a limit.
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
