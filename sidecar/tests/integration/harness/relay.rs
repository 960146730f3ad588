//! A relay that can be cut, and through which a server looks slow, silent or gone.

use std::{io, net::SocketAddr, time::Duration};

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
    /// Nothing that it says comes, until that is over.
    Silent,
    /// Connections are reset, and new ones too.
    Cut,
}

/// Passes connections on to a server until it is dropped, which cuts them all and refuses new ones.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) port: u16,
    fault: watch::Sender<Fault>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    /// A relay to `server`.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fault = watch::Sender::new(Fault::Nothing);
        let suffered = fault.subscribe();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(pass(client, server, suffered.clone()));
            }
        });
        Self { port, fault, _task: AbortOnDropHandle::new(task) }
    }

    /// From now on this is wrong with the server, for connections that there are too.
    pub(crate) fn suffer(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Its address.
    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, fault: watch::Receiver<Fault>) {
    let mut cut = fault.clone();
    let passing = async {
        let mut server = TcpStream::connect(server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::try_join!(carry(from_client, to_server, None), carry(from_server, to_client, Some(fault)))
    };
    tokio::select! {
        _ = passing => {}
        _ = cut.wait_for(|fault| *fault == Fault::Cut) => {
            let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Passes on what comes, when `fault` lets it.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut fault: Option<watch::Receiver<Fault>>,
) -> io::Result<()> {
    let (came, mut coming) = mpsc::unbounded_channel();
    let read = async move {
        let mut piece = vec![0; 64 << 10];
        loop {
            let read = from.read(&mut piece).await?;
            if read == 0 {
                return Ok(());
            }
            // Whoever takes it ends with an error, and so this ends.
            let _ = came.send((Instant::now(), piece[..read].to_vec()));
        }
    };
    let write = async move {
        while let Some((came_at, bytes)) = coming.recv().await {
            if let Some(fault) = &mut fault {
                let_pass(fault, came_at).await;
            }
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}

async fn let_pass(fault: &mut watch::Receiver<Fault>, came_at: Instant) {
    loop {
        let suffered = *fault.borrow_and_update();
        match suffered {
            Fault::Nothing => return,
            Fault::Slow(by) => return sleep_until(came_at + by).await,
            // A relay that is gone takes its connections along.
            Fault::Silent | Fault::Cut => drop(fault.changed().await),
        }
    }
}
