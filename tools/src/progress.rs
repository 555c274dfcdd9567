//! A bar on the terminal, and nothing anywhere else.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use audit::Meter;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of `bytes` on standard error; hidden where that is no terminal.
#[must_use]
pub fn bar(what: &'static str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{msg:<12} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The bar of what a check does just now.
#[derive(Default)]
pub struct Bar {
    shown: Mutex<Option<ProgressBar>>,
}

impl Bar {
    fn now(&self) -> Option<ProgressBar> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, next: Option<ProgressBar>) {
        let before = std::mem::replace(
            &mut *self.shown.lock().unwrap_or_else(PoisonError::into_inner),
            next,
        );
        if let Some(before) = before {
            before.finish_and_clear();
        }
    }
}

impl Meter for Bar {
    fn begin(&self, what: &'static str, bytes: u64) {
        self.show(Some(bar(what, bytes)));
    }

    fn advance(&self, bytes: u64) -> anyhow::Result<()> {
        if let Some(bar) = self.now() {
            bar.inc(bytes);
        }
        Ok(())
    }

    fn end(&self) {
        self.show(None);
    }

    fn aside(&self, print: &mut dyn FnMut()) {
        match self.now() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}
