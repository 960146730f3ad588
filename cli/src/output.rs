//! Output of commands: text for people, or data.

use std::{
    io::{self, ErrorKind, Write},
    ops::ControlFlow,
};

use clap::ValueEnum;
use larder_api::json::in_ascii;
use serde::Serialize;
use serde_yaml::Value;

use crate::{
    error::{Error, Result},
    paint::Paint,
};

const SERIALIZABLE: &str = "reports have strings as keys and no other serializer than the derived ones";

/// Members whose own members are named by requests and responses, not by Larder.
const NAMED_BY_DATA: [&str; 2] = ["headers", "parameters"];

/// Format of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Destination and form of what a command prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Option<Format>,
    paint: Paint,
}

impl Output {
    /// Returns the output to standard output, with colors only on a terminal.
    pub(crate) fn to_terminal(format: Option<Format>) -> Self {
        Self { format, paint: Paint::for_standard_output() }
    }

    /// Returns true if no format of data was asked for.
    pub(crate) fn is_for_people(&self) -> bool {
        self.format.is_none()
    }

    /// Prints a value as data, or the text for people if no format was asked for.
    pub(crate) fn print(&self, value: &impl Serialize, text: impl FnOnce(Paint) -> String) -> Result<()> {
        print(&match self.format {
            None => text(self.paint),
            Some(format) => data(format, value),
        })
    }
}

impl Output {
    /// Prints a value of a sequence without an end: a line of JSON, a YAML document, or the text for people. Breaks when nobody
    /// reads any more.
    pub(crate) fn print_next(
        &self,
        value: &impl Serialize,
        text: impl FnOnce(Paint) -> String,
    ) -> Result<ControlFlow<()>> {
        write(
            io::stdout(),
            &match self.format {
                None => text(self.paint),
                Some(format) => next_data(format, value),
            },
        )
    }
}

/// Returns a value as data that changes nothing on a terminal: texts come from policies, clients and servers.
fn data(format: Format, value: &impl Serialize) -> String {
    let value = named_as_in_kubernetes(value);
    match format {
        Format::Json => in_ascii(serde_json::to_string_pretty(&value).expect(SERIALIZABLE)) + "\n",
        Format::Yaml => serde_yaml::to_string(&value).expect(SERIALIZABLE),
    }
}

/// Returns a value of a sequence as data that changes nothing on a terminal: a line of JSON, or a YAML document.
fn next_data(format: Format, value: &impl Serialize) -> String {
    match format {
        Format::Json => {
            in_ascii(serde_json::to_string(&named_as_in_kubernetes(value)).expect(SERIALIZABLE)) + "\n"
        }
        Format::Yaml => format!("---\n{}", data(format, value)),
    }
}

/// Returns a value whose members are in camelCase, as those of Kubernetes are; those of the admin API are in snake_case.
fn named_as_in_kubernetes(value: &impl Serialize) -> Value {
    in_camel_case(serde_yaml::to_value(value).expect(SERIALIZABLE))
}

fn in_camel_case(value: Value) -> Value {
    let member = |(name, value): (Value, Value)| {
        let value = match name.as_str() {
            Some(name) if NAMED_BY_DATA.contains(&name) => value,
            _ => in_camel_case(value),
        };
        (name.as_str().map_or(name.clone(), |name| Value::from(camel_case(name))), value)
    };
    match value {
        Value::Sequence(all) => all.into_iter().map(in_camel_case).collect(),
        Value::Mapping(members) => Value::Mapping(members.into_iter().map(member).collect()),
        other => other,
    }
}

/// Returns a name of Rust in camelCase. Names with other characters, such as those of tiers, stay as they are.
fn camel_case(name: &str) -> String {
    if !name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
        return name.to_owned();
    }
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut name, word| {
        let mut letters = word.chars();
        name.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        name.extend(letters);
        name
    })
}

/// Writes a text to standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    write(io::stdout(), text).map(|_| ())
}

/// Writes a text. The reader may close the pipe when it has read enough, which breaks.
fn write(mut output: impl Write, text: &str) -> Result<ControlFlow<()>> {
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(Error::Unwritable { file: "standard output".to_owned(), error }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn data_has_no_control_characters() {
        let value = ["a\u{9b}31m\u{7f}\u{1b}é\u{85}"];
        for format in [Format::Json, Format::Yaml] {
            for text in [data(format, &value), next_data(format, &value)] {
                assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
                assert_eq!(serde_yaml::from_str::<[String; 1]>(&text).unwrap(), value);
            }
        }
    }

    #[test]
    fn members_are_in_camel_case_unless_data_names_them() {
        let value = json!({
            "last_errors": {"postgres/my_catalog": "down"}, "l1_hits": 1, "parameters": {"user_id": "1"},
            "routes": [{"headers": {"x_a": "b"}, "tags_from": ["my_tag"]}],
        });
        let expected = json!({
            "lastErrors": {"postgres/my_catalog": "down"}, "l1Hits": 1, "parameters": {"user_id": "1"},
            "routes": [{"headers": {"x_a": "b"}, "tagsFrom": ["my_tag"]}],
        });
        for format in [Format::Json, Format::Yaml] {
            let read: serde_json::Value = serde_yaml::from_str(&data(format, &value)).unwrap();
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn output_that_is_lost_is_an_error_unless_nobody_reads_on() {
        assert!(matches!(write(Failing(ErrorKind::StorageFull), "a"), Err(Error::Unwritable { .. })));
        assert!(matches!(write(Failing(ErrorKind::BrokenPipe), "a"), Ok(ControlFlow::Break(()))));
    }
}
