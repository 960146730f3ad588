//! Ports of the loopback for servers that tests start.

use std::{
    env,
    fs::{self, File},
    net::TcpListener,
    ops::Range,
    sync::Mutex,
};

use rustix::process::geteuid;

/// All ports for tests. The kernel gives none of these to a connection, which could take it before a server does.
const PORTS: Range<u16> = 10_000..30_000;

/// Number of ports in a block.
const BLOCK: u16 = 100;

/// A block of ports that other processes of tests leave alone for as long as this one runs.
struct Block {
    left: Range<u16>,
    _lock: File,
}

impl Block {
    /// Takes a block that no process has.
    fn take() -> Self {
        let folder = env::temp_dir().join(format!("larder-test-ports-{}", geteuid().as_raw()));
        fs::create_dir_all(&folder).unwrap();
        let blocks = (PORTS.end - PORTS.start) / BLOCK;
        let first = fastrand::u16(..blocks);
        let taken = (0..blocks).find_map(|number| {
            let start = PORTS.start + (first + number) % blocks * BLOCK;
            let lock = File::create(folder.join(start.to_string())).ok()?;
            lock.try_lock().ok()?;
            Some(Self { left: start..start + BLOCK, _lock: lock })
        });
        taken.expect("some block is free")
    }
}

/// Returns a port of the loopback that nobody listens on, another one each time. A server may leave it and take it again: no other test,
/// of this process or another, is given it.
pub(crate) fn free_port() -> u16 {
    static BLOCKS: Mutex<Vec<Block>> = Mutex::new(Vec::new());
    let mut blocks = BLOCKS.lock().unwrap();
    loop {
        let port = blocks.last_mut().and_then(|block| block.left.next());
        match port {
            Some(port) if TcpListener::bind(("127.0.0.1", port)).is_ok() => return port,
            Some(_) => {}
            None => blocks.push(Block::take()),
        }
    }
}
