//! A pulse through all threads that a request passes, to notice when one of them is stuck.

use crossbeam_channel::{self as channel, Receiver, Sender};
use tokio::sync::mpsc;

/// Sends a pulse to each planner, so that none that is stuck is overlooked.
pub(super) struct Heart {
    planners: Vec<Sender<Pulse>>,
}

/// Goes to a planner, from there to the recorder, and from there back.
pub(super) struct Pulse(mpsc::Sender<()>);

impl Heart {
    /// A heart for so many planners, and the receiving end for each planner.
    pub(super) fn new(planners: usize) -> (Self, Vec<Receiver<Pulse>>) {
        let (planners, ends) = (0..planners).map(|_| channel::bounded(1)).unzip();
        (Self { planners }, ends)
    }

    /// Returns once every pulse has passed its planner and the recorder. Never returns if one of
    /// these is stuck.
    pub(super) async fn beat(&self) {
        let (returned, mut returns) = mpsc::channel(self.planners.len());
        for planner in &self.planners {
            // There is room, because the earlier pulse has returned. A planner that is gone sends
            // none back.
            _ = planner.try_send(Pulse(returned.clone()));
        }
        for _ in &self.planners {
            // Never `None`, because `returned` still exists.
            returns.recv().await;
        }
    }
}

impl Pulse {
    /// The pulse has passed its planner and the recorder.
    pub(super) fn end(self) {
        // There is room for all pulses. Once the worker stops, nobody waits for them.
        _ = self.0.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_pulse_is_over_only_when_all_planners_have_passed_it_on() {
        let (heart, ends) = Heart::new(3);
        let mut beat = pin!(heart.beat());
        for end in &ends {
            assert!(timeout(SHORT, &mut beat).await.is_err(), "somebody has not passed it on");
            end.recv().unwrap().end();
        }
        assert!(timeout(SHORT, &mut beat).await.is_ok());
    }

    #[tokio::test]
    async fn a_pulse_that_a_planner_lost_is_never_over() {
        let (heart, ends) = Heart::new(2);
        let mut beat = pin!(heart.beat());
        assert!(timeout(SHORT, &mut beat).await.is_err());
        ends[0].recv().unwrap().end();
        drop(ends);
        assert!(timeout(SHORT, &mut beat).await.is_err());
    }

    const SHORT: Duration = Duration::from_millis(20);
}
