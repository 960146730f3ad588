//! A connection that replicates: Postgres streams each transaction when it is committed.
//!
//! The client library knows no replication, so the little that it takes is spoken here: the start of a connection, simple queries, and the
//! stream in both directions (PostgreSQL, "Streaming Replication Protocol").

use std::{
    io,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::{
        backend::{ErrorFields, Header, Message},
        frontend,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_postgres::{
    Config,
    config::{ChannelBinding as BindingMode, Host, SslMode, SslNegotiation},
    tls::{MakeTlsConnect, TlsConnect},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{blames_certificate, no_connection, pools::Primary, session::BOUNDS};

const DEFAULT_PORT: u16 = 5432;

/// Maximum length of a message. The values of one row may be as long.
const MAX_MESSAGE: i32 = 256 << 20;

/// Start of Postgres' time, 2000-01-01, in seconds of Unix time.
const EPOCH: Duration = Duration::from_secs(946_684_800);

/// Settings that the text of values depends on, as triggers have them ([`larder_policy::trigger`]): a role or a database may have others.
const TEXT_OF_VALUES: &str = "-c datestyle=ISO,YMD -c intervalstyle=postgres -c timezone=UTC -c lc_monetary=C \
                              -c bytea_output=hex -c extra_float_digits=3";

/// Tag of the message that begins a stream in both directions.
const COPY_BOTH: u8 = b'W';

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for T {}

/// A connection to the primary that replicates.
pub struct Replication {
    stream: Box<dyn Stream>,
    received: BytesMut,
    /// Position in the log up to which everything was received.
    position: u64,
}

/// A part of the stream.
#[derive(Debug)]
pub enum Event {
    /// A message of the plugin.
    Message(Bytes),
    /// A sign of life.
    KeepAlive {
        /// True if the server waits for one.
        wants_reply: bool,
    },
}

/// An error of the server's.
#[derive(Debug, thiserror::Error)]
#[error("{severity}: {message} ({code})")]
pub struct ServerError {
    severity: String,
    message: String,
    /// SQLSTATE.
    pub code: String,
}

impl Replication {
    /// Connects to the first host that is the primary.
    pub(super) async fn open(primary: Primary) -> anyhow::Result<Self> {
        let Primary { config, tls, secrets: _ } = primary;
        let limit = config.get_connect_timeout().copied().unwrap_or(Duration::from_secs(2));
        let mut failure = anyhow!("the URL names no host");
        for index in 0..config.get_hosts().len().max(config.get_hostaddrs().len()) {
            let opened = timeout(limit, Self::open_at(index, &config, tls.clone())).await;
            match opened.with_context(|| format!("postgres did not respond within {limit:?}")).flatten() {
                Ok(replication) => return Ok(replication),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn open_at(index: usize, config: &Config, tls: Option<MakeRustlsConnect>) -> anyhow::Result<Self> {
        let stream = connect(index, config, tls).await?;
        let mut replication = Self { stream, received: BytesMut::new(), position: 0 };
        replication.begin(config).await?;
        let is_standby = replication.query("select pg_is_in_recovery()").await?;
        ensure!(is_standby.as_deref() == Some("f"), "the server is a standby: name the primary in the URL");
        replication.query(BOUNDS).await?;
        Ok(replication)
    }

    /// Starts the session.
    async fn begin(&mut self, config: &Config) -> anyhow::Result<()> {
        let user = config.get_user().context("the URL names no user")?;
        let theirs = config.get_options().unwrap_or_default();
        let options = format!("{theirs} -c statement_timeout=0 {TEXT_OF_VALUES}");
        let parameters = [
            ("client_encoding", "UTF8"),
            ("user", user),
            ("database", config.get_dbname().unwrap_or(user)),
            ("replication", "database"),
            ("application_name", config.get_application_name().unwrap_or("larder-feed")),
            ("options", &options),
        ];
        self.send(|to| frontend::startup_message(parameters, to)).await?;
        let password = || config.get_password().context("postgres asks for a password, and the URL has none");
        loop {
            match self.message().await? {
                Message::AuthenticationOk => break,
                Message::AuthenticationCleartextPassword => {
                    let password = password()?;
                    self.send(|to| frontend::password_message(password, to)).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), password()?, body.salt());
                    self.send(|to| frontend::password_message(hash.as_bytes(), to)).await?;
                }
                Message::AuthenticationSasl(body) => {
                    let mut mechanisms = body.mechanisms();
                    let mut has_scram = false;
                    while let Some(mechanism) = mechanisms.next()? {
                        has_scram |= mechanism == SCRAM_SHA_256;
                    }
                    let can_bind = config.get_channel_binding() != BindingMode::Require;
                    ensure!(
                        has_scram && can_bind,
                        "replication supports SCRAM-SHA-256 without channel binding"
                    );
                    self.scram(password()?).await?;
                }
                _ => bail!("replication supports passwords: SCRAM-SHA-256, MD5 and plain"),
            }
        }
        self.until_ready().await.map(drop)
    }

    async fn scram(&mut self, password: &[u8]) -> anyhow::Result<()> {
        let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
        self.send(|to| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), to)).await?;
        let Message::AuthenticationSaslContinue(body) = self.message().await? else { bail!(UNEXPECTED) };
        scram.update(body.data())?;
        self.send(|to| frontend::sasl_response(scram.message(), to)).await?;
        let Message::AuthenticationSaslFinal(body) = self.message().await? else { bail!(UNEXPECTED) };
        Ok(scram.finish(body.data())?)
    }

    /// Runs a query or a command, and returns the first value of its first row.
    ///
    /// # Errors
    /// If the connection breaks, or the server refuses ([`ServerError`]).
    pub async fn query(&mut self, query: &str) -> anyhow::Result<Option<String>> {
        self.send(|to| frontend::query(query, to)).await?;
        self.until_ready().await
    }

    async fn until_ready(&mut self) -> anyhow::Result<Option<String>> {
        let mut value = None;
        loop {
            match self.message().await? {
                Message::ReadyForQuery(_) => return Ok(value),
                Message::DataRow(row) if value.is_none() => {
                    let range = row.ranges().next()?.flatten();
                    let text = range.map(|range| String::from_utf8_lossy(&row.buffer()[range]).into_owned());
                    value = Some(text.unwrap_or_default());
                }
                _ => {}
            }
        }
    }

    /// Begins to stream what a publication has, from the position of a slot.
    ///
    /// # Errors
    /// As those of [`Self::query`].
    pub async fn start(&mut self, slot: &str, publication: &str) -> anyhow::Result<()> {
        let name = format!("\"{}\"", publication.replace('"', "\"\"")).replace('\'', "''");
        let options = format!("proto_version '1', publication_names '{name}'");
        let command = format!("START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 ({options})");
        self.send(|to| frontend::query(&command, to)).await?;
        loop {
            let header = self.header().await?;
            if header.tag() == COPY_BOTH {
                self.received.advance(1 + usize::try_from(header.len())?);
                return Ok(());
            }
            ensure!(!matches!(self.message().await?, Message::ReadyForQuery(_)), UNEXPECTED);
        }
    }

    /// Returns the next part of the stream. Nothing is lost if the caller stops waiting.
    ///
    /// # Errors
    /// If the stream ends.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        loop {
            let message = self.message().await?;
            if let Some(event) = self.event(message)? {
                return Ok(event);
            }
        }
    }

    /// Returns the next part of the stream, if it has arrived.
    ///
    /// # Errors
    /// If the stream ends.
    pub fn arrived(&mut self) -> anyhow::Result<Option<Event>> {
        while let Some(message) = self.parse()? {
            if let Some(event) = self.event(message)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn event(&mut self, message: Message) -> anyhow::Result<Option<Event>> {
        let mut data = match message {
            Message::CopyData(body) => body.into_bytes(),
            Message::CopyDone => bail!("postgres ended the replication"),
            _ => return Ok(None),
        };
        match data.try_get_u8()? {
            b'w' => {
                let (start, end, _) = (data.try_get_u64()?, data.try_get_u64()?, data.try_get_i64()?);
                self.position = self.position.max(start).max(end);
                Ok(Some(Event::Message(data)))
            }
            b'k' => {
                let (end, _) = (data.try_get_u64()?, data.try_get_i64()?);
                self.position = self.position.max(end);
                Ok(Some(Event::KeepAlive { wants_reply: data.try_get_u8()? == 1 }))
            }
            _ => Ok(None),
        }
    }

    /// Tells the server that everything received is done with, so that it keeps no log for it, and asks for a sign of life.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn confirm(&mut self, wants_reply: bool) -> anyhow::Result<()> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH + EPOCH).unwrap_or_default();
        let mut status = BytesMut::with_capacity(34);
        status.put_u8(b'r');
        for _ in ["written", "flushed", "applied"] {
            status.put_u64(self.position);
        }
        status.put_i64(i64::try_from(since.as_micros())?);
        status.put_u8(u8::from(wants_reply));
        let status = frontend::CopyData::new(status)?;
        self.send(|to| {
            status.write(to);
            Ok(())
        })
        .await
    }

    async fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> anyhow::Result<()> {
        let mut message = BytesMut::new();
        write(&mut message)?;
        self.stream.write_all(&message).await?;
        Ok(self.stream.flush().await?)
    }

    async fn header(&mut self) -> anyhow::Result<Header> {
        loop {
            if let Some(header) = Header::parse(&self.received)? {
                ensure!(
                    header.len() <= MAX_MESSAGE,
                    "postgres sent a message of more than {MAX_MESSAGE} bytes"
                );
                if self.received.len() > usize::try_from(header.len())? {
                    return Ok(header);
                }
            }
            self.receive().await?;
        }
    }

    async fn message(&mut self) -> anyhow::Result<Message> {
        loop {
            if let Some(message) = self.parse()? {
                return Ok(message);
            }
            self.receive().await?;
        }
    }

    fn parse(&mut self) -> anyhow::Result<Option<Message>> {
        if let Some(header) = Header::parse(&self.received)? {
            ensure!(header.len() <= MAX_MESSAGE, "postgres sent a message of more than {MAX_MESSAGE} bytes");
        }
        match Message::parse(&mut self.received)? {
            Some(Message::ErrorResponse(body)) => Err(server_error(body.fields()).into()),
            message => Ok(message),
        }
    }

    async fn receive(&mut self) -> anyhow::Result<()> {
        ensure!(self.stream.read_buf(&mut self.received).await? > 0, "postgres closed the connection");
        Ok(())
    }
}

const UNEXPECTED: &str = "postgres sent a message that does not belong here";

fn server_error(mut fields: ErrorFields<'_>) -> ServerError {
    let mut error = ServerError { severity: String::new(), message: String::new(), code: String::new() };
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'S' => error.severity = value,
            b'M' => error.message = value,
            b'C' => error.code = value,
            _ => {}
        }
    }
    error
}

