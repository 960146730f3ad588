//! Queries with parameters of the path, compiled for binding.

use std::borrow::Cow;

use crate::{Values, values::query_parameter};

/// A query whose `{name}` parameters became `$1`, `$2` ..., each bound as text and cast by the query itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundQuery {
    /// The statement to prepare. That of a query returns one column, a row as JSON text.
    pub statement: String,
    /// The parameter that each `$n` stands for.
    pub parameters: Vec<String>,
}

/// A query that cannot be compiled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueryError {
    /// The query uses an unknown parameter.
    #[error(
        "{{{0}}} has no value: use a parameter of match.path, or one of the query such as {{query.page}}"
    )]
    UnknownParameter(String),
    /// The query uses the rest of a path as it is written in a path.
    #[error("{{*{0}}} belongs into match.path: write {{{0}}} here")]
    Starred(String),
    /// The query has more than one statement.
    #[error("write one statement: take out the ';'")]
    SeveralStatements,
}

impl BoundQuery {
    /// Compiles a query. Braces inside quotes are left alone: they belong to a literal such as `'{a,b}'`.
    ///
    /// # Errors
    /// If it names a parameter that is neither in `known` nor of the query, or has several statements.
    pub fn new(query: &str, known: &[&str]) -> Result<Self, QueryError> {
        let Self { statement, parameters } = Self::statement(query, known)?;
        let statement = format!("select to_jsonb(answer)::text from (\n{statement}\n) as answer");
        Ok(Self { statement, parameters })
    }

    /// Compiles a statement that returns nothing, by the rules of [`BoundQuery::new`].
    ///
    /// # Errors
    /// As those of [`BoundQuery::new`].
    pub fn statement(statement: &str, known: &[&str]) -> Result<Self, QueryError> {
        let statement = statement.trim().trim_end_matches(';');
        let mut bound = String::with_capacity(statement.len() + 64);
        let mut parameters: Vec<String> = Vec::new();
        let mut quote = None;
        let mut rest = statement;
        while let Some(c) = rest.chars().next() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => quote = Some(c),
                (None, ';') => return Err(QueryError::SeveralStatements),
                (None, '{') => {
                    if let Some((name, after)) = rest[1..].split_once('}') {
                        if !known.contains(&name) && query_parameter(name).is_none() {
                            return Err(match name.strip_prefix('*') {
                                Some(name) => QueryError::Starred(name.to_owned()),
                                None => QueryError::UnknownParameter(name.to_owned()),
                            });
                        }
                        let known_at = parameters.iter().position(|parameter| parameter == name);
                        let number = known_at.unwrap_or_else(|| {
                            parameters.push(name.to_owned());
                            parameters.len() - 1
                        });
                        bound.push_str(&format!("${}::text", number + 1));
                        rest = after;
                        continue;
                    }
                }
                _ => {}
            }
            bound.push(c);
            rest = &rest[c.len_utf8()..];
        }
        Ok(Self { statement: bound, parameters })
    }

    /// Returns the values to bind, in the order of `$1`, `$2` ...; a missing value is null.
    pub fn bind<'a>(&self, values: &'a Values<'_>) -> Vec<Option<Cow<'a, str>>> {
        self.parameters.iter().map(|name| values.get(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_parameter_is_bound_once_as_text() {
        let query =
            BoundQuery::new("select * from t where a = {id}::int or b = {id} or c = {k};", &["id", "k"])
                .unwrap();
        assert_eq!(
            query.statement,
            "select to_jsonb(answer)::text from (\nselect * from t where a = $1::text::int or b = $1::text or c = $2::text\n) as answer"
        );
        assert_eq!(query.parameters, ["id", "k"]);
    }

    #[test]
    fn literals_are_left_alone() {
        let query = BoundQuery::new(r#"select v #>> '{a,b}' as "{x}", 'it''s {y}' from t"#, &[]).unwrap();
        assert!(query.statement.contains(r#"v #>> '{a,b}' as "{x}", 'it''s {y}'"#));
    }

    #[test]
    fn unbindable_query_is_rejected() {
        assert_eq!(BoundQuery::new("select {x}", &["id"]), Err(QueryError::UnknownParameter("x".into())));
        assert_eq!(BoundQuery::new("select {*id}", &["id"]), Err(QueryError::Starred("id".into())));
        assert_eq!(BoundQuery::new("select 1; drop table t", &[]), Err(QueryError::SeveralStatements));
        assert!(BoundQuery::new("select ';'", &[]).is_ok());
    }
}
