//! What a check finds: one line each, at once.

use std::io::Write;

use indicatif::ProgressBar;

use crate::Outcome;

/// So many findings are printed; the rest is counted.
const PRINTED_MAX: u64 = 1_000;

/// Where findings go.
pub struct Report<'o> {
    out: &'o mut dyn Write,
    bar: Option<ProgressBar>,
    findings: u64,
    failed: Option<std::io::Error>,
}

impl<'o> Report<'o> {
    /// A report without findings, to be printed to `out`.
    pub fn new(out: &'o mut dyn Write) -> Report<'o> {
        Report {
            out,
            bar: None,
            findings: 0,
            failed: None,
        }
    }

    /// Lines go above this bar from now on.
    pub fn over(&mut self, bar: &ProgressBar) {
        self.bar = Some(bar.clone());
    }

    /// Damage: where, what, and what to do about it.
    pub fn finding(&mut self, place: impl std::fmt::Display, what: impl std::fmt::Display, advice: &str) {
        self.findings += 1;
        if self.findings <= PRINTED_MAX {
            self.line(&format!("DAMAGE {place}: {what}; {advice}"));
        }
    }

    /// Something to know that is no damage.
    pub fn note(&mut self, what: impl std::fmt::Display) {
        self.line(&format!("note: {what}"));
    }

    fn line(&mut self, text: &str) {
        if self.failed.is_some() {
            return;
        }
        // Names in damaged data may hold anything, and a finding is one line.
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let (out, mut written) = (&mut self.out, Ok(()));
        let print = || written = writeln!(out, "{text}");
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => {
                let mut print = print;
                print();
            }
        }
        self.failed = written.err();
    }

    /// The last line, and how it all ended.
    ///
    /// # Errors
    /// A line could not be printed.
    pub fn finish(mut self) -> anyhow::Result<Outcome> {
        self.bar = None;
        let outcome = match self.findings {
            0 => {
                self.line("clean");
                Outcome::Clean
            }
            findings => {
                if findings > PRINTED_MAX {
                    self.line(&format!("{} more findings are not shown", findings - PRINTED_MAX));
                }
                self.line(&format!("{findings} findings"));
                Outcome::Damaged
            }
        };
        match self.failed {
            Some(error) => Err(error.into()),
            None => Ok(outcome),
        }
    }
}
