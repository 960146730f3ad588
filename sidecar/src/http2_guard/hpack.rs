//! Compression of header fields (HPACK, RFC 7541).

mod encode;
mod huffman;
mod table;
#[cfg(test)]
mod tests;

pub(super) use encode::{EMPTY_TABLE, sensitive_field};
pub use encode::{field, status};
use table::{Entry, Table};

use super::list::{HeaderList, Trait};

/// Maximum size of the dynamic table: the initial value of `SETTINGS_HEADER_TABLE_SIZE`, which hyper leaves as it is.
const MAX_TABLE: usize = 4096;
/// Maximum length of an encoded integer in bytes, enough for every length of a string in a block.
const MAX_INTEGER: usize = 5;

/// Error in a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HpackError {
    /// The block cannot be decoded.
    Malformed,
    /// The list is so much larger than allowed that it is not decoded to its end.
    TooLarge,
}

/// Decoder of one direction of a connection.
#[derive(Debug)]
pub(super) struct Decoder {
    table: Table,
    /// Buffers for a literal name and value.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: Table::new(MAX_TABLE), name: Vec::new(), value: Vec::new() }
    }
}

impl Decoder {
    /// Decodes a block, and adds its fields to a list. A list that is too large has all effects on the table.
    pub(super) fn decode(&mut self, block: &[u8], list: &mut HeaderList) -> Result<(), HpackError> {
        let mut input = Input(block);
        let mut may_resize = true;
        while let Some(&first) = input.0.first() {
            match first {
                0x80.. => {
                    let index = input.integer(7)?;
                    let entry = self.table.get(index).ok_or(HpackError::Malformed)?;
                    list.push(entry.name, entry.value, entry.traits, false)?;
                }
                0x40..=0x7f => self.literal(&mut input, 6, list)?,
                0x20..=0x3f => {
                    let size = input.integer(5)?;
                    if !may_resize || size > MAX_TABLE {
                        return Err(HpackError::Malformed);
                    }
                    self.table.resize(size);
                    continue;
                }
                0x00..=0x1f => self.literal(&mut input, 4, list)?,
            }
            may_resize = false;
        }
        Ok(())
    }

    /// Decodes a literal field, whose name's index has so many bits in the first byte.
    fn literal(
        &mut self,
        input: &mut Input<'_>,
        prefix: u8,
        list: &mut HeaderList,
    ) -> Result<(), HpackError> {
        let (is_indexed, is_sensitive) = (prefix == 6, input.0[0] & 0xf0 == 0x10);
        match input.integer(prefix)? {
            0 => input.string(&mut self.name)?,
            index => {
                let name = self.table.name(index).ok_or(HpackError::Malformed)?;
                self.name.clear();
                self.name.extend_from_slice(name);
            }
        }
        input.string(&mut self.value)?;
        let (name, value) = (&self.name[..], &self.value[..]);
        let traits = Trait::of(name, value);
        if is_indexed {
            self.table.insert(Entry { name, value, traits });
        }
        list.push(name, value, traits, is_sensitive)
    }

    /// Releases the buffers.
    pub(super) fn shrink(&mut self) {
        (self.name, self.value) = (Vec::new(), Vec::new());
    }
}

/// The rest of a block.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, HpackError> {
        let (first, rest) = self.0.split_first().ok_or(HpackError::Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    /// Reads an integer with so many bits in its first byte (section 5.1).
    fn integer(&mut self, prefix: u8) -> Result<usize, HpackError> {
        let most = (1 << prefix) - 1;
        let first = usize::from(self.byte()? & most);
        if first < usize::from(most) {
            return Ok(first);
        }
        let mut value = first;
        for nth in 0..MAX_INTEGER - 1 {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << (7 * nth);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(HpackError::Malformed)
    }

    /// Reads a string into `output` (section 5.2).
    fn string(&mut self, output: &mut Vec<u8>) -> Result<(), HpackError> {
        let is_huffman = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(HpackError::Malformed)?;
        self.0 = rest;
        output.clear();
        if is_huffman {
            return huffman::decode(text, output);
        }
        output.extend_from_slice(text);
        Ok(())
    }
}

/// Returns the fields of a block.
#[cfg(test)]
pub(crate) fn fields_of(block: &[u8]) -> Vec<(String, String)> {
    let mut list = HeaderList::default();
    Decoder::default().decode(block, &mut list).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    list.iter().map(|(name, value)| (text(name), text(value))).collect()
}