/// Connects to one of the hosts, encrypted as the settings say.
async fn connect(
    index: usize,
    config: &Config,
    tls: Option<MakeRustlsConnect>,
) -> anyhow::Result<Box<dyn Stream>> {
    let ports = config.get_ports();
    let port = ports.get(index).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
    let host = config.get_hosts().get(index);
    let address = config.get_hostaddrs().get(index);
    let (stream, name) = match (host, address) {
        (Some(Host::Unix(folder)), _) => {
            let path = folder.join(format!(".s.PGSQL.{port}"));
            return Ok(Box::new(UnixStream::connect(path).await.context(no_connection(false))?));
        }
        (Some(Host::Tcp(name)), Some(address)) => (tcp(*address, port).await, name.clone()),
        (Some(Host::Tcp(name)), None) => (TcpStream::connect((name.as_str(), port)).await, name.clone()),
        (None, Some(address)) => (tcp(*address, port).await, address.to_string()),
        (None, None) => bail!("the URL names no host"),
    };
    let mut stream = stream.context(no_connection(false))?;
    stream.set_nodelay(true)?;
    let Some(mut tls) = tls else { return Ok(Box::new(stream)) };
    if config.get_ssl_negotiation() == SslNegotiation::Postgres {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await?;
        if stream.read_u8().await? != b'S' {
            ensure!(config.get_ssl_mode() != SslMode::Require, "the server does not support TLS");
            return Ok(Box::new(stream));
        }
    }
    let connector = <MakeRustlsConnect as MakeTlsConnect<TcpStream>>::make_tls_connect(&mut tls, &name)?;
    let encrypted = TlsConnect::<TcpStream>::connect(connector, stream).await;
    let encrypted = encrypted.map_err(|error| {
        let context = no_connection(blames_certificate(&error));
        anyhow::Error::from(error).context(context)
    })?;
    Ok(Box::new(encrypted))
}

async fn tcp(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((address, port)).await
}

impl std::fmt::Debug for Replication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replication").field("position", &self.position).finish_non_exhaustive()
    }
}
