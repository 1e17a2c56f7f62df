//! `cargo xtask bench fleet --flow renew`: devices that have a certificate renew it, each once.

use anyhow::Result;

use super::fleet::{Arguments, Bench, at_least, print_outcomes, write};

/// Measures with each store, prints a table, and writes the reports.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bench = Bench::of(arguments)?;
    let devices = if arguments.quick { QUICK } else { DEVICES };
    let load = |name, store| bench.load(name, bench.runs, &["--flow=renew", store], devices);
    let loads = [
        load("renewals, SQLite", "--store=sqlite")?,
        load("renewals, PostgreSQL", "--store=postgres")?,
    ];
    let [sqlite, postgres] = &loads;
    let results = [
        at_least(3000.0, "renewals/s, SQLite", sqlite.median("/devices_per_second")?),
        at_least(3000.0, "renewals/s, PostgreSQL", postgres.median("/devices_per_second")?),
    ];
    print_outcomes(&results);

    let columns = ["CA", "broker", "PostgreSQL", "fleet", "p50, ms", "p99, ms"];
    println!("\n{:<24}{}", "µs a renewal", columns.map(|name| format!("{name:>12}")).concat());
    for load in &loads {
        let cells = [
            load.median("/cpu_us_per_device/ca")?,
            load.median("/cpu_us_per_device/broker")?,
            // SQLite has no processes of its own.
            load.median("/cpu_us_per_device/store").unwrap_or_default(),
            load.median("/cpu_us_per_device/fleet")?,
            load.median("/latency_ms/device/p50")?,
            load.median("/latency_ms/device/p99")?,
        ];
        println!("{:<24}{}", load.name, cells.map(|cell| format!("{cell:>12.1}")).concat());
    }
    write(arguments, "renewal-bench.json", &loads, &results)
}

/// Five seconds at the target.
const DEVICES: usize = 15_000;
const QUICK: usize = 60;
