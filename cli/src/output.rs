//! Output of commands: text for people, or data.

use std::{
    io::{self, ErrorKind, Write},
    ops::ControlFlow,
};

use clap::ValueEnum;
use larder_api::json::in_ascii;
use serde::Serialize;

use crate::{
    error::{Error, Result},
    paint::Paint,
};

const SERIALIZABLE: &str = "reports have strings as keys and no other serializer than the derived ones";

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
    match format {
        Format::Json => in_ascii(serde_json::to_string_pretty(value).expect(SERIALIZABLE)) + "\n",
        Format::Yaml => serde_yaml::to_string(value).expect(SERIALIZABLE),
    }
}

/// Returns a value of a sequence as data that changes nothing on a terminal: a line of JSON, or a YAML document.
fn next_data(format: Format, value: &impl Serialize) -> String {
    match format {
        Format::Json => in_ascii(serde_json::to_string(value).expect(SERIALIZABLE)) + "\n",
        Format::Yaml => format!("---\n{}", data(format, value)),
    }
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
    fn output_that_is_lost_is_an_error_unless_nobody_reads_on() {
        assert!(matches!(write(Failing(ErrorKind::StorageFull), "a"), Err(Error::Unwritable { .. })));
        assert!(matches!(write(Failing(ErrorKind::BrokenPipe), "a"), Ok(ControlFlow::Break(()))));
    }
}
