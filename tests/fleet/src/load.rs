//! Starts devices, in a closed or an open loop, and runs each to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use assay_mqtt::Backoff;
use assay_wire::{Problem, ProblemCode};
use indicatif::ProgressBar;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::connection::{Broker, Connection, Lost};
use crate::device::Device;
use crate::flow::{Attempt, Line, Stop};
use crate::lanes::Lane;
use crate::options::Course;
use crate::random;
use crate::tally::Tally;

/// A fleet before a broker.
pub(crate) struct Fleet {
    pub(crate) devices: Arc<Vec<Device>>,
    pub(crate) course: Course,
    pub(crate) broker: Arc<Broker>,
    /// Empty if devices share no connections.
    pub(crate) lanes: Vec<Lane>,
    /// How many connections of single devices there may be at once.
    pub(crate) own: Semaphore,
    pub(crate) tally: Arc<Tally>,
    /// Whether devices renew before the CA told them to.
    pub(crate) at_once: bool,
    /// Whether devices keep what they get.
    pub(crate) keeps: bool,
    pub(crate) bar: ProgressBar,
}

/// When devices begin.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// So many devices at once.
    Closed { concurrency: usize },
    /// So many new devices a second.
    Open { rate: f64 },
}

impl Fleet {
    /// Runs every device to its end. The pace is reached at the end of `ramp`.
    ///
    /// In an open loop, returns how long devices arrived and how many were done by then.
    pub(crate) async fn run(
        self: &Arc<Self>,
        pace: Pace,
        ramp: Duration,
    ) -> Option<(Duration, usize)> {
        match pace {
            Pace::Closed { concurrency } => {
                self.run_closed(concurrency, ramp).await;
                None
            }
            Pace::Open { rate } => Some(self.run_open(rate, ramp).await),
        }
    }

    async fn run_closed(self: &Arc<Self>, concurrency: usize, ramp: Duration) {
        let mut hands = JoinSet::new();
        let next = Arc::new(AtomicUsize::new(0));
        for hand in 0..concurrency.min(self.devices.len()) {
            let (fleet, next) = (Arc::clone(self), Arc::clone(&next));
            let wait = ramp.mul_f64(hand as f64 / concurrency as f64);
            hands.spawn(async move {
                sleep(wait).await;
                while let Some(device) = fleet.devices.get(next.fetch_add(1, Ordering::Relaxed)) {
                    fleet.live(device, hand, None).await;
                }
            });
        }
        finish(hands).await;
    }

    async fn run_open(self: &Arc<Self>, rate: f64, ramp: Duration) -> (Duration, usize) {
        let mut lives = JoinSet::new();
        let begin = Instant::now();
        for number in 0..self.devices.len() {
            let due = begin + arrival(number, rate, ramp);
            sleep_until(due.into()).await;
            let fleet = Arc::clone(self);
            lives.spawn(async move { fleet.live(&fleet.devices[number], number, Some(due)).await });
            // Removes the tasks of devices that are done, so that they take no memory.
            while lives.try_join_next().is_some() {}
        }
        let arrived = (begin.elapsed(), self.tally.counts().done);
        finish(lives).await;
        arrived
    }

    /// One device, from its first attempt to its end. `place` chooses its lane.
    async fn live(&self, device: &Device, place: usize, due: Option<Instant>) {
        if device.sleeps {
            return self.bar.inc(1);
        }
        let (mut began, started) = (due, Instant::now());
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let (mut restarts, mut churns) = (0, device.churns);
        loop {
            let outcome = if churns {
                self.break_off(device, &mut began).await
            } else {
                self.attempt(device, place, &mut began).await
            };
            let wait = match outcome {
                Ok(()) if churns => {
                    self.tally.churned();
                    churns = false;
                    continue;
                }
                Ok(()) => break self.done(device, began),
                Err(Stop::Problem(problem)) => {
                    if self.is_due(device, &problem) {
                        break self.tally.refused(device.bad);
                    }
                    match advice(&problem, &mut restarts) {
                        Some(wait) if started.elapsed() + wait < PATIENCE => wait,
                        _ => break self.tally.failed(problem.to_string()),
                    }
                }
                Err(Stop::Lost(Lost(reason))) => {
                    self.tally.lost(reason);
                    Duration::ZERO
                }
                Err(Stop::Wrong(error)) => break self.tally.failed(format!("{error:#}")),
            };
            if started.elapsed() > PATIENCE {
                break self.tally.failed(format!("not done within {} s", PATIENCE.as_secs()));
            }
            sleep(backoff.next(wait, u32::from_ne_bytes(random()))).await;
        }
        self.bar.inc(1);
    }

    fn done(&self, device: &Device, began: Option<Instant>) {
        match device.bad {
            Some(bad) => self.tally.failed(format!("a bad request was granted: {}", bad.name())),
            None => self.tally.done(began.map_or(Duration::ZERO, |began| began.elapsed())),
        }
    }

