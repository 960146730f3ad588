//! Triggers of Postgres that notify sidecars of changed rows.
//!
//! # Guarantees
//! - No statement fails because of the trigger: a payload is shorter than Postgres allows, and names that would not fit become
//!   "everything". So do those that can't be made, as of a column that was renamed later.
//! - Names do not depend on the settings of the session that writes.
//! - A value leads out of no path or prefix: what is below the literal part of the template is purged then.
//! - Rows before and after a change both count.

use std::collections::BTreeSet;

use crate::template::placeholders;

/// Bytes of names in one payload, besides those of the last name. Postgres takes less than 8,000 bytes.
const NAMES_BYTES: usize = 3_500;

/// Maximum length of one name as JSON, in bytes.
const MAX_NAME: usize = 4_000;

/// Maximum number of names of one statement; more become "everything".
const MAX_NAMES: usize = 1_000;

/// Maximum length of an identifier in Postgres, in bytes.
const MAX_IDENTIFIER: usize = 63;

/// Settings of the function: the text of a value, and of a literal, must not depend on the session that writes.
const SETTINGS: &str = "set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set timezone = 'UTC' set lc_monetary = 'C'
set bytea_output = 'hex' set extra_float_digits = 3";

/// Regular expression of paths with a segment that some servers read as `.` or `..`, as the text of a literal with escapes.
const LEADS_OUT: &str = r"(^|[/\\\\;]|%(25)*(2f|5c|3b))([.]|%(25)*2e){1,2}($|[/\\\\;]|%(25)*(2f|5c|3b))";

/// Quotes around the function, and around its query.
const QUOTES: [&str; 2] = ["$larder$", "$query$"];

/// A table, and the names that its rows purge. `{id}` stands for the value of a column.
#[derive(Clone, Debug, Default)]
pub struct Trigger {
    /// Schema of the table.
    pub schema: String,
    /// The table.
    pub table: String,
    /// Channel of the notifications.
    pub channel: String,
    /// Templates of tags.
    pub tags: Vec<String>,
    /// Templates of paths.
    pub paths: Vec<String>,
    /// Templates of prefixes of paths.
    pub prefixes: Vec<String>,
    /// True if each change purges everything.
    pub everything: bool,
    /// True if purges are soft.
    pub soft: bool,
}

/// Reason that there is no such trigger.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TriggerError {
    /// No name is purged.
    #[error("nothing to purge: name tags, paths or prefixes, or everything")]
    NamesNothing,
    /// A path does not begin with a slash, or has a query.
    #[error("{0:?} is not a path: start it with '/' and leave out '?', '#' and '*'")]
    NotAPath(String),
    /// A placeholder is no name of a column.
    #[error(
        "{template:?} uses {{{name}}}: write the name of a column in letters, digits and _, such as {{id}}"
    )]
    NotAColumn {
        /// The template.
        template: String,
        /// The text between braces.
        name: String,
    },
    /// Postgres notifies on no such channel.
    #[error("{0:?} is not a channel: its name has 1 to 63 bytes")]
    NotAChannel(String),
    /// A template has a quote of the printed statements.
    #[error("{0:?} has a {1}, by which the printed function is quoted: leave it out")]
    HasQuote(String, &'static str),
    /// The trigger's function would have a name that Postgres cuts off.
    #[error("{0:?} is too long: the function is named after the table, and a name has at most 63 bytes")]
    TooLong(String),
}

