//! A protocol that is not HTTP, in which the server speaks first, as in SMTP or MySQL.

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The port to listen on.
    #[arg(long)]
    port: u16,
}

/// Serves until SIGTERM, which ends it at once.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, args.port)).await?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                tokio::spawn(converse(stream));
            }
            _ = terminate.recv() => return Ok(()),
        }
    }
}

async fn converse(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(b"220 ready\n").await?;
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        writer.write_all(format!("250 {line}\n").as_bytes()).await?;
    }
    Ok(())
}
