//! The names that transactions purge.

use std::collections::{BTreeSet, HashMap};

use larder_policy::{
    PurgeName,
    rows::ColumnValue,
    spec::{Changes, RowPurge, TableChanges},
};

use crate::sources::postgres::pgoutput::{Field, Message, Old, Relation};

/// Maximum number of names of one transaction; one with more purges all that the tables could name.
const MAX_NAMES: usize = 10_000;

/// Names that a transaction purges.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Purged {
    /// Lower half of its number.
    pub(super) transaction: u32,
    pub(super) names: BTreeSet<PurgeName>,
}

/// Transactions as they are read, one after the other.
#[derive(Debug)]
pub(super) struct Transactions<'a> {
    spec: &'a Changes,
    /// Tables that were named, each with what its rows purge.
    relations: HashMap<u32, (Relation, Vec<&'a RowPurge>)>,
    transaction: u32,
    names: BTreeSet<PurgeName>,
}

impl<'a> Transactions<'a> {
    pub(super) fn new(spec: &'a Changes) -> Self {
        Self { spec, relations: HashMap::new(), transaction: 0, names: BTreeSet::new() }
    }

    /// Returns all that the tables could name.
    pub(super) fn all(&self) -> Vec<PurgeName> {
        let names: BTreeSet<_> = self.spec.tables.iter().flat_map(|table| table.purge.all_names()).collect();
        names.into_iter().collect()
    }

    /// Takes the next message, and returns what its transaction purges if that ends with it.
    pub(super) fn take(&mut self, message: Message) -> Option<Purged> {
        match message {
            Message::Begin(transaction) => self.transaction = transaction,
            Message::Commit => {
                let names = std::mem::take(&mut self.names);
                return (!names.is_empty()).then_some(Purged { transaction: self.transaction, names });
            }
            Message::Relation(relation) => {
                let is_of =
                    |rule: &&TableChanges| (&rule.schema, &rule.table) == (&relation.schema, &relation.table);
                let rules = self.spec.tables.iter().filter(is_of).map(|rule| &rule.purge).collect();
                self.relations.insert(relation.id, (relation, rules));
            }
            Message::Insert { relation, new } => {
                self.add(relation, |table, column| value(table, &new, column));
            }
            Message::Update { relation, old, new } => {
                self.add(relation, |table, column| match (value(table, &new, column), &old) {
                    // A long value that has not changed is told as the old one.
                    (ColumnValue::Unknown, Some(old)) => old_value(table, old, column),
                    (value, _) => value,
                });
                self.add(relation, |table, column| match &old {
                    Some(old) => old_value(table, old, column),
                    // Without an old row no column of the identity has changed.
                    None if is_identity(table, column) => value(table, &new, column),
                    None => ColumnValue::Unknown,
                });
            }
            Message::Delete { relation, old } => {
                self.add(relation, |table, column| old_value(table, &old, column));
            }
            Message::Truncate(relations) => {
                for relation in relations {
                    self.add(relation, |_, _| ColumnValue::Unknown);
                }
            }
            Message::Other => {}
        }
        None
    }

    /// Adds the names of a row.
    fn add<'v>(&mut self, relation: u32, value: impl Fn(&Relation, &str) -> ColumnValue<'v>) {
        if self.names.len() > MAX_NAMES {
            // All names that there are.
            return;
        }
        let Some((relation, rules)) = self.relations.get(&relation) else {
            self.names.extend(self.all());
            return;
        };
        let names = rules.iter().flat_map(|rule| rule.names(|column| value(relation, column)));
        self.names.extend(names);
        if self.names.len() > MAX_NAMES {
            self.names.extend(self.all());
        }
    }
}

fn value<'v>(relation: &Relation, row: &'v [Field], column: &str) -> ColumnValue<'v> {
    let field = relation.columns.iter().position(|known| known.name == column).and_then(|at| row.get(at));
    match field {
        Some(Field::Text(text)) => ColumnValue::Text(text),
        Some(Field::Null) => ColumnValue::Null,
        Some(Field::Unchanged) | None => ColumnValue::Unknown,
    }
}

fn old_value<'v>(relation: &Relation, old: &'v Old, column: &str) -> ColumnValue<'v> {
    match old {
        Old::Whole(row) => value(relation, row, column),
        Old::Identity(row) if is_identity(relation, column) => value(relation, row, column),
        Old::Identity(_) => ColumnValue::Unknown,
    }
}

fn is_identity(relation: &Relation, column: &str) -> bool {
    relation.columns.iter().any(|known| known.name == column && known.is_identity)
}

#[cfg(test)]
mod tests {
    use larder_policy::policy::Purges;

    use super::*;
    use crate::sources::postgres::pgoutput::Column;

    const BY_KEY: &str =
        r#"{source: a, publication: p, tables: [{table: users, purge: {paths: ["/users/{id}"]}}]}"#;
    const BY_TEAM: &str =
        r#"{source: a, publication: p, tables: [{table: users, purge: {paths: ["/teams/{team}"]}}]}"#;

