//! What the commands show: chapters, live lines, tables, and expectations that held or did not.

use std::io::{self, IsTerminal, Write};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Standard output. Colours and lines that change in place are for terminals; elsewhere each line
/// is written once.
pub(crate) struct Screen {
    terminal: bool,
    failures: usize,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some();
        Self { terminal: io::stdout().is_terminal() && !plain, failures: 0 }
    }

    pub(crate) fn chapter(&self, title: &str) {
        println!("\n{}", self.paint(BOLD, title));
    }

    pub(crate) fn say(&self, text: &str) {
        println!("  {text}");
    }

    /// Shows a command as a user would type it.
    pub(crate) fn command(&self, command: &Command) {
        let program = command.get_program().to_string_lossy();
        let name = program.rsplit('/').next().unwrap_or(&program);
        let arguments = command.get_args().map(|argument| argument.to_string_lossy());
        let line = [name.into()].into_iter().chain(arguments).collect::<Vec<_>>().join(" ");
        println!("  {}", self.paint(DIM, &format!("$ {line}")));
    }

    /// Shows whether something held that must hold for the command to succeed.
    pub(crate) fn expect(&mut self, held: bool, what: &str) {
        let mark = if held { self.paint(GREEN, "✓") } else { self.paint(RED, "✗") };
        println!("  {mark} {what}");
        self.failures += usize::from(!held);
    }

    pub(crate) fn failures(&self) -> usize {
        self.failures
    }

    /// Shows a table, with columns as wide as their longest cell.
    pub(crate) fn table<const N: usize>(&self, head: [&str; N], rows: &[[String; N]]) {
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([head[column].len()]).max().unwrap_or(0)
        };
        let line = |cells: [&str; N]| -> String {
            let padded =
                cells.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column)));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        println!("  {}", self.paint(DIM, &line(head)));
        for row in rows {
            println!("  {}", line(row.each_ref().map(String::as_str)));
        }
    }

    /// Shows one line for each of `labels`. Threads change the lines while they work.
    pub(crate) fn live(&self, labels: Vec<String>) -> Live<'_> {
        if self.terminal {
            labels.iter().for_each(|label| println!("  {label}"));
        }
        Live { screen: self, labels, drawing: Mutex::new(()) }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.terminal { format!("{colour}{text}{RESET}") } else { text.to_owned() }
    }
}

/// Lines that change in place, at the bottom of the screen.
pub(crate) struct Live<'a> {
    screen: &'a Screen,
    labels: Vec<String>,
    drawing: Mutex<()>,
}

impl Live<'_> {
    /// Shows the present state of line `index`, cut so that it stays one line on 80 columns.
    pub(crate) fn now(&self, index: usize, state: &str) {
        if self.screen.terminal {
            let room = 78 - self.labels[index].chars().count();
            self.draw(
                index,
                &self.screen.paint(DIM, &state.chars().take(room).collect::<String>()),
            );
        }
    }

    /// Shows how line `index` ended.
    pub(crate) fn end(&self, index: usize, state: &str) {
        if self.screen.terminal {
            self.draw(index, state);
        } else {
            let _drawing = self.lock();
            println!("  {}{state}", self.labels[index]);
        }
    }

    fn draw(&self, index: usize, state: &str) {
        let _drawing = self.lock();
        let up = self.labels.len() - index;
        print!("\x1b[{up}A\r\x1b[2K  {}{state}\x1b[{up}B\r", self.labels[index]);
        // If this fails, the line only appears later. If standard output is closed, the next
        // println ends the command.
        let _ = io::stdout().flush();
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.drawing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";