impl Trigger {
    /// Returns the statements that create the trigger, or replace it.
    ///
    /// # Errors
    /// If a name can't be used.
    pub fn sql(&self) -> Result<String, TriggerError> {
        let Self { schema, table, channel, tags, paths, prefixes, everything, soft } = self;
        let function = format!("larder_notify_{table}");
        if function.len() > MAX_IDENTIFIER {
            return Err(TriggerError::TooLong(table.clone()));
        }
        if channel.is_empty() || channel.len() > MAX_IDENTIFIER {
            return Err(TriggerError::NotAChannel(channel.clone()));
        }
        let is_path = |path: &&String| path.starts_with('/') && !path.contains(['?', '#', '*']);
        if let Some(path) = paths.iter().chain(prefixes).find(|path| !is_path(path)) {
            return Err(TriggerError::NotAPath(path.clone()));
        }
        let kinds = [("tags", tags), ("paths", paths), ("prefixes", prefixes)];
        let templates = kinds.into_iter().flat_map(|(kind, list)| list.iter().map(move |text| (kind, text)));
        let names = templates.map(|(kind, text)| names_of(kind, text)).collect::<Result<Vec<_>, _>>()?;
        let values = names.iter().flatten().map(|(kind, name)| format!("    ('{kind}', {name})"));
        let values = values.collect::<Vec<_>>().join(",\n");
        let all =
            literal(&format!("{{\"everything\": true{}}}", if *soft { ", \"soft\": true" } else { "" }));
        let channel_literal = literal(channel);
        let body = if *everything {
            notify_of_everything(&channel_literal, &all)
        } else if values.is_empty() {
            return Err(TriggerError::NamesNothing);
        } else {
            notify_of_names(&channel_literal, &all, &values, *soft)
        };
        // What the templates and the channel bring along must not end the quotes.
        for quote in QUOTES {
            let theirs = [tags, paths, prefixes].into_iter().flatten().chain([channel]);
            if let Some(text) = theirs.into_iter().find(|text| text.contains(quote)) {
                return Err(TriggerError::HasQuote(text.clone(), quote));
            }
        }
        let columns: BTreeSet<_> =
            [tags, paths, prefixes].into_iter().flatten().flat_map(|text| placeholders(text)).collect();
        let (table, function) = (qualified(schema, table), qualified(schema, &function));
        let triggers = [
            ("insert", " referencing new table as larder_new"),
            ("update", " referencing old table as larder_old new table as larder_new"),
            ("delete", " referencing old table as larder_old"),
            ("truncate", ""),
        ]
        .map(|(event, tables)| {
            format!(
                "drop trigger if exists larder_{event} on {table};\n\
                 create trigger larder_{event} after {event} on {table}{tables}\n  \
                 for each statement execute function {function}();\n"
            )
        });
        Ok(format!(
            "begin;\n\n{}create or replace function {function}() returns trigger\n\
             language plpgsql {SETTINGS} as $larder$\n{body}$larder$;\n\n{}\ncommit;\n",
            check_of(&table, &columns),
            triggers.concat()
        ))
    }
}

/// Returns a statement that fails unless the rows of a table have these columns. The function would learn it with the first write.
fn check_of(table: &str, columns: &BTreeSet<&str>) -> String {
    if columns.is_empty() {
        return String::new();
    }
    let columns: Vec<_> = columns.iter().map(|name| text_of(name)).collect();
    let columns = columns.join(", ");
    format!(
        "do $larder$ begin\n  perform {columns} from (select * from {table}) as r limit 0;\nend $larder$;\n\n"
    )
}

/// Returns the body of a function that purges everything.
fn notify_of_everything(channel: &str, all: &str) -> String {
    format!("begin\n  perform pg_notify({channel}, {all});\n  return null;\nend\n")
}

/// Returns the body of a function that purges these names of changed rows, each a kind and an expression.
fn notify_of_names(channel: &str, all: &str, values: &str, is_soft: bool) -> String {
    let member = |kind| format!("'{kind}', coalesce(json_agg(name) filter (where kind = '{kind}'), '[]')");
    let soft = is_soft.then(|| "'soft', true".to_owned());
    let members: Vec<_> = ["tags", "paths", "prefixes"].map(member).into_iter().chain(soft).collect();
    let members = members.join(",\n      ");
    format!(
        "declare
  changed text := case tg_op
    when 'INSERT' then 'select * from larder_new'
    when 'DELETE' then 'select * from larder_old'
    else 'select * from larder_old union all select * from larder_new'
  end;
  payload text;
begin
  if tg_op = 'TRUNCATE' then
    perform pg_notify({channel}, {all});
    return null;
  end if;
  begin
    for payload in execute $query$
  with named as (
    select distinct n.kind, n.name
    from ($query$ || changed || $query$) as r
    cross join lateral (values
{values}
    ) as n (kind, name)
    where n.name is not null
  ), sized as (
    select kind, name, octet_length(to_json(name)::text) + 2 as size from named
  ), parts as (
    select kind, name, count(*) over () > {MAX_NAMES} or max(size) over () > {MAX_NAME} as is_much,
      sum(size) over (order by kind, name) / {NAMES_BYTES} as part
    from sized
  )
  select case when bool_or(is_much) then {all} else json_build_object(
      {members})::text end
  from parts
  group by case when is_much then 0 else part end
    $query$ loop
      perform pg_notify({channel}, payload);
    end loop;
  exception when others then
    raise log 'larder: the names of changed rows can not be told, everything is purged: %', sqlerrm;
    perform pg_notify({channel}, {all});
  end;
  return null;
end
"
    )
}

