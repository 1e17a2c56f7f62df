//! A year in five minutes: a fleet and its CA, whose clock is set month by month. Nobody touches a
//! device.

mod devices;
mod fleet;
mod operator;
mod record;
mod world;

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use devices::RealDevice;
use fleet::Fleet;
use record::{InForce, months_of_renewals};
use world::World;

/// Most devices renew in each. Who sleeps longest renews in twelve: it sleeps for two, comes back
/// by the ticket flow after that, and after the CA's loss.
const MONTHS: u32 = 16;
/// The CA's disk is lost in this month.
const LOSS: u32 = 5;
/// A tenth of the simulated devices sleep in this month.
const SLEEP: u32 = 3;

#[test]
#[ignore = "takes minutes: cargo xtask test year"]
fn a_fleet_lives_for_a_year_and_nobody_touches_a_device() -> Result<()> {
    let began = Instant::now();
    let mut world = World::new()?;
    let mut devices = RealDevice::all(&world)?;
    let fleet = Fleet::provision(&world)?;
    let (simulated, real) = (fleet::DEVICES, devices.len());
    say(&format!(
        "day 1: {simulated} simulated devices and {real} with TPMs; {:.1?}",
        began.elapsed()
    ));
    for month in 1..=MONTHS {
        let began = Instant::now();
        devices.iter_mut().try_for_each(|device| device.sleep(month))?;
        world.pass_a_month()?;
        nobody_who_was_awake_is_without_a_good_certificate(&world, &devices)?;
        if let Some(done) = operator::act(&world)? {
            say(&format!("  the operator: {done}"));
        }
        let said = if month == LOSS {
            lose_the_disk(&mut world, &fleet, &mut devices)?
        } else {
            everybody_lives(&world, &fleet, &mut devices)?
        };
        say(&format!("month {month}: {said}; {:.1?}", began.elapsed()));
    }
    everybody_renewed(&world, &devices, 12)?;
    operator::everything_leads_to_the_new_root(&world)?;
    say(&format!("the year took {:.0?}", began.elapsed()));
    Ok(())
}

/// Tells how far the year is, also where a test's output is kept until it fails.
fn say(what: &str) {
    // Nobody may be listening.
    _ = writeln!(io::stderr(), "{what}");
}

/// The first of many, for a message.
fn few<T: std::fmt::Debug>(all: &[T]) -> String {
    format!("{:?}{}", &all[..all.len().min(5)], if all.len() > 5 { " and others" } else { "" })
}

/// Whoever was awake a month ago has a certificate that is good until it renews now, and so has
/// whoever slept for less than its certificate is good.
fn nobody_who_was_awake_is_without_a_good_certificate(
    world: &World,
    devices: &[RealDevice],
) -> Result<()> {
    let month = world.month;
    let in_force = InForce::read(world)?;
    let certified = devices.iter().filter(|device| device.has_certificate());
    let (found, expected) = (in_force.len(), fleet::DEVICES + certified.clone().count());
    ensure!(found == expected, "month {month}: {found} certificates in force, not {expected}");
    let overslept =
        certified.filter(|device| device.has_overslept(month)).map(|device| &*device.id);
    let (ended, overslept) = (in_force.ended(world.now()?), overslept.collect::<Vec<_>>());
    ensure!(ended == overslept, "month {month}: the certificates have ended of {}", few(&ended));
    Ok(())
}

