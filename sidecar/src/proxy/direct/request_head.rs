//! Heads of clients' requests, as the application gets them.

use std::{net::IpAddr, ops::Range};

use larder_policy::{Fields, is_named};

use crate::{
    headers::{VIA_HTTP_11, forwarded_node, only_closes_or_keeps_alive, write_line},
    http1_guard::Head,
};

/// Maximum length of a head that is copied, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// The end of a request line.
const HTTP_11: &str = " HTTP/1.1\r\n";

/// Facts about a head whose lines can be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plain {
    /// Length of the head, or a little more.
    length: usize,
    /// True if the client's connection ends after the response.
    pub(super) ends: bool,
    /// True if every line is copied as it is.
    is_copied: bool,
}

impl Plain {
    /// Returns the facts about a head; `None` if it is large, or has a field that means more to a proxy than that its line is left out.
    pub(super) fn of(head: &Head<'_>) -> Option<Self> {
        if !head.is_http11 || !head.target.starts_with('/') {
            return None;
        }
        let (mut length, mut ends) = (head.method.len() + head.target.len() + 12, false);
        let mut is_copied = true;
        for (name, value) in head.lines.lines() {
            length += name.len() + value.len() + 4;
            match name.len() {
                2 if is_named(name, b"te") => return None,
                6 if is_named(name, b"expect") => return None,
                7 if is_named(name, b"upgrade") || is_named(name, b"trailer") => return None,
                10 if is_named(name, b"keep-alive") => return None,
                10 if is_named(name, b"connection") => {
                    ends |= only_closes_or_keeps_alive(value)?;
                    is_copied = false;
                }
                3 if is_named(name, b"via") => is_copied = false,
                9 if is_named(name, b"forwarded") => is_copied = false,
                15 if is_named(name, b"x-forwarded-for") => is_copied = false,
                12 if is_named(name, b"max-forwards") => return None,
                // Copied as it is, so it must be as it would be written.
                14 if is_named(name, b"content-length") && value.len() > 1 && value.starts_with(b"0") => {
                    return None;
                }
                14 if is_named(name, b"http2-settings") => return None,
                16 if is_named(name, b"proxy-connection") => return None,
                18 if is_named(name, b"proxy-authenticate") => return None,
                _ => {}
            }
        }
        (length <= MAX_HEAD).then_some(Self { length, ends, is_copied })
    }

    /// Returns the head for the application, with room for a little of the body.
    pub(super) fn for_application(&self, head: &Head<'_>, client: &Peer) -> ForApplication {
        let mut text = Vec::with_capacity(self.length + 128);
        let target = head.method.len() + 1..head.method.len() + 1 + head.target.len();
        let mut lines = None;
        let announced = match head.usual_text().filter(|_| self.is_copied) {
            Some(usual) => {
                text.extend_from_slice(usual);
                lines = Some(target.end + HTTP_11.len()..text.len());
                Announced::default()
            }
            None => copy_and_announce(&mut text, head, client),
        };
        if !announced.forwarded_for {
            write_line(&mut text, b"x-forwarded-for", client.text.as_bytes());
        }
        if !announced.via {
            write_line(&mut text, b"via", VIA_HTTP_11.as_bytes());
        }
        text.extend_from_slice(b"\r\n");
        ForApplication { text, target, lines }
    }
}

/// A head for the application.
#[derive(Debug)]
pub(super) struct ForApplication {
    pub(super) text: Vec<u8>,
    /// Place of the target.
    pub(super) target: Range<usize>,
    /// Place of the client's lines, if all of them are copied, each as `name: value` and CRLF.
    pub(super) lines: Option<Range<usize>>,
}

/// Copies the lines of a head one by one, and appends the client and this proxy where they belong.
fn copy_and_announce(text: &mut Vec<u8>, head: &Head<'_>, client: &Peer) -> Announced {
    for part in [head.method, " ", head.target, HTTP_11] {
        text.extend_from_slice(part.as_bytes());
    }
    let mut announced = Announced::default();
    for (name, value) in head.lines.lines() {
        let appended = match name.len() {
            10 if is_named(name, b"connection") => continue,
            3 if is_named(name, b"via") => &mut announced.via,
            9 if is_named(name, b"forwarded") => &mut announced.forwarded,
            15 if is_named(name, b"x-forwarded-for") => &mut announced.forwarded_for,
            _ => {
                write_line(text, name, value);
                continue;
            }
        };
        if std::mem::replace(appended, true) {
            continue;
        }
        text.extend_from_slice(name);
        text.extend_from_slice(b": ");
        // On one line, because not every application reads several.
        for value in std::str::from_utf8(name).into_iter().flat_map(|name| head.lines.values(name)) {
            text.extend_from_slice(value);
            text.extend_from_slice(b", ");
        }
        let item = match name.len() {
            3 => VIA_HTTP_11,
            9 => &forwarded_node(client.address),
            _ => &client.text,
        };
        text.extend_from_slice(item.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    announced
}

/// The client of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    address: IpAddr,
    /// Text of the address.
    text: String,
}

impl Peer {
    pub(super) fn new(address: IpAddr) -> Self {
        Self { address, text: address.to_string() }
    }
}

/// The fields to which the client or this proxy was appended.
#[derive(Default)]
struct Announced {
    forwarded_for: bool,
    forwarded: bool,
    via: bool,
}
