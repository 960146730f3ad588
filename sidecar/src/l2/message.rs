//! Messages on the bus.

use std::fmt;

use larder_policy::PurgeName;

use super::generation::random;

/// Prefix of a probe.
pub(super) const PROBE: &[u8] = b"P ";

/// PurgeMessage on a pod's own channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OwnMessage {
    /// By itself: the number of a probe.
    Probe(u64),
    /// By another pod: the orders of purges that hold there.
    Held(Vec<u64>),
}

/// Reads a message on a pod's own channel.
pub(super) fn read_own(payload: &[u8]) -> Option<OwnMessage> {
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse().ok();
    match payload.strip_prefix(PROBE) {
        Some(digits) => number(digits).map(OwnMessage::Probe),
        None => payload.split(|byte| *byte == b' ').map(number).collect::<Option<_>>().map(OwnMessage::Held),
    }
}

/// First half of the 16 bytes with which a trailer begins. The second is the number of the purge's origin, or 0.
const ORIGIN_MARK: [u8; 8] = *b"\0origin\0";

/// Identity of a purge that several Redis order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The number that the pod gave it that purged.
    Pod(u64),
    /// The place of the purge at the Redis from which it is passed on.
    Redis { generation: u64, order: u64 },
}

impl Origin {
    /// The origin of a purge that begins here.
    pub(super) fn new() -> Self {
        Self::Pod(random())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(number) => write!(f, "{number}"),
            Self::Redis { generation, order } => write!(f, "{generation}:{order}"),
        }
    }
}

/// Returns the end of a purge's message, behind its names: 16 bytes with the number of its origin, and names of other Redis that are told of
/// it, too. A purge of one Redis alone has none.
pub(super) fn trailer(origin: Option<Origin>, elsewhere: &[PurgeName]) -> Vec<[u8; 16]> {
    let number = match origin {
        Some(Origin::Pod(number)) => number,
        Some(Origin::Redis { .. }) | None => 0,
    };
    if number == 0 && elsewhere.is_empty() {
        return vec![];
    }
    let mut mark = [0; 16];
    mark[..8].copy_from_slice(&ORIGIN_MARK);
    mark[8..].copy_from_slice(&number.to_be_bytes());
    [mark].into_iter().chain(elsewhere.iter().map(|name| *name.as_bytes())).collect()
}

/// A purge as it is told on the bus: `<generation> <order> <asker> <names>` and a [`trailer`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PurgeMessage {
    pub(super) generation: u64,
    pub(super) order: u64,
    /// Subscription that waits until every pod has applied the purge; 0 if none does.
    pub(super) asker: u64,
    pub(super) names: Vec<PurgeName>,
    /// Number that it was given by the pod that purged; `None`: it has none.
    pub(super) number: Option<u64>,
    /// Names of other Redis that are told of it, too ([`PurgeName::told`]).
    pub(super) elsewhere: Vec<PurgeName>,
}

impl PurgeMessage {
    /// Returns the identity of the purge at every Redis.
    pub(super) fn origin(&self) -> Origin {
        let Self { generation, order, .. } = *self;
        self.number.map_or(Origin::Redis { generation, order }, Origin::Pod)
    }

    /// Returns true if the Redis that counts in a generation is told of the purge, too.
    pub(super) fn is_told_to(&self, generation: u64) -> bool {
        self.elsewhere.contains(&PurgeName::told(generation))
    }
}

/// Parses a message on the bus.
pub(super) fn read_purge(payload: &[u8]) -> Option<PurgeMessage> {
    let mut parts = payload.splitn(4, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    let (generation, order, asker) = (number()?, number()?, number()?);
    let mut message = PurgeMessage { generation, order, asker, ..PurgeMessage::default() };
    let mut list = &mut message.names;
    for bytes in parts.next()?.chunks(16) {
        if let Some(number) = bytes.strip_prefix(&ORIGIN_MARK) {
            let number = u64::from_be_bytes(number.try_into().ok()?);
            message.number = Some(number).filter(|number| *number != 0);
            list = &mut message.elsewhere;
        } else {
            list.push(PurgeName::from_bytes(bytes)?);
        }
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_message_is_read() {
        let names = [PurgeName::path("/a b"), PurgeName::tag("t")];
        let mut payload = b"18446744073709551615 7 9 ".to_vec();
        names.iter().for_each(|name| payload.extend_from_slice(name.as_bytes()));
        let mut purge = PurgeMessage {
            generation: u64::MAX,
            order: 7,
            asker: 9,
            names: names.to_vec(),
            ..PurgeMessage::default()
        };
        assert_eq!(read_purge(&payload), Some(purge.clone()));
        purge.elsewhere = vec![PurgeName::told(1), PurgeName::told(2)];
        for number in [None, Some(7)] {
            purge.number = number;
            let trailer = trailer(number.map(Origin::Pod), &purge.elsewhere);
            assert_eq!(read_purge(&[&payload[..], &trailer.concat()].concat()), Some(purge.clone()));
        }
        assert!(purge.is_told_to(2) && !purge.is_told_to(3));
        assert!(trailer(Some(Origin::Redis { generation: 1, order: 2 }), &[]).is_empty());
        let everything = PurgeMessage { generation: 5, ..PurgeMessage::default() };
        assert_eq!(read_purge(b"5 0 0 "), Some(everything));
        for broken in [&b""[..], b"5", b"5 x 0 ", b"5 7 0 short"] {
            assert_eq!(read_purge(broken), None);
        }
    }

    #[test]
    fn message_to_one_pod_is_read() {
        assert_eq!(read_own(b"P 12"), Some(OwnMessage::Probe(12)));
        assert_eq!(read_own(b"7 9"), Some(OwnMessage::Held(vec![7, 9])));
        for broken in [&b""[..], b"P", b"P ", b"P 1 2", b"7 x", b"7 ", b"\xff"] {
            assert_eq!(read_own(broken), None, "{broken:?}");
        }
    }
}
