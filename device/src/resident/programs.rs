//! Which programs wait to be run, and which run: of each kind one at a time.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use assay_wire::{DeviceId, MAX_MESSAGE, MAX_SHOWN, printable};
use tokio::sync::mpsc;

use super::heard::Heard;
use super::program::{NotRun, Program};
use crate::configuration::DeviceConfiguration;
use crate::state;

/// Something that happened, for which an operator may have named a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// The device has another certificate or key than before.
    Renewed,
    /// Somebody published this on a command topic of the device.
    Command {
        /// The topic below `command/`; empty for the topic `command` itself.
        name: String,
        /// What was published.
        payload: Vec<u8>,
    },
    /// The device has another configuration than the program for it has taken.
    Configuration(DeviceConfiguration),
}

/// The programs that the agent runs.
pub(super) struct Programs {
    state: PathBuf,
    reports: mpsc::Sender<Heard>,
    renewed: Queue,
    command: Queue,
    configuration: Queue,
    too_long: TooLong,
}

/// Commands that are too long: anybody who may send commands can send many of them.
#[derive(Default)]
struct TooLong {
    /// When people were told of one.
    told: Option<Instant>,
    /// How many came since.
    untold: u64,
}

struct Queue {
    command: Vec<String>,
    most_waiting: usize,
    is_running: bool,
    waiting: VecDeque<(DeviceId, Occasion)>,
    /// How many were not taken since the queue was full.
    dropped: u64,
}

impl Programs {
    pub(super) fn new(
        state: PathBuf,
        on_renewed: Vec<String>,
        on_command: Vec<String>,
        on_configuration: Vec<String>,
        reports: mpsc::Sender<Heard>,
    ) -> Self {
        // One more run for new certificates says all that there is to say.
        let renewed = Queue::new(on_renewed, 1);
        let command = Queue::new(on_command, COMMANDS);
        let configuration = Queue::new(on_configuration, 1);
        let too_long = TooLong::default();
        Self { state, reports, renewed, command, configuration, too_long }
    }

    /// Runs the program for this now, or when it is its turn. Returns a line for people if that
    /// will not be.
    pub(super) fn on(
        &mut self,
        device_id: DeviceId,
        occasion: Occasion,
        now: Instant,
    ) -> Option<String> {
        let queue = self.queue(&occasion);
        if queue.command.is_empty() {
            return None;
        }
        if let Occasion::Command { name, payload } = &occasion
            && payload.len() > MAX_COMMAND
        {
            return self.too_long.next(name, payload.len(), now);
        }
        if matches!(occasion, Occasion::Configuration(_)) {
            // Only the newest counts.
            queue.waiting.clear();
        }
        if queue.waiting.len() < queue.most_waiting {
            queue.waiting.push_back((device_id, occasion));
        } else if matches!(occasion, Occasion::Command { .. }) {
            queue.dropped += 1;
            return (queue.dropped == 1)
                .then(|| format!("commands are dropped: {COMMANDS} wait for their turn"));
        }
        self.start();
        None
    }

    /// Takes note that a program has ended. Returns lines for people.
    pub(super) fn ended(
        &mut self,
        occasion: &Occasion,
        outcome: Result<ExitStatus, NotRun>,
    ) -> Vec<String> {
        let has_succeeded = outcome.as_ref().is_ok_and(ExitStatus::success);
        if let (Occasion::Configuration(taken), true) = (occasion, has_succeeded) {
            // If this is not kept, the program hears of the same one again.
            _ = state::set_told(&self.state, taken.revision);
        }
        let queue = self.queue(occasion);
        queue.is_running = false;
        let program = queue.command.first().cloned().unwrap_or_default();
        let outcome = outcome.map_or_else(|error| error.to_string(), |status| status.to_string());
        let mut lines = Vec::new();
        match occasion {
            Occasion::Renewed | Occasion::Configuration(_) if has_succeeded => {}
            Occasion::Renewed => {
                lines.push(format!("the program for new certificates failed: {program}: {outcome}"))
            }
            Occasion::Command { name, payload } => {
                let (name, length) = (shown(name), payload.len());
                lines.push(format!("command {name} of {length} bytes: {outcome}"));
            }
            Occasion::Configuration(DeviceConfiguration { revision, .. }) => lines.push(format!(
                "the program for configurations failed with revision {revision}: {program}: \
                 {outcome}"
            )),
        }
        if queue.waiting.is_empty() && queue.dropped > 0 {
            let dropped = std::mem::take(&mut queue.dropped);
            lines.push(format!("commands are taken again; {dropped} were dropped"));
        }
        self.start();
        lines
    }

