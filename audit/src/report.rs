//! What a check finds: one line each, at once.

use std::io::Write;

/// So many findings are printed; the rest is counted.
const PRINTED_MAX: u64 = 1_000;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is wrong.
    Clean,
    /// There is damage; it was printed.
    Damaged,
}

/// Is told how far a check is. It may take its time, which makes the check slower.
pub trait Meter {
    /// A part of the work begins, which will read so many bytes; 0 if that is not known.
    fn begin(&self, what: &'static str, bytes: u64);

    /// So many bytes more are read.
    ///
    /// # Errors
    /// The check is to end here.
    fn advance(&self, bytes: u64) -> anyhow::Result<()>;

    /// The part is done.
    fn end(&self);

    /// Calls `print`, so that what it prints does not mix with what this shows.
    fn aside(&self, print: &mut dyn FnMut()) {
        print();
    }
}

/// A meter that shows nothing and lets everything run.
#[derive(Clone, Copy, Debug)]
pub struct NoMeter;

impl Meter for NoMeter {
    fn begin(&self, _what: &'static str, _bytes: u64) {}

    fn advance(&self, _bytes: u64) -> anyhow::Result<()> {
        Ok(())
    }

    fn end(&self) {}
}

/// Where findings go.
pub struct Report<'o> {
    out: &'o mut dyn Write,
    meter: &'o dyn Meter,
    findings: u64,
    failed: Option<std::io::Error>,
}

impl<'o> Report<'o> {
    /// A report without findings, to be printed to `out`.
    pub fn new(out: &'o mut dyn Write, meter: &'o dyn Meter) -> Report<'o> {
        Report {
            out,
            meter,
            findings: 0,
            failed: None,
        }
    }

    /// What is told how far the check is.
    #[must_use]
    pub fn meter(&self) -> &'o dyn Meter {
        self.meter
    }

    /// How much damage was found so far.
    #[must_use]
    pub fn findings(&self) -> u64 {
        self.findings
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
        self.meter.aside(&mut || written = writeln!(out, "{text}"));
        self.failed = written.err();
    }

    /// The last line, and how it all ended.
    ///
    /// # Errors
    /// A line could not be printed.
    pub fn finish(mut self) -> anyhow::Result<Outcome> {
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