/// Every device that is awake renews, and connects.
fn everybody_lives(world: &World, fleet: &Fleet, devices: &mut [RealDevice]) -> Result<String> {
    let month = world.month;
    let asleep = if month == SLEEP { 0.1 } else { 0.0 };
    let done = side_by_side(devices, || fleet.live(world, asleep), |device| device.live(world))?;
    ensure!(done.came_back == 0, "month {month}: {} had nothing to renew", done.came_back);

    let in_force = InForce::read(world)?;
    let awake = devices.iter().filter(|device| !device.is_asleep(month));
    let certified = awake.clone().filter(|device| device.has_certificate());
    for RealDevice { name, id, serial, .. } in certified.clone() {
        let found = in_force.serial_of(id);
        let is_same = found == serial.as_deref();
        ensure!(is_same, "month {month}, device {name}: {found:?} is on record, not {serial:?}");
    }
    let (old, new) = (in_force.older_than(world.began), done.awake + certified.count());
    let lazy = awake.clone().filter(|device| old.contains(&&*device.id)).map(|device| device.name);
    let lazy: Vec<_> = lazy.collect();
    ensure!(lazy.is_empty(), "month {month}: {lazy:?} did not renew");
    let renewed = in_force.len() - old.len();
    ensure!(renewed == new, "month {month}: {renewed} renewed, not {new}; not {}", few(&old));
    let (simulated, real) = (done.awake, awake.count());
    Ok(format!("{simulated} simulated devices and {real} with TPMs renewed and connected"))
}

/// The CA is restored from a backup that does not know half of this month's renewals.
fn lose_the_disk(world: &mut World, fleet: &Fleet, devices: &mut [RealDevice]) -> Result<String> {
    let known = fleet.live(world, 0.5)?.awake;
    let (backup, lists) = (world.file("ca.assay"), world.file("lists.pem"));
    world.assay(&["backup", backup.to_str().context("a path")?])?;
    everybody_lives(world, fleet, devices)?;
    world.assay(&["crl", "--pem", "--out", lists.to_str().context("a path")?])?;
    devices.iter_mut().for_each(RealDevice::expect_trouble);
    world.restore(&backup, &lists)?;

    let world = &*world;
    let back = side_by_side(devices, || fleet.live(world, 0.0), |device| device.come_back(world))?;
    let lost = fleet::DEVICES - known;
    ensure!(back.came_back == lost, "{} simulated devices came back, not {lost}", back.came_back);
    let real = devices.len();
    Ok(format!("the CA is restored; {lost} simulated devices and {real} with TPMs came back"))
}

/// At the end, it is on record that each device renewed in so many months at least.
fn everybody_renewed(world: &World, devices: &[RealDevice], months: usize) -> Result<()> {
    let renewals = months_of_renewals(world)?;
    let lazy: Vec<_> = renewals.iter().filter(|(_, number)| **number < months).collect();
    ensure!(lazy.is_empty(), "renewed in less than {months} months: {}", few(&lazy));
    let certified = devices.iter().filter(|device| device.has_certificate());
    for device in certified.clone() {
        ensure!(renewals.contains_key(&device.id), "device {} never renewed", device.name);
    }
    let (found, expected) = (renewals.len(), fleet::DEVICES + certified.count());
    ensure!(found == expected, "{found} devices renewed, not {expected}");
    Ok(())
}

/// Does something with each device, and something else meanwhile.
fn side_by_side<T: Send>(
    devices: &mut [RealDevice],
    other: impl FnOnce() -> Result<T> + Send,
    each: impl Fn(&mut RealDevice) -> Result<()> + Sync,
) -> Result<T> {
    let began = Instant::now();
    thread::scope(|scope| {
        let other = scope.spawn(move || (other(), began.elapsed()));
        let each = &each;
        let all: Vec<_> = devices
            .iter_mut()
            .map(|device| scope.spawn(move || (each(device), began.elapsed(), device.name)))
            .collect();
        let mut slowest = (Duration::ZERO, "");
        let mut done = Ok(());
        for device in all {
            let (outcome, took, name) = device.join().expect("no panic");
            done = done.and(outcome);
            slowest = slowest.max((took, name));
        }
        let ((other, took), (longest, name)) = (other.join().expect("no panic"), slowest);
        say(&format!("  the simulated devices took {took:.1?}, the device {name} {longest:.1?}"));
        done.and(other)
    })
}
