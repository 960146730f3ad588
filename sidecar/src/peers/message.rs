//! Purges in the messages of the admin API.

use std::fmt::Write as _;

use larder_api::admin::{PeerPurge, PeerPurges};
use larder_policy::PurgeName;

use super::log::{Purge, Segment};

/// Length of a name in hexadecimal digits.
const DIGITS: usize = 32;

impl From<Segment> for PeerPurges {
    fn from(Segment { origin, after, last, everything, settled, purges }: Segment) -> Self {
        let purges = purges.into_iter().map(|Purge { seq, version, names, number, generation }| PeerPurge {
            seq,
            version: hex(&[version]),
            names: hex(&names),
            number,
            generation,
        });
        Self { origin, after, last, everything, settled, purges: purges.collect() }
    }
}

/// Parses purges; `None` if they are malformed, or some are neither listed nor accounted for: the rest would be taken for all.
pub(super) fn segment(purges: PeerPurges) -> Option<Segment> {
    let PeerPurges { origin, after, last, everything, settled, purges } = purges;
    let purges = purges.into_iter().map(|PeerPurge { seq, version, names, number, generation }| {
        let [version] = names_in(&version)?[..] else { return None };
        Some(Purge { seq, version, names: names_in(&names)?, number, generation })
    });
    let purges: Vec<_> = purges.collect::<Option<_>>()?;
    let listed = purges.iter().map(|purge| purge.seq);
    let are_explained =
        everything || settled <= last && (after.max(settled)..last).map(|before| before + 1).eq(listed);
    are_explained.then_some(Segment { origin, after, last, everything, settled, purges })
}

fn hex(names: &[PurgeName]) -> String {
    let mut text = String::with_capacity(names.len() * DIGITS);
    for byte in names.iter().flat_map(PurgeName::as_bytes) {
        write!(text, "{byte:02x}").expect("a text can be written to");
    }
    text
}

fn names_in(text: &str) -> Option<Vec<PurgeName>> {
    text.as_bytes().chunks(DIGITS).map(name).collect()
}

fn name(digits: &[u8]) -> Option<PurgeName> {
    if digits.len() != DIGITS || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = digits.chunks(2).map(byte).collect::<Option<_>>()?;
    PurgeName::from_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purges_are_read_as_they_were_written() {
        let purge = |seq| Purge {
            seq,
            version: PurgeName::version("v"),
            names: vec![PurgeName::tag("a"), PurgeName::path("/b")],
            number: u64::MAX,
            generation: 7,
        };
        let purges = vec![purge(5), purge(6)];
        let sent = Segment { origin: u64::MAX, after: 3, last: 6, everything: false, settled: 4, purges };
        let text = serde_json::to_string(&PeerPurges::from(sent.clone())).unwrap();
        let read = |text: &str| segment(serde_json::from_str(text).unwrap());
        assert_eq!(read(&text), Some(sent));
        for (part, broken) in [
            ("\"seq\":5", "\"seq\":4"),
            ("\"seq\":6", "\"seq\":7"),
            ("\"seq\":5", "\"seq\":6"),
            ("\"last\":6", "\"last\":4611686018427387904"),
            ("\"last\":6", "\"last\":5"),
            ("\"settled\":4,", ""),
            ("\"settled\":4", "\"settled\":7"),
        ] {
            assert_eq!(read(&text.replacen(part, broken, 1)), None, "{broken}");
        }
        let nothing = |last, settled, everything| {
            segment(PeerPurges { last, settled, everything, ..PeerPurges::default() }).is_some()
        };
        assert!(nothing(9, 9, false) && nothing(9, 0, true) && !nothing(9, 8, false));
    }

    #[test]
    fn name_has_32_digits() {
        let text = hex(&[PurgeName::tag("a")]);
        assert_eq!(names_in(&text), Some(vec![PurgeName::tag("a")]));
        assert_eq!(names_in(""), Some(vec![]));
        for broken in [&text[1..], &format!("{text}0"), &text.replace(&text[..1], "x")] {
            assert_eq!(names_in(broken), None, "{broken}");
        }
    }
}
