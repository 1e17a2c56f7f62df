//! Tells people of steps, and how long each took.

use std::time::{Duration, Instant};

/// Hears of each step when it is done, and how long it took.
pub type Progress<'a> = &'a mut dyn FnMut(&str, Duration);

/// Measures steps. Each begins at the end of the one before.
pub(crate) struct Steps<'a> {
    began: Instant,
    progress: Progress<'a>,
}

impl<'a> Steps<'a> {
    pub(crate) fn start(progress: Progress<'a>) -> Self {
        Self { began: Instant::now(), progress }
    }

    pub(crate) fn done(&mut self, what: &str) {
        (self.progress)(what, self.began.elapsed());
        self.began = Instant::now();
    }

    /// Tells of something that is no step.
    pub(crate) fn tell(&mut self, what: &str, time: Duration) {
        (self.progress)(what, time);
    }
}
