//! Questions to a person at a terminal.

use std::io::{BufRead, Write};

use crate::error::{Error, Result};

/// A dialogue.
pub(super) struct Questions<R, W> {
    answers: R,
    questions: W,
}

impl<R: BufRead, W: Write> Questions<R, W> {
    /// Returns a dialogue that asks on one end and reads on the other.
    pub(super) fn new(answers: R, questions: W) -> Self {
        Self { answers, questions }
    }

    /// Asks until the answer can be read. An empty one stands for the usual one.
    ///
    /// # Errors
    /// If there are no more answers.
    pub(super) fn ask<T>(
        &mut self,
        question: &str,
        usual: Option<&str>,
        read: impl Fn(&str) -> std::result::Result<T, String>,
    ) -> Result<T> {
        let shown =
            usual.filter(|usual| !usual.is_empty()).map(|usual| format!(" [{usual}]")).unwrap_or_default();
        loop {
            let mut answer = String::new();
            let asked = write!(self.questions, "{question}{shown}: ").and_then(|()| self.questions.flush());
            let length = asked.and_then(|()| self.answers.read_line(&mut answer)).map_err(Error::Terminal)?;
            if length == 0 {
                return Err(Error::Usage("a question has no answer".to_owned()));
            }
            let answer =
                Some(answer.trim()).filter(|answer| !answer.is_empty()).or(usual).unwrap_or_default();
            match read(answer) {
                Ok(answer) => return Ok(answer),
                Err(error) => writeln!(self.questions, "{error}").map_err(Error::Terminal)?,
            }
        }
    }
}
