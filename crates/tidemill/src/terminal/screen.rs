//! The terminal's alternate screen: drawn whole, and given back as it was.
//!
//! Invariant: however the process ends short of a kill (a return, an error, a
//! panic, a second Ctrl-C through [`restore`]), the terminal shows what it
//! showed before and its cursor again. Input stays in the terminal's own mode,
//! so Ctrl-C is a signal as ever.

use super::{
    frame::{Line, Style},
    text::width,
};
use crate::logging;
use crossterm::{
    cursor::{Hide, MoveTo, Show},
    queue,
    style::{Attribute, Color, Print, ResetColor, SetAttribute, SetForegroundColor},
    terminal::{
        BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap, EndSynchronizedUpdate,
        EnterAlternateScreen, LeaveAlternateScreen, size,
    },
};
use std::{
    io::{self, BufWriter, Write},
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

/// Whether the alternate screen is up.
static UP: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// The alternate screen while it lives.
#[derive(Debug)]
pub(crate) struct Screen {
    colour: bool,
    drawn: usize,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn open(colour: bool) -> io::Result<Self> {
        HOOK.call_once(|| {
            let next = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                restore();
                next(panic);
            }));
        });
        logging::hold();
        UP.store(true, Ordering::SeqCst);
        let mut out = io::stdout().lock();
        queue!(out, EnterAlternateScreen, Hide, DisableLineWrap, Clear(ClearType::All))?;
        out.flush()?;
        Ok(Self { colour, drawn: 0 })
    }

    /// Columns and rows; 80 × 24 when the terminal does not say.
    pub(crate) fn size() -> (usize, usize) {
        match size() {
            Ok((columns, rows)) if columns > 0 && rows > 0 => (columns.into(), rows.into()),
            _ => (80, 24),
        }
    }

    /// Shows a frame instead of the one before.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(crate) fn draw(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(32 << 10, io::stdout().lock());
        queue!(out, BeginSynchronizedUpdate)?;
        let (columns, _) = Self::size();
        for (row, line) in (0_u16..).zip(lines) {
            queue!(out, MoveTo(0, row))?;
            for (text, style) in line {
                self.piece(&mut out, text, *style)?;
            }
            // Behind a full line the cursor still stands on its last cell.
            if line.iter().map(|(text, _)| width(text)).sum::<usize>() < columns {
                queue!(out, Clear(ClearType::UntilNewLine))?;
            }
        }
        if lines.len() < self.drawn {
            queue!(out, MoveTo(0, u16::try_from(lines.len()).unwrap_or(u16::MAX)), Clear(ClearType::FromCursorDown))?;
        }
        self.drawn = lines.len();
        queue!(out, EndSynchronizedUpdate)?;
        out.flush()
    }

    /// Forgets what was drawn: the terminal has another size.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        queue!(io::stdout(), Clear(ClearType::All))?;
        io::stdout().flush()
    }

    fn piece(&self, out: &mut impl Write, text: &str, style: Style) -> io::Result<()> {
        if !self.colour || style == Style::Plain {
            return queue!(out, Print(text));
        }
        match style {
            Style::Plain => {}
            Style::Strong => queue!(out, SetAttribute(Attribute::Bold))?,
            Style::Dim => queue!(out, SetAttribute(Attribute::Dim))?,
            Style::Bar => queue!(out, SetForegroundColor(Color::DarkCyan))?,
            Style::Good => queue!(out, SetForegroundColor(Color::DarkGreen))?,
            Style::Warn => queue!(out, SetForegroundColor(Color::DarkYellow))?,
            Style::Bad => queue!(out, SetForegroundColor(Color::DarkRed))?,
        }
        queue!(out, Print(text), ResetColor, SetAttribute(Attribute::Reset))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back, if it was taken.
pub(crate) fn restore() {
    if UP.swap(false, Ordering::SeqCst) {
        let mut out = io::stdout();
        // A terminal that is gone needs nothing back.
        let _gone = queue!(out, EnableLineWrap, Show, LeaveAlternateScreen).and_then(|()| out.flush());
        logging::release();
    }
}
