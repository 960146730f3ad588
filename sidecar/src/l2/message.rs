//! Messages on the bus.

use larder_policy::PurgeName;

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

/// A purge as it is told on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PurgeMessage {
    pub(super) generation: u64,
    pub(super) order: u64,
    /// Subscription that waits until every pod has applied the purge; 0 if none does.
    pub(super) asker: u64,
    pub(super) names: Vec<PurgeName>,
}

/// Parses a message on the bus.
pub(super) fn read_purge(payload: &[u8]) -> Option<PurgeMessage> {
    let mut parts = payload.splitn(4, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    let (generation, order, asker) = (number()?, number()?, number()?);
    let names = parts.next()?.chunks(16).map(PurgeName::from_bytes).collect::<Option<_>>()?;
    Some(PurgeMessage { generation, order, asker, names })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_message_is_read() {
        let names = [PurgeName::path("/a b"), PurgeName::tag("t")];
        let mut payload = b"18446744073709551615 7 9 ".to_vec();
        names.iter().for_each(|name| payload.extend_from_slice(name.as_bytes()));
        let told = PurgeMessage { generation: u64::MAX, order: 7, asker: 9, names: names.to_vec() };
        assert_eq!(read_purge(&payload), Some(told));
        let everything = PurgeMessage { generation: 5, order: 0, asker: 0, names: vec![] };
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