/// Returns the expressions of the names that a template makes, each with its kind. One is NULL where nothing has that name.
fn names_of<'a>(kind: &'a str, template: &str) -> Result<Vec<(&'a str, String)>, TriggerError> {
    let name = expression(template, |column| {
        let text = text_of(column);
        format!(
            "(select case when v ~ '^[A-Za-z0-9._~-]*$' then v \
             else regexp_replace(encode(convert_to(v, 'UTF8'), 'hex'), '(..)', E'%\\\\1', 'g') end \
             from (select {text} as v) as c)"
        )
    })?;
    let before = template.split('{').next().unwrap_or_default();
    Ok(match kind {
        "tags" => vec![(kind, format!("nullif(btrim({name}), '')"))],
        _ if before == template => vec![(kind, name)],
        _ => {
            let within = literal(&before[..=before.rfind('/').unwrap_or_default()]);
            let leads_out = format!("{} ~* E'{LEADS_OUT}'", expression(template, text_of)?);
            vec![
                (kind, format!("case when not {leads_out} then {name} end")),
                ("prefixes", format!("case when {leads_out} then {within} end")),
            ]
        }
    })
}

/// Returns the expression of a column's value. Without a collation of its own, columns of two would not be comparable, and those of some
/// could not be matched.
fn text_of(column: &str) -> String {
    format!("(r.{}::text collate \"C\")", identifier(column))
}

/// Returns the expression of a template with the values of a row.
fn expression(template: &str, value: impl Fn(&str) -> String) -> Result<String, TriggerError> {
    if let Some(name) = placeholders(template).find(|name| !is_column(name)) {
        return Err(TriggerError::NotAColumn { template: template.to_owned(), name: name.to_owned() });
    }
    let mut parts = vec![];
    let mut rest = template;
    while let Some((before, (name, after))) =
        rest.split_once('{').and_then(|(before, after)| Some((before, after.split_once('}')?)))
    {
        parts.extend((!before.is_empty()).then(|| literal(before)));
        parts.push(value(name));
        rest = after;
    }
    parts.extend((!rest.is_empty() || parts.is_empty()).then(|| literal(rest)));
    Ok(format!("({})", parts.join(" || ")))
}

/// Returns true for a name that a placeholder may have.
pub(crate) fn is_column(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    // A backslash means itself, whatever standard_conforming_strings says.
    if text.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger() -> Trigger {
        Trigger {
            schema: "public".into(),
            table: "users".into(),
            channel: "larder".into(),
            tags: vec!["user:{id}".into()],
            ..Trigger::default()
        }
    }

    #[test]
    fn identifiers_and_literals_are_quoted() {
        let odd = Trigger {
            table: "us\"ers".into(),
            channel: "it's".into(),
            tags: vec!["o'user:{Id}:\\x".into()],
            ..trigger()
        };
        let sql = odd.sql().unwrap();
        for expected in ["\"public\".\"us\"\"ers\"", "'it''s'", "'o''user:'", "r.\"Id\"::text", "E':\\\\x'"] {
            assert!(sql.contains(expected), "no {expected} in {sql}");
        }
    }

    #[test]
    fn every_event_has_a_trigger() {
        let sql = Trigger { tags: vec![], everything: true, ..trigger() }.sql().unwrap();
        for event in ["insert", "update", "delete", "truncate"] {
            assert!(sql.contains(&format!("create trigger larder_{event} after {event} on")), "{sql}");
        }
    }

    #[test]
    fn unusable_names_are_refused() {
        let with = |tag: &str| Trigger { tags: vec![tag.into()], ..trigger() }.sql().unwrap_err();
        assert!(matches!(with("a:{*id}"), TriggerError::NotAColumn { .. }));
        assert!(matches!(with("a:{i d}"), TriggerError::NotAColumn { .. }));
        assert!(matches!(with("a:$larder$"), TriggerError::HasQuote(..)));
        assert_eq!(Trigger { tags: vec![], ..trigger() }.sql().unwrap_err(), TriggerError::NamesNothing);
        for channel in [String::new(), "c".repeat(64)] {
            let unusable = Trigger { channel: channel.clone(), ..trigger() };
            assert_eq!(unusable.sql().unwrap_err(), TriggerError::NotAChannel(channel));
        }
        let path = Trigger { paths: vec!["users/{id}".into()], ..trigger() };
        assert_eq!(path.sql().unwrap_err(), TriggerError::NotAPath("users/{id}".into()));
        let long = Trigger { table: "t".repeat(50), ..trigger() };
        assert!(matches!(long.sql().unwrap_err(), TriggerError::TooLong(_)));
    }
}
