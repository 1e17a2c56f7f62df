//! How long to wait before the next attempt.

use std::time::Duration;

/// Exponential delays with full jitter: each is drawn between zero and a ceiling that doubles from
/// `first` to `limit`. So devices that lost their connections together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Starts with delays of up to `first`.
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, ceiling: first }
    }

    /// The next delay: `floor` (a peer's advice) and a random time on top. `random` is uniform over
    /// all values of its type.
    pub fn next(&mut self, floor: Duration, random: u32) -> Duration {
        let delay = self.ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX));
        self.ceiling = (self.ceiling * 2).min(self.limit);
        floor + delay
    }

    /// Starts again with `first`, after a success.
    pub fn reset(&mut self) {
        self.ceiling = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceiling_doubles_up_to_the_limit_and_resets() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let ceilings: Vec<_> =
            (0..5).map(|_| backoff.next(Duration::ZERO, u32::MAX).as_secs()).collect();
        assert_eq!(ceilings, [1, 2, 4, 5, 5]);
        backoff.reset();
        assert_eq!(backoff.next(Duration::ZERO, u32::MAX).as_secs(), 1);
    }

    #[test]
    fn delay_is_never_below_the_advice() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        assert_eq!(backoff.next(Duration::from_secs(30), 0), Duration::from_secs(30));
    }
}
