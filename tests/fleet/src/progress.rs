//! Progress bars: on stderr, and only if that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts to `length`.
pub(crate) fn bar(length: usize, what: &str) -> ProgressBar {
    // Unwrap safety: the template is constant and well formed.
    let style =
        ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}")
            .unwrap();
    // indicatif draws on stderr, and not at all if that is no terminal.
    ProgressBar::new(length as u64).with_style(style).with_message(what.to_owned())
}