    /// Whether this is the problem with which the CA must refuse this device.
    fn is_due(&self, device: &Device, problem: &Problem) -> bool {
        device.bad.is_some_and(|bad| bad.problem(self.course.flow()) == Some(problem.code))
    }

    async fn attempt(
        &self,
        device: &Device,
        place: usize,
        began: &mut Option<Instant>,
    ) -> Result<(), Stop> {
        if let Some(lane) = self.lanes.get(place % self.lanes.len().max(1)) {
            let _seat = lane.seat().await;
            self.speak(&Line::Shared(lane), device, began).await
        } else {
            let (_permit, line) = self.own_line().await?;
            self.speak(&line, device, began).await
        }
    }

    async fn speak(
        &self,
        line: &Line<'_>,
        device: &Device,
        began: &mut Option<Instant>,
    ) -> Result<(), Stop> {
        let mut attempt = self.on(line, device, began);
        match self.course {
            Course::Renew => attempt.keep_good(self.at_once).await,
            Course::Provision(flow) => {
                let granted = attempt.provision(flow).await?;
                granted.filter(|_| self.keeps).into_iter().for_each(|granted| device.keep(granted));
                Ok(())
            }
        }
    }

    /// An attempt that ends without a DISCONNECT once the CA has answered.
    async fn break_off(&self, device: &Device, began: &mut Option<Instant>) -> Result<(), Stop> {
        let (_permit, line) = self.own_line().await?;
        self.on(&line, device, began).first_reply(self.course.flow()).await?;
        if let Line::Own(connection) = line {
            connection.break_off();
        }
        Ok(())
    }

    async fn own_line(&self) -> Result<(SemaphorePermit<'_>, Line<'_>), Lost> {
        // Unwrap safety: the semaphore is never closed.
        let permit = self.own.acquire().await.unwrap();
        Ok((permit, Line::Own(Connection::open(&self.broker, &self.tally).await?)))
    }

    fn on<'a>(
        &'a self,
        line: &'a Line<'a>,
        device: &'a Device,
        began: &'a mut Option<Instant>,
    ) -> Attempt<'a> {
        Attempt { device, line, broker: &self.broker, tally: &self.tally, began }
    }
}

/// How long to wait before another attempt; `None`, if there is to be none.
fn advice(problem: &Problem, restarts: &mut u32) -> Option<Duration> {
    match (problem.retry_after, problem.code) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds.into())),
        (None, ProblemCode::ClaimExpired | ProblemCode::TicketRefused) if *restarts < RESTARTS => {
            *restarts += 1;
            Some(Duration::ZERO)
        }
        (None, _) => None,
    }
}

/// When the device of this number is due: the rate rises evenly during `ramp`, and then stays.
fn arrival(number: usize, rate: f64, ramp: Duration) -> Duration {
    let (number, ramp) = (number as f64, ramp.as_secs_f64());
    // During the ramp, rate · t² / (2 · ramp) devices have begun at t. At its end, these are rate ·
    // ramp / 2.
    let in_ramp = rate * ramp / 2.0;
    let seconds = if number < in_ramp {
        (2.0 * ramp * number / rate).sqrt()
    } else {
        ramp + (number - in_ramp) / rate
    };
    Duration::from_secs_f64(seconds)
}

async fn finish(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        // Unwrap safety: a panic there is a bug, and passed on here.
        ended.unwrap();
    }
}

/// The value of assay-device, as are the next two.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const RESTARTS: u32 = 3;
/// A CA under three times the load that it can bear for a minute is done with it within three
/// minutes.
const PATIENCE: Duration = Duration::from_secs(900);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_reach_the_rate_at_the_end_of_the_ramp_and_keep_it() {
        let at = |number| arrival(number, 100.0, Duration::from_secs(2)).as_secs_f64();
        assert_eq!(at(0), 0.0);
        assert_eq!(at(25), 1.0, "a quarter of the ramp's 100 devices in its first half");
        assert_eq!(at(100), 2.0);
        assert_eq!(at(400), 5.0);
        assert_eq!(arrival(300, 100.0, Duration::ZERO), Duration::from_secs(3));
    }

    #[test]
    fn advice_is_obeyed_and_a_claim_that_failed_is_begun_again_three_times() {
        let mut restarts = 0;
        let busy = Problem::new(ProblemCode::Busy, String::new()).retry_after(7);
        assert_eq!(advice(&busy, &mut restarts), Some(Duration::from_secs(7)));
        let expired = Problem::new(ProblemCode::ClaimExpired, String::new());
        assert_eq!(
            [(); 4].map(|()| advice(&expired, &mut restarts).is_some()),
            [true, true, true, false]
        );
        assert_eq!(advice(&Problem::new(ProblemCode::EkWeak, String::new()), &mut 0), None);
    }
}
