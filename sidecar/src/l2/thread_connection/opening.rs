//! Opening a connection: address, TLS, login, and proof that it leads to the right server.

use std::{io, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, bail, ensure};
use redis::{ConnectionAddr, ConnectionInfo, InfoDict, RedisConnectionInfo};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    command,
    resp::{Malformed, Reader, Token},
};
use crate::{l2::generation::Mark, resolver::Resolver};

/// Maximum length of the reply to `INFO replication` in bytes.
const MAX_INFO: usize = 64 << 10;

/// A server, and how it is spoken to.
pub(in crate::l2) struct Endpoint {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    login: RedisConnectionInfo,
    resolver: Resolver,
    mark: Mark,
    /// Time for which the server may be silent while it owes a reply.
    pub(super) patience: Duration,
}

impl Endpoint {
    /// The server with a mark at an address; `None` if the address is not one of TCP.
    pub(in crate::l2) fn new(
        server: &ConnectionInfo,
        tls: Option<Arc<ClientConfig>>,
        resolver: &Resolver,
        mark: Mark,
        patience: Duration,
    ) -> Option<Self> {
        let (host, port, tls) = match server.addr() {
            ConnectionAddr::Tcp(host, port) => (host.clone(), *port, None),
            ConnectionAddr::TcpTls { host, port, insecure: false, .. } => (host.clone(), *port, Some(tls?)),
            _ => return None,
        };
        let (login, resolver) = (server.redis_settings().clone(), resolver.clone());
        Some(Self { host, port, tls, login, resolver, mark, patience })
    }

    /// Connects; the connection is good for commands when this returns.
    ///
    /// # Errors
    /// If the server can't be reached, does not let this pod in, or is another one. The message has no password in it.
    pub(super) async fn connect(&self) -> anyhow::Result<Stream> {
        let tcp = self.connect_tcp().await?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => {
                let mut tcp = tcp;
                self.enter(&mut tcp).await?;
                Ok(Stream::Plain(tcp))
            }
            Some(config) => {
                let name = ServerName::try_from(self.host.clone())?;
                let mut tls = TlsConnector::from(Arc::clone(config)).connect(name, tcp).await?;
                self.enter(&mut tls).await?;
                Ok(Stream::Tls(Box::new(tls)))
            }
        }
    }

    async fn connect_tcp(&self) -> anyhow::Result<TcpStream> {
        let mut last = None;
        for address in self.resolver.resolve(&self.host, self.port).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()).into())
    }

    /// Logs in, selects the database, and asks which server this is.
    async fn enter(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> anyhow::Result<()> {
        let mut commands = Vec::new();
        let mut count = 0;
        if let Some(password) = self.login.password() {
            let words = [b"AUTH"].into_iter().map(|word| &word[..]);
            let words = words.chain(self.login.username().map(str::as_bytes)).chain([password.as_bytes()]);
            command(&mut commands, words);
            count += 1;
        }
        let database = self.login.db();
        if database != 0 {
            command(&mut commands, [&b"SELECT"[..], database.to_string().as_bytes()]);
            count += 1;
        }
        command(&mut commands, [&b"INFO"[..], b"replication"]);
        stream.write_all(&commands).await?;
        stream.flush().await?;
        let mut input = Vec::new();
        for _ in 0..count {
            match reply(stream, &mut input).await? {
                Reply::Line => {}
                Reply::Text(_) => bail!("the server does not reply as Redis does"),
            }
        }
        let Reply::Text(info) = reply(stream, &mut input).await? else {
            bail!("the server says nothing of itself")
        };
        ensure!(input.is_empty(), "the server says more than it was asked");
        ensure!(Mark::read(&InfoDict::new(&info))? == self.mark, "it is another server, or has another role");
        Ok(())
    }
}

/// A reply to one of the first commands.
enum Reply {
    Line,
    Text(String),
}

/// Takes a reply from the input, which more is read into as needed.
async fn reply(stream: &mut (impl AsyncRead + Unpin), input: &mut Vec<u8>) -> anyhow::Result<Reply> {
    loop {
        let mut reader = Reader::new(input);
        let token = reader.next().map_err(|Malformed| anyhow!("the server does not reply as Redis does"))?;
        let reply = match token {
            None => None,
            Some(Token::Line) => Some(Reply::Line),
            Some(Token::Bulk(Some(text))) => Some(Reply::Text(String::from_utf8_lossy(text).into_owned())),
            // The rest of the line may repeat what was sent.
            Some(Token::Error(line)) => {
                let code = line[1..].split(|byte| *byte == b' ').next().unwrap_or_default();
                bail!("the server refuses: {}", code.escape_ascii());
            }
            Some(Token::Bulk(None) | Token::Array(_)) => bail!("the server does not reply as Redis does"),
        };
        if let Some(reply) = reply {
            let length = input.len() - reader.left();
            input.drain(..length);
            return Ok(reply);
        }
        ensure!(input.len() < MAX_INFO, "the server says too much");
        ensure!(stream.read_buf(input).await.context("reading")? > 0, "the server closed the connection");
    }
}

/// A connection that was opened.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}