    fn relation(identity: [bool; 2]) -> Message {
        let column = |name: &str, is_identity| Column { name: name.to_owned(), is_identity };
        let columns = vec![column("id", identity[0]), column("team", identity[1])];
        Message::Relation(Relation { id: 1, schema: "public".to_owned(), table: "users".to_owned(), columns })
    }

    fn row(fields: &[&str]) -> Vec<Field> {
        let field = |text: &&str| match *text {
            "NULL" => Field::Null,
            "UNCHANGED" => Field::Unchanged,
            text => Field::Text(text.to_owned()),
        };
        fields.iter().map(field).collect()
    }

    /// Returns the names of a transaction with this change.
    fn purged(spec: &str, identity: [bool; 2], change: Message) -> Vec<PurgeName> {
        let spec: Changes = serde_yaml::from_str(spec).unwrap();
        let mut transactions = Transactions::new(&spec);
        for message in [Message::Begin(7), relation(identity), change] {
            assert_eq!(transactions.take(message), None, "nothing before the commit");
        }
        let Some(Purged { transaction: 7, names }) = transactions.take(Message::Commit) else {
            return vec![];
        };
        assert_eq!(transactions.take(Message::Commit), None);
        names.into_iter().collect()
    }

    fn paths(paths: &[&str], prefixes: &[&str]) -> Vec<PurgeName> {
        let list = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Purges { paths: list(paths), prefixes: list(prefixes), ..Purges::default() }.names()
    }

    const KEY: [bool; 2] = [true, false];
    const FULL: [bool; 2] = [true, true];

    #[test]
    fn old_and_new_values_count() {
        let new = || row(&["2", "b"]);
        let insert = || Message::Insert { relation: 1, new: new() };
        assert_eq!(purged(BY_KEY, KEY, insert()), paths(&["/users/2"], &[]));
        assert_eq!(purged(BY_TEAM, KEY, insert()), paths(&["/teams/b"], &[]));
        let update = |old| Message::Update { relation: 1, old, new: new() };
        assert_eq!(purged(BY_KEY, KEY, update(None)), paths(&["/users/2"], &[]));
        let key = || Some(Old::Identity(row(&["1", "NULL"])));
        assert_eq!(purged(BY_KEY, KEY, update(key())), paths(&["/users/1", "/users/2"], &[]));
        let whole = || Old::Whole(row(&["1", "a"]));
        assert_eq!(purged(BY_TEAM, FULL, update(Some(whole()))), paths(&["/teams/a", "/teams/b"], &[]));
        assert_eq!(
            purged(BY_TEAM, FULL, Message::Delete { relation: 1, old: whole() }),
            paths(&["/teams/a"], &[])
        );
    }

    #[test]
    fn values_that_are_not_told_may_be_any() {
        let any = paths(&["/teams/b"], &["/teams/"]);
        let update = |old, team| Message::Update { relation: 1, old, new: row(&["2", team]) };
        assert_eq!(purged(BY_TEAM, KEY, update(None, "b")), any);
        assert_eq!(purged(BY_TEAM, KEY, update(Some(Old::Identity(row(&["1", "NULL"]))), "b")), any);
        assert_eq!(purged(BY_TEAM, KEY, update(None, "UNCHANGED")), paths(&[], &["/teams/"]));
        let whole = Some(Old::Whole(row(&["1", "a"])));
        assert_eq!(purged(BY_TEAM, FULL, update(whole, "UNCHANGED")), paths(&["/teams/a"], &[]));
        let delete = Message::Delete { relation: 1, old: Old::Identity(row(&["1", "NULL"])) };
        assert_eq!(purged(BY_TEAM, KEY, delete), paths(&[], &["/teams/"]));
        assert_eq!(purged(BY_TEAM, KEY, Message::Truncate(vec![1])), paths(&[], &["/teams/"]));
        let unknown = Message::Insert { relation: 2, new: row(&["1"]) };
        assert_eq!(purged(BY_TEAM, KEY, unknown), paths(&[], &["/teams/"]), "of an unknown table");
    }

    #[test]
    fn value_that_is_null_and_another_table_name_nothing() {
        let insert = Message::Insert { relation: 1, new: row(&["1", "NULL"]) };
        assert_eq!(purged(BY_TEAM, KEY, insert), []);
        let other = BY_KEY.replace("table: users", "table: others");
        assert_eq!(purged(&other, KEY, Message::Truncate(vec![1])), []);
    }

    #[test]
    fn long_transaction_purges_all_that_tables_could_name() {
        let spec: Changes = serde_yaml::from_str(BY_KEY).unwrap();
        let mut transactions = Transactions::new(&spec);
        transactions.take(relation(KEY));
        for id in 0..3 * MAX_NAMES {
            transactions.take(Message::Insert { relation: 1, new: row(&[&id.to_string(), "a"]) });
        }
        let names = transactions.take(Message::Commit).unwrap().names;
        assert!(names.len() < MAX_NAMES + 10 && transactions.all().iter().all(|name| names.contains(name)));
    }
}
