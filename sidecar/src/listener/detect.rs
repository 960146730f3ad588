//! Protocol detection at the beginning of a connection.

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

/// Silence of a client after which the sidecar checks whether the application speaks first.
const SERVER_FIRST_TIMEOUT: Duration = Duration::from_millis(500);
/// Timeout for detecting the protocol, from the first byte. The rest of a head has the guard's timeout.
const DETECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Timeout for the first byte of a client to which the application can't speak.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Beginning of every response of an HTTP/1 server.
const HTTP_RESPONSE: &[u8] = b"HTTP/";
/// Length of the head of a frame of HTTP/2, in bytes, and the type of the frame that a server sends first (RFC 9113, sections
/// 4.1 and 6.5).
const FRAME_HEAD: usize = 9;
const SETTINGS: u8 = 4;

/// Result of the detection.
pub(super) enum Detected {
    /// A possible HTTP/1 request.
    Http1(Vec<u8>),
    /// The preface of HTTP/2.
    Http2(Vec<u8>),
    /// Another protocol.
    Other(Other),
    /// A protocol that is rejected.
    Refused(RequestError),
    /// Nothing: the connection ended before either side sent anything.
    None,
}

/// A connection that does not speak HTTP.
pub(super) struct Other {
    /// Bytes that the client has sent.
    pub(super) beginning: Vec<u8>,
    /// The connection to the application, if there is one already.
    pub(super) application: Option<TcpStream>,
    /// The rest of the client's first line, if it could still name HTTP.
    pub(super) first_line: Option<FirstLine>,
}

/// Reads until the protocol is known.
///
/// An application that speaks first is not an HTTP server: the connection is passed on whatever the client sends. An
/// unasked HTTP response, such as a server sends after waiting too long, does not count, and neither do HTTP/2
/// settings.
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
                // If the application ends a silent connection, the sidecar does the same, as without it.
                Ok(Spoken::End) | Err(_) if is_silent => return Ok(Detected::None),
                Ok(Spoken::Http | Spoken::End) | Err(_) => application = None,
            },
            () = shutdown.cancelled() => return Ok(Detected::None),
        }
    }
}

/// Bytes that an application sends unasked.
enum Spoken {
    /// Another protocol, in which the server speaks first.
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
