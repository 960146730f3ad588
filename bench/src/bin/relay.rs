//! The floor of a proxy's cost: bytes that are moved between two sockets and not looked at.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use anyhow::Result;
use clap::Parser;
use rustix::{
    buffer::spare_capacity,
    event::{
        PollFd, PollFlags,
        epoll::{self, CreateFlags, EventData, EventFlags},
        poll,
    },
};

/// Moves the bytes of each connection to one of the origin's, and back.
#[derive(Parser)]
struct Arguments {
    /// Listen address.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,

    /// Address of the origin.
    #[arg(long, default_value = "127.0.0.1:9000")]
    origin: SocketAddr,
}

/// Size of the buffer, and of most reads.
const BUFFER: usize = 64 << 10;

/// Number of events that are taken at once.
const EVENTS: usize = 256;

/// Data of the listener's events. Those of a socket have its index in `sockets`.
const LISTENER: EventData = EventData::new_u64(u64::MAX);

fn main() -> Result<()> {
    let Arguments { listen, origin } = Arguments::parse();
    let listener = TcpListener::bind(listen)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, LISTENER, EventFlags::IN)?;
    // Each socket is beside the one that it is relayed to: their indices differ in the lowest bit.
    let mut sockets: Vec<Option<TcpStream>> = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let data = event.data;
            if data == LISTENER {
                let (client, _) = listener.accept()?;
                add(&epoll, &mut sockets, [client, TcpStream::connect(origin)?])?;
                continue;
            }
            let from = data.u64() as usize;
            let (Some(source), Some(sink)) = (&sockets[from], &sockets[from ^ 1]) else { continue };
            if !relay(source, sink, &mut buffer).unwrap_or(false) {
                (sockets[from], sockets[from ^ 1]) = (None, None);
            }
        }
    }
}

/// Adds a pair of sockets.
fn add(epoll: &OwnedFd, sockets: &mut Vec<Option<TcpStream>>, pair: [TcpStream; 2]) -> Result<()> {
    for socket in pair {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let data = EventData::new_u64(sockets.len() as u64);
        epoll::add(epoll, &socket, data, EventFlags::IN | EventFlags::ET)?;
        sockets.push(Some(socket));
    }
    Ok(())
}

/// Moves the bytes that are there. Returns false at the end of the connection.
fn relay(mut source: &TcpStream, mut sink: &TcpStream, buffer: &mut [u8]) -> io::Result<bool> {
    loop {
        let length = match source.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match sink.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(sink, PollFlags::OUT)], None)?;
                }
                Err(error) => return Err(error),
            }
        }
        // Edge-triggered: bytes that come after a short read have an event of their own.
        if length < buffer.len() {
            return Ok(true);
        }
    }
}
