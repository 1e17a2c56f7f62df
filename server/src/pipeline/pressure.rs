//! How long devices are asked to stay away while more of them come than can be served.

use std::time::{Duration, Instant};

/// Counts the requests that are taken and those that are sent away. From the counts it finds how
/// long the senders of the latter should wait.
pub(super) struct Pressure {
    since: Instant,
    taken: u32,
    sent_away: u32,
    /// The parts of the period in which somebody was sent away, a bit for each.
    full: u16,
    advice: u32,
}

impl Pressure {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, taken: 0, sent_away: 0, full: 0, advice: SHORTEST }
    }

    /// A request found a place in the queue.
    pub(super) fn take(&mut self, now: Instant) {
        self.look(now);
        self.taken += 1;
    }

    /// A request found no place. Returns the seconds after which its sender should try again. These
    /// differ, so that senders that were sent away together do not come back together. `random` is
    /// uniform over all values of its type.
    pub(super) fn send_away(&mut self, now: Instant, random: u32) -> u32 {
        self.look(now);
        self.sent_away += 1;
        let part = (now - self.since).as_secs_f64() / PERIOD.as_secs_f64() * f64::from(PARTS);
        self.full |= 1 << (part as u32).min(PARTS - 1);
        self.advice / 2 + random % (self.advice + 1) + u32::from(self.advice == SHORTEST)
    }

    /// Doubles the advice if more requests are sent away than are taken, in nearly all parts of the
    /// period and not in one burst. Each sender that waits comes back once in the advised time, so
    /// only longer advice makes these requests fewer. Halves the advice when there is room again.
    fn look(&mut self, now: Instant) {
        let periods = (now - self.since).as_secs_f64() / PERIOD.as_secs_f64();
        if periods < 1.0 {
            return;
        }
        self.advice = if periods >= 2.0 {
            // Nobody came for at least a whole period.
            SHORTEST
        } else if self.sent_away < self.taken / 4 {
            self.advice / 2
        } else if self.sent_away > self.taken && self.full.count_ones() >= MOST_PARTS {
            self.advice * 2
        } else {
            self.advice
        };
        self.advice = self.advice.clamp(SHORTEST, LONGEST);
        (self.since, self.taken, self.sent_away, self.full) = (now, 0, 0, 0);
    }
}

/// Long enough for counts that mean something.
const PERIOD: Duration = Duration::from_secs(1);
const PARTS: u32 = 10;
/// After a burst, the queue is full until it is worked off, which takes a part or two.
const MOST_PARTS: u32 = 8;
/// Seconds. A full queue is worked off in well under one.
const SHORTEST: u32 = 1;
/// Seconds. A device that waits for two minutes costs next to nothing. Longer waits would only
/// leave devices idle once the rush is over.
const LONGEST: u32 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    /// The advice after so many seconds, if so many requests are taken and sent away in each.
    fn advice_after(
        seconds: u64,
        taken: u32,
        sent_away: u32,
        pressure: &mut Pressure,
        start: Instant,
    ) -> u32 {
        for second in 0..seconds {
            let at = |number, of| {
                start + Duration::from_secs_f64(second as f64 + f64::from(number) / f64::from(of))
            };
            (0..taken).for_each(|number| pressure.take(at(number, taken)));
            (0..sent_away).for_each(|number| _ = pressure.send_away(at(number, sent_away), 0));
        }
        pressure.look(start + Duration::from_secs(seconds));
        pressure.advice
    }

    #[test]
    fn advice_grows_while_more_are_sent_away_than_taken_and_shrinks_afterwards() {
        let start = Instant::now();
        let mut pressure = Pressure::new(start);
        assert_eq!(advice_after(3, 10, 20, &mut pressure, start), 8);
        assert_eq!(advice_after(3, 10, 8, &mut pressure, start + Duration::from_secs(3)), 8);
        assert_eq!(
            advice_after(20, 10, 20, &mut pressure, start + Duration::from_secs(6)),
            LONGEST
        );
        assert_eq!(
            advice_after(20, 10, 1, &mut pressure, start + Duration::from_secs(26)),
            SHORTEST
        );
    }

    #[test]
    fn advice_is_forgotten_over_a_quiet_time() {
        let start = Instant::now();
        let mut pressure = Pressure::new(start);
        assert_eq!(advice_after(2, 0, 9, &mut pressure, start), 4);
        pressure.take(start + Duration::from_secs(60));
        assert_eq!(pressure.advice, SHORTEST);
    }

    #[test]
    fn bursts_with_quiet_between_them_do_not_keep_others_away() {
        let start = Instant::now();
        let mut pressure = Pressure::new(start);
        for second in 0..20 {
            (0..10).for_each(|_| pressure.take(start + Duration::from_secs(second)));
            (0..90).for_each(|_| _ = pressure.send_away(start + Duration::from_secs(second), 0));
        }
        assert_eq!(pressure.advice, SHORTEST);
    }

    #[test]
    fn those_sent_away_together_are_told_to_come_back_apart() {
        let start = Instant::now();
        let mut pressure = Pressure::new(start);
        assert_eq!([0, 1, u32::MAX].map(|random| pressure.send_away(start, random)), [1, 2, 2]);
        assert_eq!(advice_after(4, 0, 9, &mut pressure, start), 16);
        let now = start + Duration::from_secs(4);
        let told: Vec<_> = (0..17).map(|random| pressure.send_away(now, random)).collect();
        assert_eq!((told.iter().min(), told.iter().max()), (Some(&8), Some(&24)));
    }
}
