//! The clocks of the machine, and a timer that also wakes when somebody sets the clock or the
//! machine resumes.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use super::plan::{Now, Wake};
use crate::error::Error;

/// One timer of the kernel, by the clock that people set (timerfd_create(2)).
///
/// The kernel also ends the wait if that clock is set, and if the machine resumes from suspension,
/// because either changes what the clock says by a step (TFD_TIMER_CANCEL_ON_SET). So the agent
/// need not look from time to time.
pub(super) struct Timer {
    fd: AsyncFd<File>,
}

impl Timer {
    pub(super) fn new() -> Result<Self, Error> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Realtime, flags).map_err(fault)?;
        #[expect(deprecated, reason = "its successor is unsafe; a File keeps its descriptor open")]
        let fd = AsyncFd::new(File::from(fd)).map_err(fault)?;
        Ok(Self { fd })
    }

    /// Waits until it is time to look again. It may return earlier.
    pub(super) async fn wait(&self, wake: Wake, now: Now) -> Result<(), Error> {
        if !self.set(wake.wall.unwrap_or(NEVER))? {
            return Ok(());
        }
        let delay = wake.boot.map(|until| until.saturating_sub(now.boot));
        tokio::select! {
            () = tokio::time::sleep(delay.unwrap_or(AN_AGE)), if delay.is_some() => Ok(()),
            woken = self.woken() => woken,
        }
    }

    /// Arms the timer. False if somebody set the clock since it was armed before.
    fn set(&self, wall: u64) -> Result<bool, Error> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A value of zero would disarm the timer.
        let at = Timespec { tv_sec: wall.clamp(1, NEVER) as i64, tv_nsec: 0 };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(&self.fd, flags, &Itimerspec { it_interval: zero, it_value: at }) {
            Ok(_) => Ok(true),
            Err(Errno::CANCELED) => Ok(false),
            Err(error) => Err(fault(error)),
        }
    }

    async fn woken(&self) -> Result<(), Error> {
        loop {
            let mut ready = self.fd.readable().await.map_err(fault)?;
            match self.fd.get_ref().read(&mut [0; 8]) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.raw_os_error() == Some(Errno::CANCELED.raw_os_error()) => {
                    return Ok(());
                }
                Err(error) => return Err(fault(error)),
            }
        }
    }
}

/// The time by all clocks; `wall` is what the device takes the time to be.
pub(super) fn now(wall: u64) -> Now {
    let read = |clock| {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
        // A time before 1970 counts as 1970. The other clocks begin at zero.
        Duration::new(tv_sec.try_into().unwrap_or_default(), tv_nsec.try_into().unwrap_or_default())
    };
    let system = read(ClockId::Realtime).as_secs();
    Now { wall, system, boot: read(ClockId::Boottime), awake: read(ClockId::Monotonic) }
}

fn fault(error: impl std::fmt::Display) -> Error {
    Error::Internal(format!("timer: {error}"))
}

/// A time that does not come, in seconds since 1970. The timer is armed for it to hear of clocks
/// that are set.
const NEVER: u64 = 1 << 40;
const AN_AGE: Duration = Duration::from_hours(24);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::runtime::runtime;

    fn waits(wake: impl FnOnce(Now) -> Wake) -> Duration {
        runtime().unwrap().block_on(async {
            let (timer, now, begun) = (Timer::new().unwrap(), now(0), Instant::now());
            timer.wait(wake(now), now).await.unwrap();
            begun.elapsed()
        })
    }

    #[test]
    fn timer_waits_by_either_clock_until_the_first_of_two_times() {
        let soon = Duration::from_millis(300);
        let by_boot = waits(|now| Wake { boot: Some(now.boot + soon), wall: None });
        assert!(by_boot >= soon && by_boot < 10 * soon, "{by_boot:?}");
        let by_wall = waits(|now| Wake { boot: None, wall: Some(now.system + 1) });
        assert!(by_wall < Duration::from_secs(3), "{by_wall:?}");
        let both = |now: Now| Wake { boot: Some(now.boot + soon), wall: Some(now.system + 3600) };
        assert!(waits(both) < 10 * soon);
    }

    #[test]
    fn time_that_is_past_is_not_waited_for() {
        let past = waits(|now| Wake { boot: Some(now.boot), wall: Some(1) });
        assert!(past < Duration::from_millis(200), "{past:?}");
    }
}
