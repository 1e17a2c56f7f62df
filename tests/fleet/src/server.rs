//! What a process has used: processor time by part, and memory.

use anyhow::{Context, Result};
use procfs::process::Process;
use serde::Serialize;

/// What a server has used since it started.
pub(crate) struct ServerUsage {
    /// Seconds of the threads that decide and store.
    pub(crate) ca: f64,
    /// Seconds of all others: TLS, MQTT, and the worker's own connection.
    pub(crate) broker: f64,
    /// Seconds of PostgreSQL's processes, if the CA is on record there.
    pub(crate) store: Option<f64>,
    pub(crate) memory: Memory,
}

/// Memory of a process in KiB.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) now: u64,
    /// Resident at most since it started.
    pub(crate) peak: u64,
}

impl ServerUsage {
    /// The usage of the `assay serve` with this process id, and of the PostgreSQL with the other.
    pub(crate) fn of(pid: u32, postgres: Option<u32>) -> Result<Self> {
        let process = Process::new(i32::try_from(pid)?).context("the server has ended")?;
        let mut ca = 0;
        for task in process.tasks()? {
            // A thread that has ended meanwhile is not one of the CA's, because those stay.
            if let Ok(stat) = task.and_then(|task| task.stat())
                && CA_THREADS.iter().any(|name| stat.comm.starts_with(name))
            {
                ca += stat.utime + stat.stime;
            }
        }
        // The time of the whole process, because blocking threads come and go.
        let all = process.stat()?;
        let status = process.status()?;
        let (now, peak) = (status.vmrss.context("no VmRSS")?, status.vmhwm.context("no VmHWM")?);
        let broker = (all.utime + all.stime).saturating_sub(ca);
        let store = postgres.map(family).transpose()?;
        let memory = Memory { now, peak };
        Ok(Self { ca: seconds(ca), broker: seconds(broker), store, memory })
    }

    /// The processor time since `before`, and the memory now.
    pub(crate) fn since(self, before: &Self) -> Self {
        let store = self.store.zip(before.store).map(|(after, before)| after - before);
        Self { ca: self.ca - before.ca, broker: self.broker - before.broker, store, ..self }
    }
}

/// The processor time of a process and its children, those that have ended included, in seconds.
fn family(pid: u32) -> Result<f64> {
    let parent = Process::new(i32::try_from(pid)?)?.stat()?;
    let mut ticks = parent.utime + parent.stime;
    ticks += u64::try_from(parent.cutime + parent.cstime).unwrap_or_default();
    for process in procfs::process::all_processes()? {
        // Others come and go.
        if let Ok(stat) = process.and_then(|process| process.stat())
            && stat.ppid == parent.pid
        {
            ticks += stat.utime + stat.stime;
        }
    }
    Ok(seconds(ticks))
}

/// The processor time of this process up to now, in seconds.
pub(crate) fn own_time() -> Result<f64> {
    let stat = Process::myself()?.stat()?;
    Ok(seconds(stat.utime + stat.stime))
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

/// The names that `assay serve` gives to the threads of its worker.
const CA_THREADS: [&str; 4] = ["planner-", "recorder", "herald", "checkpointer"];
