//! Errors in what Postgres tells of changes.

use super::Check;
use crate::{
    policy::Source,
    spec::{Changes, Notifications, RowPurge, TableChanges},
    template::placeholders,
    trigger::is_column,
};

impl Check {
    pub(in crate::policy) fn notifications(
        &mut self,
        at: &str,
        notifications: &Notifications,
        sources: &[(String, Source)],
    ) {
        let Notifications { source, channel } = notifications;
        self.postgres_source(at, source, sources);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let is_name = channel.len() <= 63
            && channel.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && channel.chars().all(is_plain);
        if !is_name {
            let message = "write the name of a channel in letters, digits and _, . or -, such as larder";
            self.refuse(&format!("{at}.channel"), message);
        }
    }

    pub(in crate::policy) fn changes(&mut self, at: &str, changes: &Changes, sources: &[(String, Source)]) {
        let Changes { source, publication, tables } = changes;
        self.postgres_source(at, source, sources);
        if publication.is_empty() {
            self.refuse(&format!("{at}.publication"), "name a publication of the tables");
        }
        if tables.is_empty() {
            self.refuse(&format!("{at}.tables"), "list the tables whose changes purge");
        }
        for (index, table) in tables.iter().enumerate() {
            let at = format!("{at}.tables[{index}].purge");
            let TableChanges { schema: _, table: _, purge } = table;
            let RowPurge { tags, paths, prefixes, everything, soft: _ } = purge;
            if tags.is_empty() && paths.is_empty() && prefixes.is_empty() && !everything {
                let message =
                    "nothing to purge when a row changes: set tags, paths or prefixes, or everything: true";
                self.refuse(&at, message);
            }
            for (index, tag) in tags.iter().enumerate() {
                self.columns(&format!("{at}.tags[{index}]"), tag);
            }
            for (list, paths) in [("paths", paths), ("prefixes", prefixes)] {
                for (index, path) in paths.iter().enumerate() {
                    self.columns(&format!("{at}.{list}[{index}]"), path.as_str());
                }
            }
        }
    }

    fn columns(&mut self, at: &str, text: &str) {
        if let Some(name) = placeholders(text).find(|name| !is_column(name)) {
            let message = format!(
                "{text:?} uses {{{name}}}: write a column of the row in letters, digits and _, such as {{id}}"
            );
            self.refuse(at, message);
        }
    }
}
