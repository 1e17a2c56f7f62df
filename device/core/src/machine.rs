//! The machine: actions out, events in.

use alloc::boxed::Box;
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use crate::desk::Desk;
use crate::event::{Action, Event, Traffic};
use crate::failure::Failure;

/// One run of a device, without I/O: [`poll_action`](Self::poll_action) says what to do next, and
/// [`handle`](Self::handle) takes what came of it.
///
/// It reads no clock and draws no random bytes, so the same events give the same actions. Times are
/// counted from any moment that the shell chooses, e.g. its own start, and never go back.
///
/// Each flow is written as an `async fn` that reads like the protocol; the compiler turns it into
/// the states of this machine. No executor is needed: nothing in it wakes up by itself.
///
/// Drop the machine to stop it at any point. A new machine that gets the [`Memory`](crate::Memory)
/// that was stored last goes on from there.
pub struct Machine<T> {
    script: Script<T>,
    desk: Desk,
}

enum Script<T> {
    Running(Pin<Box<dyn Future<Output = Result<T, Failure>>>>),
    Ended(Result<T, Failure>),
}

impl<T> Machine<T> {
    /// Starts the run that `script` makes, at the time `now`.
    pub(crate) fn start<F>(now: Duration, script: impl FnOnce(Desk) -> F) -> Self
    where
        F: Future<Output = Result<T, Failure>> + 'static,
    {
        let desk = Desk::new(now);
        Self { script: Script::Running(Box::pin(script(desk.clone()))), desk }
    }

    /// What to do next; `None` once the run has ended.
    ///
    /// If the last action needs an answer that has not come, the next action is to wait for it.
    pub fn poll_action(&mut self) -> Option<Action> {
        loop {
            if let Some(action) = self.desk.next_action() {
                return Some(action);
            }
            let Script::Running(script) = &mut self.script else { return None };
            match script.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => {
                    self.script = Script::Ended(result);
                    // A script that failed before its conversation may have left a connection.
                    self.desk.disconnect();
                }
                Poll::Pending => {
                    let next = self.desk.next_action();
                    return Some(next.unwrap_or_else(|| self.desk.wait_action()));
                }
            }
        }
    }

    /// Tells the machine what happened, and that it is `now`.
    ///
    /// Ignores an event that answers no action: the event may be late, repeated or forged.
    pub fn handle(&mut self, now: Duration, event: Event) {
        self.desk.hear(now, event);
    }

    /// The traffic with the CA so far, in all attempts together.
    pub fn traffic(&self) -> Traffic {
        self.desk.traffic()
    }

    /// How the run ended.
    ///
    /// # Errors
    /// Why there is no result; [`Failure::Unfinished`] if `poll_action` has not given `None` yet.
    pub fn into_result(self) -> Result<T, Failure> {
        match self.script {
            Script::Running(_) => Err(Failure::Unfinished),
            Script::Ended(result) => result,
        }
    }
}

impl<T> fmt::Debug for Machine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.script {
            Script::Running(_) => "Machine(running)",
            Script::Ended(_) => "Machine(ended)",
        })
    }
}
