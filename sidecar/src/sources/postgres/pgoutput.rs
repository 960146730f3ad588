//! Messages of the logical replication plugin `pgoutput`, version 1 of its protocol.
//!
//! Format: PostgreSQL, "Logical Replication Message Formats". Only what names rows is decoded.

use bytes::{Buf, Bytes};

/// A message of a transaction. Those of a transaction come together, when it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction begins, with the lower half of its number.
    Begin(u32),
    /// The transaction is over.
    Commit,
    /// A table that rows belong to, before the first of them, and when it has changed.
    Relation(Relation),
    /// A row was inserted.
    Insert {
        /// The table.
        relation: u32,
        /// The row.
        new: Vec<Field>,
    },
    /// A row was updated.
    Update {
        /// The table.
        relation: u32,
        /// The row before, if a column of the replica identity has changed, or all columns are that.
        old: Option<Old>,
        /// The row after.
        new: Vec<Field>,
    },
    /// A row was deleted.
    Delete {
        /// The table.
        relation: u32,
        /// The row.
        old: Old,
    },
    /// Tables were emptied.
    Truncate(Vec<u32>),
    /// Nothing about rows.
    Other,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Number by which messages name it.
    pub id: u32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub table: String,
    /// Columns, in the order of fields.
    pub columns: Vec<Column>,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: String,
    /// True if it is part of the replica identity.
    pub is_identity: bool,
}

/// A row before a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Old {
    /// Columns of the replica identity; the others are unknown.
    Identity(Vec<Field>),
    /// All columns.
    Whole(Vec<Field>),
}

/// The value of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// NULL.
    Null,
    /// A long value that is stored apart and has not changed. It is not told.
    Unchanged,
    /// A value in text.
    Text(String),
}

/// A message that can't be understood.
#[derive(Debug, thiserror::Error)]
#[error("postgres sent a replication message that can't be understood")]
pub struct MalformedMessage;

type Result<T> = std::result::Result<T, MalformedMessage>;

impl Message {
    /// Decodes a message.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn decode(mut message: Bytes) -> Result<Self> {
        let from = &mut message;
        let decoded = match u8(from)? {
            b'B' => {
                skip(from, 16)?;
                Self::Begin(u32(from)?)
            }
            b'C' => Self::Commit,
            b'R' => Self::Relation(relation(from)?),
            b'I' => {
                let relation = u32(from)?;
                Self::Insert { relation, new: new_row(from)? }
            }
            b'U' => {
                let relation = u32(from)?;
                let old = if from.first() == Some(&b'N') { None } else { Some(old_row(from)?) };
                Self::Update { relation, old, new: new_row(from)? }
            }
            b'D' => Self::Delete { relation: u32(from)?, old: old_row(from)? },
            b'T' => {
                let count = u32(from)?;
                skip(from, 1)?;
                Self::Truncate((0..count).map(|_| u32(from)).collect::<Result<_>>()?)
            }
            _ => Self::Other,
        };
        Ok(decoded)
    }
}

fn relation(from: &mut Bytes) -> Result<Relation> {
    let (id, schema, table) = (u32(from)?, text(from)?, text(from)?);
    skip(from, 1)?;
    let column = |from: &mut Bytes| {
        let flags = u8(from)?;
        let name = text(from)?;
        skip(from, 8)?;
        Ok(Column { name, is_identity: flags & 1 == 1 })
    };
    let count = u16(from)?;
    let columns = (0..count).map(|_| column(from)).collect::<Result<_>>()?;
    // The schema of system tables is empty.
    let schema = if schema.is_empty() { "pg_catalog".to_owned() } else { schema };
    Ok(Relation { id, schema, table, columns })
}

fn new_row(from: &mut Bytes) -> Result<Vec<Field>> {
    if u8(from)? != b'N' {
        return Err(MalformedMessage);
    }
    row(from)
}

fn old_row(from: &mut Bytes) -> Result<Old> {
    match u8(from)? {
        b'K' => Ok(Old::Identity(row(from)?)),
        b'O' => Ok(Old::Whole(row(from)?)),
        _ => Err(MalformedMessage),
    }
}

fn row(from: &mut Bytes) -> Result<Vec<Field>> {
    let count = u16(from)?;
    (0..count).map(|_| field(from)).collect()
}

