//! Checks that a publication has what a policy reads, and remedies where it has not.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use larder_policy::spec::{Changes, TableChanges};

use super::{replication::ServerError, session::Session};

/// The publication, each thing that it publishes.
const PUBLICATION: &str = "
select pubinsert and pubupdate and pubdelete and pubtruncate from pg_publication where pubname = $1";

/// A table: its kind, its columns, those whose old values are told, and what is published of it. A row filter and a list of columns are new in
/// Postgres 15.
const TABLE: &str = "
select c.relkind::text,
  array(select attname::text from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped),
  array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and (c.relreplident = 'f'
    or exists (select from pg_index i where i.indrelid = c.oid and a.attnum = any(i.indkey)
      and (c.relreplident = 'd' and i.indisprimary or c.relreplident = 'i' and i.indisreplident)))),
  p.pubname is not null,
  to_jsonb(p) ->> 'rowfilter',
  array(select jsonb_array_elements_text(nullif(to_jsonb(p) -> 'attnames', 'null')))
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_publication_tables p on p.pubname = $1 and p.schemaname = n.nspname and p.tablename = c.relname
where n.nspname = $2 and c.relname = $3";

/// Checks a publication, and returns advice if old values of columns are not told.
///
/// # Errors
/// If changes of a table are not published as a whole. The message has the remedy.
pub async fn check(session: &Session, spec: &Changes) -> anyhow::Result<Option<String>> {
    let Changes { source: _, publication, tables } = spec;
    let name = identifier(publication);
    let rows = session.query(PUBLICATION, &[publication]).await?;
    let Some(row) = rows.first() else {
        let tables: BTreeSet<_> = tables.iter().map(qualified).collect();
        let tables = tables.into_iter().collect::<Vec<_>>().join(", ");
        bail!("there is no publication {name}: run CREATE PUBLICATION {name} FOR TABLE {tables}");
    };
    ensure!(
        row.try_get::<_, bool>(0)?,
        "publication {name} leaves out changes: run ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"
    );
    let mut advice = None;
    for rule in tables {
        let table = qualified(rule);
        let rows = session.query(TABLE, &[publication, &rule.schema, &rule.table]).await?;
        let row = rows.first().with_context(|| format!("there is no table {table}"))?;
        let (kind, columns): (String, Vec<String>) = (row.try_get(0)?, row.try_get(1)?);
        let (identity, is_published): (Vec<String>, bool) = (row.try_get(2)?, row.try_get(3)?);
        let (filter, published): (Option<String>, Vec<String>) = (row.try_get(4)?, row.try_get(5)?);
        let used = rule.purge.columns();
        let missing = used.iter().find(|column| !columns.iter().any(|known| known == *column));
        if let Some(column) = missing {
            bail!("table {table} has no column {column:?}");
        }
        if !is_published {
            let remedy = if kind == "p" {
                format!(
                    "ALTER PUBLICATION {name} SET (publish_via_partition_root = true), and ALTER PUBLICATION {name} ADD TABLE {table} if it lacks it"
                )
            } else {
                format!("ALTER PUBLICATION {name} ADD TABLE {table}")
            };
            bail!("publication {name} does not publish table {table}: run {remedy}");
        }
        ensure!(
            filter.is_none(),
            "publication {name} has only some rows of table {table}: drop the table from it, and add it without WHERE"
        );
        let unpublished = used
            .iter()
            .find(|column| !published.is_empty() && !published.iter().any(|known| known == *column));
        if let Some(column) = unpublished {
            bail!(
                "publication {name} leaves out column {column:?} of table {table}: add it to the list of columns"
            );
        }
        let untold = used.iter().find(|column| !identity.iter().any(|known| known == *column));
        if let Some(column) = untold.filter(|_| advice.is_none()) {
            advice = Some(format!(
                "postgres does not tell old values of column {column:?} of table {table}, so that an update or a delete purges all that \
                 any value could name: run ALTER TABLE {table} REPLICA IDENTITY FULL"
            ));
        }
    }
    Ok(advice)
}

/// Adds the remedy to an error of a replication connection.
pub fn with_remedy(error: anyhow::Error) -> anyhow::Error {
    let Some(refusal) = error.downcast_ref::<ServerError>() else { return error };
    let remedy = match refusal.code.as_str() {
        "42501" => {
            "let the user of the URL replicate: ALTER ROLE … REPLICATION (on RDS: GRANT rds_replication TO …)"
        }
        "55000" => "set wal_level = logical and restart Postgres (on RDS: rds.logical_replication = 1)",
        "53400" => "raise max_replication_slots",
        "53300" => "raise max_wal_senders",
        _ => return error,
    };
    error.context(remedy)
}

fn qualified(rule: &TableChanges) -> String {
    format!("{}.{}", identifier(&rule.schema), identifier(&rule.table))
}

/// Returns a name as SQL has it, quoted if it must be.
fn identifier(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') && name.chars().all(is_plain) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}
