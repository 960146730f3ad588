//! The static and the dynamic table of header fields (RFC 7541, section 2.3).

use std::collections::VecDeque;

use crate::http2_guard::list::Trait;

/// Entries of the static table (appendix A), of which the first has index 1.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Size of an entry besides its text (section 4.1).
const OVERHEAD: usize = 32;

/// Returns the first index of a name in the static table.
pub(super) fn static_name(name: &[u8]) -> Option<u8> {
    let index = match name {
        b":authority" => 1,
        b":method" => 2,
        b":path" => 4,
        b":scheme" => 6,
        b":status" => 8,
        b"accept-charset" => 15,
        b"accept-encoding" => 16,
        b"accept-language" => 17,
        b"accept-ranges" => 18,
        b"accept" => 19,
        b"access-control-allow-origin" => 20,
        b"age" => 21,
        b"allow" => 22,
        b"authorization" => 23,
        b"cache-control" => 24,
        b"content-disposition" => 25,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-length" => 28,
        b"content-location" => 29,
        b"content-range" => 30,
        b"content-type" => 31,
        b"cookie" => 32,
        b"date" => 33,
        b"etag" => 34,
        b"expect" => 35,
        b"expires" => 36,
        b"from" => 37,
        b"host" => 38,
        b"if-match" => 39,
        b"if-modified-since" => 40,
        b"if-none-match" => 41,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"last-modified" => 44,
        b"link" => 45,
        b"location" => 46,
        b"max-forwards" => 47,
        b"proxy-authenticate" => 48,
        b"proxy-authorization" => 49,
        b"range" => 50,
        b"referer" => 51,
        b"refresh" => 52,
        b"retry-after" => 53,
        b"server" => 54,
        b"set-cookie" => 55,
        b"strict-transport-security" => 56,
        b"transfer-encoding" => 57,
        b"user-agent" => 58,
        b"vary" => 59,
        b"via" => 60,
        b"www-authenticate" => 61,
        _ => return None,
    };
    Some(index)
}

/// An entry of either table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) traits: Trait,
}

/// An entry of the dynamic table.
#[derive(Debug)]
struct Dynamic {
    /// The name, then the value.
    text: Box<[u8]>,
    name: usize,
    traits: Trait,
}

impl Dynamic {
    fn size(&self) -> usize {
        self.text.len() + OVERHEAD
    }
}

/// The table of a decoder.
#[derive(Debug)]
pub(super) struct Table {
    /// The newest entry is the first.
    dynamic: VecDeque<Dynamic>,
    size: usize,
    max: usize,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self { dynamic: VecDeque::new(), size: 0, max }
    }

    /// Returns the entry of an index of both tables.
    pub(super) fn get(&self, index: usize) -> Option<Entry<'_>> {
        let index = index.checked_sub(1)?;
        let Some((name, value)) = STATIC.get(index) else {
            let Dynamic { text, name, traits } = self.dynamic.get(index - STATIC.len())?;
            let (name, value) = text.split_at(*name);
            return Some(Entry { name, value, traits: *traits });
        };
        let (name, value) = (name.as_bytes(), value.as_bytes());
        Some(Entry { name, value, traits: Trait::of(name, value) })
    }

    /// Returns the name of an index of both tables.
    pub(super) fn name(&self, index: usize) -> Option<&[u8]> {
        let index = index.checked_sub(1)?;
        match STATIC.get(index) {
            Some((name, _)) => Some(name.as_bytes()),
            None => {
                let entry = self.dynamic.get(index - STATIC.len())?;
                Some(&entry.text[..entry.name])
            }
        }
    }

    /// Inserts an entry. One that is larger than the table empties it (section 4.4).
    pub(super) fn insert(&mut self, Entry { name, value, traits }: Entry<'_>) {
        let size = name.len() + value.len() + OVERHEAD;
        self.shrink_to(self.max.saturating_sub(size));
        if size <= self.max {
            let text = [name, value].concat().into();
            self.dynamic.push_front(Dynamic { text, name: name.len(), traits });
            self.size += size;
        }
    }

    /// Changes the maximum size (section 4.3).
    pub(super) fn resize(&mut self, max: usize) {
        self.max = max;
        self.shrink_to(max);
    }

    fn shrink_to(&mut self, size: usize) {
        while self.size > size
            && let Some(oldest) = self.dynamic.pop_back()
        {
            self.size -= oldest.size();
        }
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_static_table_are_found() {
        for (position, (name, _)) in STATIC.iter().enumerate() {
            let first = STATIC.iter().position(|(known, _)| known == name).unwrap();
            assert_eq!(static_name(name.as_bytes()).map(usize::from), Some(first + 1), "{position}");
        }
        assert_eq!(static_name(b"x"), None);
    }
}