    fn queue(&mut self, occasion: &Occasion) -> &mut Queue {
        match occasion {
            Occasion::Renewed => &mut self.renewed,
            Occasion::Command { .. } => &mut self.command,
            Occasion::Configuration(_) => &mut self.configuration,
        }
    }

    fn start(&mut self) {
        for queue in [&mut self.renewed, &mut self.command, &mut self.configuration] {
            if queue.is_running {
                continue;
            }
            let Some((device_id, occasion)) = queue.waiting.pop_front() else { continue };
            queue.is_running = true;
            let program = Program::new(&queue.command, &self.state, &device_id);
            let program = match &occasion {
                Occasion::Renewed => program,
                Occasion::Command { name, payload } => {
                    program.with("ASSAY_COMMAND", name).reading(payload.clone())
                }
                Occasion::Configuration(DeviceConfiguration { revision, document, .. }) => program
                    .with("ASSAY_REVISION", revision.to_string())
                    .reading(document.clone().unwrap_or_default()),
            };
            let reports = self.reports.clone();
            tokio::spawn(async move {
                let outcome = program.run().await;
                _ = reports.send(Heard::ProgramEnded(occasion, outcome)).await;
            });
        }
    }
}

impl TooLong {
    /// A line a minute, for one of them and for how many others came.
    fn next(&mut self, name: &str, length: usize, now: Instant) -> Option<String> {
        if self.told.is_some_and(|told| now.duration_since(told) < TELL_AGAIN) {
            self.untold += 1;
            return None;
        }
        self.told = Some(now);
        let others = match std::mem::take(&mut self.untold) {
            0 => String::new(),
            others => format!("; nor were {others} others since the last line"),
        };
        let name = shown(name);
        Some(format!(
            "command {name} of {length} bytes is not run: the limit is {MAX_COMMAND}{others}"
        ))
    }
}

impl Queue {
    fn new(command: Vec<String>, most_waiting: usize) -> Self {
        Self { command, most_waiting, is_running: false, waiting: VecDeque::new(), dropped: 0 }
    }
}

/// A stranger's name of a command, for people.
fn shown(name: &str) -> String {
    format!("\"{}\"", printable(name, MAX_SHOWN))
}

/// The longest command, in bytes: that of the protocol's own messages. The broker drops what does
/// not fit into the packets that the agent says it takes, which are a little longer.
const MAX_COMMAND: usize = MAX_MESSAGE;
/// How often people are told of commands that are too long.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// Commands that wait for their turn. With the longest ones that is a quarter of a megabyte.
const COMMANDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_are_too_long_are_told_of_once_a_minute_with_their_number() {
        let (reports, _heard) = mpsc::channel(1);
        let command = vec!["/bin/false".to_owned()];
        let mut programs = Programs::new("/state".into(), vec![], command, vec![], reports);
        let begun = Instant::now();
        let mut told = |seconds| {
            let payload = vec![0; MAX_COMMAND + 1];
            let occasion = Occasion::Command { name: "flood".into(), payload };
            let now = begun + Duration::from_secs(seconds);
            programs.on("pump-1".parse().unwrap(), occasion, now)
        };
        assert!(told(0).unwrap().ends_with(&format!("the limit is {MAX_COMMAND}")));
        for second in 1..60 {
            assert_eq!(told(second), None);
        }
        assert!(told(60).unwrap().ends_with("nor were 59 others since the last line"));
        assert_eq!(told(61), None);
    }
}