fn field(from: &mut Bytes) -> Result<Field> {
    match u8(from)? {
        b'n' => Ok(Field::Null),
        b'u' => Ok(Field::Unchanged),
        b't' => {
            let length = usize::try_from(u32(from)?).map_err(|_| MalformedMessage)?;
            if from.len() < length {
                return Err(MalformedMessage);
            }
            let value = from.split_to(length);
            String::from_utf8(value.into()).map(Field::Text).map_err(|_| MalformedMessage)
        }
        _ => Err(MalformedMessage),
    }
}

fn text(from: &mut Bytes) -> Result<String> {
    let end = from.iter().position(|byte| *byte == 0).ok_or(MalformedMessage)?;
    let value = from.split_to(end);
    skip(from, 1)?;
    String::from_utf8(value.into()).map_err(|_| MalformedMessage)
}

fn u8(from: &mut Bytes) -> Result<u8> {
    from.try_get_u8().map_err(|_| MalformedMessage)
}

fn u16(from: &mut Bytes) -> Result<u16> {
    from.try_get_u16().map_err(|_| MalformedMessage)
}

fn u32(from: &mut Bytes) -> Result<u32> {
    from.try_get_u32().map_err(|_| MalformedMessage)
}

fn skip(from: &mut Bytes, count: usize) -> Result<()> {
    if from.len() < count {
        return Err(MalformedMessage);
    }
    from.advance(count);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(message: &[u8]) -> Result<Message> {
        Message::decode(Bytes::copy_from_slice(message))
    }

    fn text(text: &str) -> Field {
        Field::Text(text.to_owned())
    }

    #[test]
    fn messages_are_decoded() {
        let begin = [&b"B"[..], &[0; 16], &7_u32.to_be_bytes()].concat();
        assert_eq!(decode(&begin).unwrap(), Message::Begin(7));
        let commit = [&b"C"[..], &[0; 25]].concat();
        assert_eq!(decode(&commit).unwrap(), Message::Commit);
        let relation = [
            &b"R"[..],
            &9_u32.to_be_bytes(),
            b"public\0users\0d\0\x02",
            b"\x01id\0",
            &[0; 8],
            b"\x00name\0",
            &[0; 8],
        ]
        .concat();
        let column = |name: &str, is_identity| Column { name: name.to_owned(), is_identity };
        let columns = vec![column("id", true), column("name", false)];
        let (schema, table) = ("public".to_owned(), "users".to_owned());
        assert_eq!(decode(&relation).unwrap(), Message::Relation(Relation { id: 9, schema, table, columns }));
        let insert = decode(b"I\0\0\0\x09N\0\x02t\0\0\0\x0142n").unwrap_or(Message::Other);
        assert_eq!(insert, Message::Other, "a length that does not fit is malformed");
        let insert = decode(b"I\0\0\0\x09N\0\x02t\0\0\0\x0242n").unwrap();
        assert_eq!(insert, Message::Insert { relation: 9, new: vec![text("42"), Field::Null] });
        let update = decode(b"U\0\0\0\x09N\0\x02t\0\0\0\x011u").unwrap();
        let new = vec![text("1"), Field::Unchanged];
        assert_eq!(update, Message::Update { relation: 9, old: None, new: new.clone() });
        let update = decode(b"U\0\0\0\x09K\0\x02t\0\0\0\x012nN\0\x02t\0\0\0\x011u").unwrap();
        let old = Some(Old::Identity(vec![text("2"), Field::Null]));
        assert_eq!(update, Message::Update { relation: 9, old, new });
        let delete = decode(b"D\0\0\0\x09O\0\x01t\0\0\0\x012").unwrap();
        assert_eq!(delete, Message::Delete { relation: 9, old: Old::Whole(vec![text("2")]) });
        let truncate = decode(b"T\0\0\0\x02\x01\0\0\0\x09\0\0\0\x0a").unwrap();
        assert_eq!(truncate, Message::Truncate(vec![9, 10]));
        assert_eq!(decode(b"Y\0\0\0\0").unwrap(), Message::Other);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_malformed(kind in "[BCRIUDTOYM]", bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let message = [kind.as_bytes(), &bytes].concat();
            let _ = decode(&message);
        }
    }
}
