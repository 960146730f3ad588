//! The beginning of a connection, up to where it tells the protocol.

use std::{io, time::Duration};

use larder_policy::spec::OtherProtocols;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    http1_guard::RequestError,
    proxy::Proxy,
    sniff::{FirstLine, MAX_FIRST_LINE, Protocol, sniff},
    upstream::WhenRefused,
};

/// How long a client may be silent before the application is asked whether it speaks first.
const SERVER_FIRST_TIMEOUT: Duration = Duration::from_millis(500);
/// Timeout for the first words that tell the protocol, from the first byte. What follows has the guard's time.
const DETECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Timeout for the first byte of a client to which the application can't speak.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How every response of an HTTP/1 server begins.
const HTTP_RESPONSE: &[u8] = b"HTTP/";
/// Length of the head of a frame of HTTP/2, in bytes, and the type of the frame that a server sends first (RFC 9113, sections
/// 4.1 and 6.5).
const FRAME_HEAD: usize = 9;
const SETTINGS: u8 = 4;

/// The beginning of a connection.
pub(super) enum Detected {
    /// What may be an HTTP/1 request.
    Http1(Vec<u8>),
    /// The preface of HTTP/2.
    Http2(Vec<u8>),
    /// Another protocol.
    Other(Other),
    /// What is not served.
    Refused(RequestError),
    /// Nothing: the connection ends before anybody has said anything.
    None,
}

/// A connection that does not speak HTTP.
pub(super) struct Other {
    /// What the client has said.
    pub(super) beginning: Vec<u8>,
    /// The application, where it was connected to already.
    pub(super) application: Option<TcpStream>,
    /// The rest of the client's first line, where that could still name HTTP.
    pub(super) first_line: Option<FirstLine>,
}

/// Reads until the protocol is known.
///
/// An application that speaks first is no HTTP server: whatever the client says to it is passed on. A response that an HTTP
/// server gives unasked, when it has waited for too long, does not count, and neither do the settings of HTTP/2.
pub(super) async fn detect(
    stream: &mut TcpStream,
    proxy: &Proxy,
    shutdown: &CancellationToken,
) -> io::Result<Detected> {
    let passes = proxy.other_protocols() == OtherProtocols::Pass;
    let mut beginning = Vec::new();
    let mut application: Option<TcpStream> = None;
    let mut silence = std::pin::pin!(sleep(SERVER_FIRST_TIMEOUT));
    let mut deadline = std::pin::pin!(sleep(SILENCE_TIMEOUT));
    let mut is_asked = !passes;
    loop {
        let is_silent = beginning.is_empty();
        tokio::select! {
            read = stream.read_buf(&mut beginning) => {
                let is_all = read? == 0;
                if is_all && is_silent {
                    return Ok(Detected::None);
                }
                let first_line = match sniff(&beginning, is_all) {
                    Protocol::Http1 => return Ok(Detected::Http1(beginning)),
                    Protocol::Http2 => return Ok(Detected::Http2(beginning)),
                    Protocol::Proxied => return Ok(Detected::Refused(RequestError::ProxyProtocol)),
                    Protocol::Undecided if is_all => return Ok(Detected::None),
                    Protocol::Undecided if beginning.len() > MAX_FIRST_LINE => {
                        return Ok(Detected::Refused(RequestError::Syntax));
                    }
                    Protocol::Undecided => {
                        if is_silent {
                            deadline.as_mut().reset(Instant::now() + DETECT_TIMEOUT);
                        }
                        continue;
                    }
                    _ if !passes => return Ok(Detected::Refused(RequestError::OtherProtocol)),
                    Protocol::Other => None,
                    Protocol::Presumed => Some(FirstLine::default()),
                };
                return Ok(Detected::Other(Other { beginning, application, first_line }));
            },
            () = &mut deadline, if !is_silent || application.is_none() => {
                return Ok(if is_silent { Detected::None } else { Detected::Refused(RequestError::TooSlow) });
            }
            () = &mut silence, if !is_asked => {
                is_asked = true;
                application = proxy.upstream().connect(WhenRefused::Fail).await.ok();
            }
            spoken = first_spoken(application.as_ref()), if application.is_some() => match spoken {
                Ok(Spoken::Words) => {
                    return Ok(Detected::Other(Other { beginning, application, first_line: None }));
                }
                // Left alone, the application ends a silent connection as it would without us.
                Ok(Spoken::End) | Err(_) if is_silent => return Ok(Detected::None),
                Ok(Spoken::Http | Spoken::End) | Err(_) => application = None,
            },
            () = shutdown.cancelled() => return Ok(Detected::None),
        }
    }
}

/// What an application says that nobody has asked.
enum Spoken {
    /// Words of a protocol in which the server begins.
    Words,
    /// A response of HTTP/1, or the settings of HTTP/2.
    Http,
    /// The end of the connection.
    End,
}

async fn first_spoken(application: Option<&TcpStream>) -> io::Result<Spoken> {
    let Some(application) = application else { return std::future::pending().await };
    let mut words = [0; FRAME_HEAD];
    let length = application.peek(&mut words).await?;
    Ok(match &words[..length] {
        [] => Spoken::End,
        words if words.starts_with(HTTP_RESPONSE) || HTTP_RESPONSE.starts_with(words) => Spoken::Http,
        [_, _, _, SETTINGS, 0, 0, 0, 0, 0] => Spoken::Http,
        _ => Spoken::Words,
    })
}
