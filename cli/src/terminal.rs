//! The terminal as a screen, for programs that a person watches.

use std::io::{self, Stdout, Write};

use crossterm::{
    cursor::{Hide, MoveTo, Show},
    event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers},
    execute, queue,
    terminal::{
        Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen,
        disable_raw_mode, enable_raw_mode, size,
    },
};
use futures::StreamExt;

use crate::error::{Error, Result};

/// A screen of its own, with each key as it is pressed. The terminal is as before when this is dropped.
pub(crate) struct Terminal {
    output: Stdout,
    events: EventStream,
}

/// A key, or what else there is to react to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// The person wants to leave.
    Quit,
    /// The screen has another size.
    Resized,
    /// A character.
    Character(char),
}

impl Terminal {
    /// Takes the terminal over.
    pub(crate) fn open() -> Result<Self> {
        enable_raw_mode().map_err(failed)?;
        let mut terminal = Self { output: io::stdout(), events: EventStream::new() };
        execute!(terminal.output, EnterAlternateScreen, Hide, DisableLineWrap).map_err(failed)?;
        Ok(terminal)
    }

    /// Shows a text that has at most so many lines as `text` is told. Longer lines are cut.
    pub(crate) fn draw(&mut self, text: impl FnOnce(usize) -> String) -> Result<()> {
        let (_, lines) = size().map_err(failed)?;
        let text = text(lines.into());
        self.show(&text, lines).map_err(failed)
    }

    fn show(&mut self, text: &str, lines: u16) -> io::Result<()> {
        queue!(self.output, MoveTo(0, 0))?;
        for (line, row) in text.lines().zip(0..lines) {
            queue!(self.output, MoveTo(0, row), Clear(ClearType::UntilNewLine))?;
            self.output.write_all(line.as_bytes())?;
        }
        queue!(self.output, Clear(ClearType::FromCursorDown))?;
        self.output.flush()
    }

    /// Waits for a key. Cancelling the wait loses nothing.
    pub(crate) async fn key(&mut self) -> Result<Key> {
        loop {
            match self.events.next().await {
                Some(Ok(event)) => {
                    if let Some(key) = key_of(&event) {
                        return Ok(key);
                    }
                }
                Some(Err(error)) => return Err(failed(error)),
                None => return Ok(Key::Quit),
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // There is nobody left to tell of an error.
        let _ = execute!(self.output, EnableLineWrap, Show, LeaveAlternateScreen);
        let _ = disable_raw_mode();
    }
}

fn key_of(event: &Event) -> Option<Key> {
    match event {
        Event::Resize(..) => Some(Key::Resized),
        Event::Key(key) if key.kind != KeyEventKind::Release => match key.code {
            KeyCode::Esc | KeyCode::Char('q') => Some(Key::Quit),
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
            KeyCode::Char(character) => Some(Key::Character(character)),
            _ => None,
        },
        _ => None,
    }
}

fn failed(error: io::Error) -> Error {
    Error::Terminal(error)
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys_that_end_programs_elsewhere_end_this_one() {
        let key = |code, modifiers| key_of(&Event::Key(KeyEvent::new(code, modifiers)));
        for code in [KeyCode::Esc, KeyCode::Char('q')] {
            assert_eq!(key(code, KeyModifiers::NONE), Some(Key::Quit));
        }
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), Some(Key::Character('c')));
        assert_eq!(key_of(&Event::Resize(80, 24)), Some(Key::Resized));
        assert_eq!(key(KeyCode::Up, KeyModifiers::NONE), None);
    }
}
