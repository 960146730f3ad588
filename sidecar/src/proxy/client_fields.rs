//! Header fields of a client's request.

use std::{
    ops::{Deref, DerefMut},
    sync::OnceLock,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use larder_policy::Fields;

use crate::headers::TextLines;

/// The end-to-end header fields of a client, as a map once one is asked for: a response that is fetched and stored seldom needs one,
/// because the client's own lines are sent to the application.
#[derive(Clone, Debug)]
pub(super) struct ClientFields {
    /// The lines, each as `name: value` and CRLF, until they are changed.
    lines: Bytes,
    map: OnceLock<HeaderMap>,
}

impl ClientFields {
    /// Takes valid lines, each of them as `name: value` and CRLF.
    pub(super) fn of_lines(lines: Bytes) -> Self {
        Self { lines, map: OnceLock::new() }
    }

    fn map(&self) -> &HeaderMap {
        self.map.get_or_init(|| {
            // The guard's parser takes no name and no value that `http` refuses.
            let line = |(name, value)| {
                Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
            };
            let mut map = HeaderMap::new();
            for (name, value) in TextLines(&self.lines).filter_map(line) {
                map.append(name, value);
            }
            map
        })
    }
}

impl From<HeaderMap> for ClientFields {
    fn from(map: HeaderMap) -> Self {
        Self { lines: Bytes::new(), map: OnceLock::from(map) }
    }
}

impl Deref for ClientFields {
    type Target = HeaderMap;

    fn deref(&self) -> &HeaderMap {
        self.map()
    }
}

impl DerefMut for ClientFields {
    fn deref_mut(&mut self) -> &mut HeaderMap {
        self.map();
        self.map.get_mut().expect("the map was made")
    }
}

impl Fields for ClientFields {
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let map = self.map.get();
        let lines = if map.is_some() { &[][..] } else { &self.lines };
        map.into_iter().flat_map(Fields::lines).chain(TextLines(lines))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1_guard::with_valid_head;

    #[test]
    fn lines_and_the_map_of_them_have_the_same_fields() {
        let text: &[u8] = b"host: shop\r\nx-a: 1\r\nempty: \r\nx-a: b: c\td\xe4\r\n";
        let fields = ClientFields::of_lines(Bytes::from_static(text));
        let own = |fields: &ClientFields| -> Vec<(Vec<u8>, Vec<u8>)> {
            Fields::lines(fields).map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
        };
        let before = own(&fields);
        let expected: [(&[u8], &[u8]); 4] =
            [(b"host", b"shop"), (b"x-a", b"1"), (b"empty", b""), (b"x-a", b"b: c\td\xe4")];
        assert_eq!(before, expected.map(|(name, value)| (name.to_vec(), value.to_vec())));
        assert_eq!((fields.len(), fields.get_all("x-a").iter().count()), (4, 2));
        let (mut before, mut after) = (before, own(&fields));
        before.sort();
        after.sort();
        assert_eq!(before, after);
    }

    #[test]
    fn map_takes_every_line_that_the_guard_does() {
        let start = b"GET / HTTP/1.1\r\n";
        for byte in 0..=u8::MAX {
            for line in [[b'x', byte, b':', b' ', b'y'], [b'x', b':', b' ', b'y', byte]] {
                let head = [&start[..], b"host: a\r\n", &line, b"z\r\n\r\n"].concat();
                let text = with_valid_head(&head, |head| head.usual_text().map(<[u8]>::to_vec));
                if let Some(text) = text.flatten() {
                    let lines = Bytes::copy_from_slice(&text[start.len()..]);
                    assert_eq!(ClientFields::of_lines(lines).len(), 2, "{byte}");
                }
            }
        }
    }
}
