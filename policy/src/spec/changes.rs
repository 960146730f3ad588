//! Changes of tables in Postgres, as written in a policy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PathTemplate;

/// Changes of rows in Postgres, whoever makes them, and the stored responses that each invalidates: by logical replication, without
/// a trigger. Needs `wal_level = logical`, a user with REPLICATION, and a publication of the tables. One pod of those that share a
/// Redis reads them; without Redis each pod does, with a replication slot of its own. The slot is temporary, so that Postgres
/// keeps nothing for pods that are gone: after any gap all is purged that the tables could name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Name of a member of `sources`, a Postgres server: the primary, reached without a pooler. Two more connections of the pod that
    /// reads are made there, and one of each that waits.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,

    /// Name of a publication with the tables, for all their rows and for inserts, updates, deletes and truncates.
    #[schemars(length(min = 1, max = 63))]
    pub publication: String,

    /// Tables, and the responses that changes of their rows invalidate.
    #[schemars(length(min = 1, max = 64))]
    pub tables: Vec<TableChanges>,
}

/// A table, and the stored responses that a change of a row invalidates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TableChanges {
    /// Schema of the table.
    #[serde(default = "default_schema")]
    #[schemars(length(min = 1, max = 63))]
    pub schema: String,

    /// Name of the table.
    #[schemars(length(min = 1, max = 63))]
    pub table: String,

    /// Stored responses that a change of a row invalidates, in every pod: those that the row names as it was, and as it is.
    pub purge: RowPurge,
}

fn default_schema() -> String {
    "public".to_owned()
}

/// Stored responses to invalidate when a row changes. `{id}` stands for the value of column `id`, as Postgres writes it in text; a name
/// with a value that is NULL is left out. Postgres tells the old values of the columns of the primary key alone, and those of all columns
/// after `ALTER TABLE … REPLICA IDENTITY FULL`: where the old value of a column is not told, everything is purged that any value could
/// name, which is everything of the policy for a tag.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.tags) || has(self.paths) || has(self.prefixes) || (has(self.everything) && self.everything)",
        "message": "nothing to purge when a row changes: set tags, paths or prefixes, or everything: true",
    },
    {
        "rule": "!has(self.tags) || self.tags.all(t, t.matches('^([^{}]|[{][A-Za-z_][A-Za-z0-9_]*[}])*$'))",
        "message": "purge.tags may only use columns of the row, in letters, digits and _, such as user:{id}",
    },
    {
        "rule": "(has(self.paths) ? self.paths : []).all(p, !p.contains('{*')) && (has(self.prefixes) ? self.prefixes : []).all(p, !p.contains('{*'))",
        "message": "a row has no {*path}: purge.paths and purge.prefixes may only use columns, such as /api/users/{id}",
    },
]))]
pub struct RowPurge {
    /// Tags: every stored response with one of them is invalidated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 128)))]
    pub tags: Vec<String>,

    /// Paths: every stored response under one of them is invalidated, regardless of host, scheme, query and variant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub paths: Vec<PathTemplate>,

    /// Prefixes of paths, in whole segments: `/api/users` stands for `/api/users`, `/api/users/7` and all that is below, but
    /// not for `/api/users2`. Of more than 32 segments the first 32 count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub prefixes: Vec<PathTemplate>,

    /// Invalidates every stored response of the policy, whatever row changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub everything: bool,

    /// Makes responses stale instead, so that they are served while they are refreshed, and while the application fails, as
    /// `staleWhileRevalidate` and `staleIfError` allow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub soft: bool,
}
