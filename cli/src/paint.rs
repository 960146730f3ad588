//! Colors.

use std::{
    env,
    io::{self, IsTerminal},
};

/// Painter of words, which leaves them alone where colors are not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paint {
    colors: bool,
}

/// Meaning of a word, which has a color.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// No color.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Attention is needed.
    Bad,
    /// Headings.
    Heading,
}

impl Paint {
    /// A painter without colors.
    #[cfg(test)]
    pub(crate) const NONE: Self = Self { colors: false };

    /// Returns the painter for standard output: with colors if that is a terminal and `NO_COLOR` is not set.
    pub(crate) fn for_standard_output() -> Self {
        // https://no-color.org: set and not empty.
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        Self { colors: !unwanted && !is_dumb && io::stdout().is_terminal() }
    }

    /// Returns a text in the color of its tone.
    pub(crate) fn apply(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Heading => "1",
        };
        if self.colors { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_painted_only_where_colors_are_wanted() {
        assert_eq!(Paint { colors: true }.apply(Tone::Bad, "no"), "\x1b[31mno\x1b[0m");
        assert_eq!(Paint { colors: true }.apply(Tone::Plain, "no"), "no");
        assert_eq!(Paint::NONE.apply(Tone::Bad, "no"), "no");
    }
}
