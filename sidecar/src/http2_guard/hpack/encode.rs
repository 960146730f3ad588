//! Encoding of header fields without state: as entries of the static table, or literally and without indexing
//! (RFC 7541, sections 6.1, 6.2.2 and 6.2.3).

use super::table::static_name;

/// Update of the dynamic table's maximum size to zero (section 6.3).
pub(in crate::http2_guard) const EMPTY_TABLE: u8 = 0x20;

const INDEXED: u8 = 0x80;
const NOT_INDEXED: u8 = 0;
const NEVER_INDEXED: u8 = 0x10;

/// Appends an integer whose first `prefix` bits share a byte with `first` (section 5.1).
fn integer(output: &mut Vec<u8>, first: u8, prefix: u8, value: usize) {
    let most = (1 << prefix) - 1;
    if value < most {
        output.push(first | value as u8);
        return;
    }
    output.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        output.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    output.push(rest as u8);
}

fn string(output: &mut Vec<u8>, text: &[u8]) {
    integer(output, 0, 7, text.len());
    output.extend_from_slice(text);
}

/// Appends the status of a response, which has three digits.
pub fn status(output: &mut Vec<u8>, digits: &[u8]) {
    let index = match digits {
        b"200" => 8,
        b"204" => 9,
        b"206" => 10,
        b"304" => 11,
        b"400" => 12,
        b"404" => 13,
        b"500" => 14,
        _ => return field(output, b":status", digits),
    };
    output.push(INDEXED | index);
}

/// Appends a field.
pub fn field(output: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    literal(output, NOT_INDEXED, name, value);
}

/// Appends a field that no proxy may index (section 7.1.3).
pub(in crate::http2_guard) fn sensitive_field(output: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    literal(output, NEVER_INDEXED, name, value);
}

fn literal(output: &mut Vec<u8>, kind: u8, name: &[u8], value: &[u8]) {
    match static_name(name) {
        Some(index) => integer(output, kind, 4, index.into()),
        None => {
            output.push(kind);
            string(output, name);
        }
    }
    string(output, value);
}
