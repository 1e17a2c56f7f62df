//! Limits how much of something may be done in a time: budgets that fill up again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How fast a budget fills up, and how much it holds.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// The time in which one unit comes back.
    pub interval: Duration,
    /// How many units a full budget holds.
    pub burst: u32,
}

impl Rate {
    /// So many `units` come back in a second.
    pub const fn per_second(units: u32, burst: u32) -> Self {
        Self { interval: Duration::from_nanos(1_000_000_000 / units as u64), burst }
    }

    fn allowance(&self) -> Duration {
        self.interval * self.burst
    }
}

/// One budget, stored as the time when it will be full again (the generic cell rate algorithm,
/// ITU-T I.371).
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    full_at: Option<Instant>,
}

impl Budget {
    /// Spends `units`, even more than there are. Returns how long it takes until the debt is paid.
    pub fn spend(&mut self, units: u32, rate: Rate, now: Instant) -> Duration {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now)) + rate.interval * units;
        self.full_at = Some(full_at);
        full_at.duration_since(now).saturating_sub(rate.allowance())
    }

    /// The same with a limit for the debt, because another client may have to pay it.
    fn spend_shared(&mut self, units: u32, rate: Rate, now: Instant) -> Duration {
        let debt = self.spend(units, rate, now).min(MAX_DEBT);
        self.full_at = self.full_at.min(Some(now + rate.allowance() + MAX_DEBT));
        debt
    }

    /// Spends `units` if there are so many. Returns whether there were.
    pub fn allows(&mut self, units: u32, rate: Rate, now: Instant) -> bool {
        let mut after = *self;
        let is_there = after.spend(units, rate, now).is_zero();
        if is_there {
            *self = after;
        }
        is_there
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }
}

/// One budget for each of many payers. Each is remembered until it is full again.
#[derive(Debug)]
pub struct Meter<K> {
    rate: Rate,
    budgets: Mutex<Budgets<K>>,
}

#[derive(Debug)]
struct Budgets<K> {
    by_payer: HashMap<K, Budget>,
    swept: Option<Instant>,
}

impl<K: Eq + Hash> Meter<K> {
    /// Each payer has a budget of this rate.
    pub fn new(rate: Rate) -> Self {
        Self { rate, budgets: Budgets { by_payer: HashMap::new(), swept: None }.into() }
    }

    /// Spends `units`, even more than there are. Returns how long it takes until the debt is paid.
    pub fn spend(&self, payer: K, units: u32, now: Instant) -> Duration {
        self.with(payer, now, |budget| budget.spend_shared(units, self.rate, now))
            .unwrap_or_default()
    }

    /// Spends `units` if there are so many. Returns whether there were.
    pub fn allows(&self, payer: K, units: u32, now: Instant) -> bool {
        self.with(payer, now, |budget| budget.allows(units, self.rate, now)).unwrap_or(true)
    }

    /// `None` if there is no room for another payer: strangers can invent names faster than budgets
    /// fill up. The payers who came before keep their budgets.
    fn with<T>(&self, payer: K, now: Instant, pay: impl FnOnce(&mut Budget) -> T) -> Option<T> {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        if budgets.by_payer.len() >= PAYERS && !budgets.by_payer.contains_key(&payer) {
            if budgets.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP) {
                budgets.by_payer.retain(|_, budget| !budget.is_full(now));
                budgets.swept = Some(now);
            }
            if budgets.by_payer.len() >= PAYERS {
                return None;
            }
        }
        Some(pay(budgets.by_payer.entry(payer).or_default()))
    }
}

/// The most budgets that are remembered: some MiB.
const PAYERS: usize = 65_536;

/// The time between two searches for budgets that can be forgotten, when there are too many.
const SWEEP: Duration = Duration::from_secs(1);

/// The longest wait for a debt that another client may have made.
const MAX_DEBT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate::per_second(10, 5);

    #[test]
    fn budget_is_spent_at_once_and_fills_up_again() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        for _ in 0..5 {
            assert_eq!(budget.spend(1, RATE, start), Duration::ZERO);
        }
        assert_eq!(budget.spend(1, RATE, start), Duration::from_millis(100));
        let later = start + Duration::from_millis(600);
        assert!(budget.is_full(later) && !budget.is_full(later - Duration::from_millis(1)));
        assert_eq!(budget.spend(5, RATE, later), Duration::ZERO);
        assert_eq!(
            budget.spend(1, RATE, later),
            Duration::from_millis(100),
            "no more than the burst is saved up"
        );
    }

    #[test]
    fn what_is_not_allowed_is_not_charged() {
        let (meter, start) = (Meter::new(RATE), Instant::now());
        assert!((0..5).all(|_| meter.allows("a", 1, start)));
        assert!((0..100).all(|_| !meter.allows("a", 1, start)));
        let later = start + Duration::from_millis(100);
        assert!(!meter.allows("a", 2, later), "not in part");
        assert!(meter.allows("a", 1, later) && !meter.allows("a", 1, later));
    }

    #[test]
    fn no_debt_that_others_may_have_to_pay_is_long() {
        let (meter, now) = (Meter::new(RATE), Instant::now());
        assert_eq!(meter.spend("a", 1_000_000, now), MAX_DEBT);
        assert_eq!(meter.spend("a", 1, now), MAX_DEBT);
        assert_eq!(meter.spend("a", 1, now + MAX_DEBT), Duration::from_millis(100));
        assert_eq!(
            Budget::default().spend(1005, RATE, now),
            Duration::from_secs(100),
            "one's own is as long as it is"
        );
    }

    #[test]
    fn everybody_has_a_budget_of_their_own() {
        let (meter, now) = (Meter::new(RATE), Instant::now());
        assert_eq!(meter.spend("a", 5, now), Duration::ZERO);
        assert!(meter.spend("a", 1, now) > Duration::ZERO);
        assert_eq!(meter.spend("b", 1, now), Duration::ZERO);
    }

    #[test]
    fn who_has_paid_is_forgotten_when_many_come() {
        let (meter, start) = (Meter::new(RATE), Instant::now());
        for payer in 0..PAYERS {
            meter.spend(payer, 1, start);
        }
        meter.spend(PAYERS, 1, start);
        assert_eq!(meter.budgets.lock().unwrap().by_payer.len(), PAYERS);
        meter.spend(PAYERS, 1, start + SWEEP);
        assert_eq!(meter.budgets.lock().unwrap().by_payer.len(), 1);
    }
}
