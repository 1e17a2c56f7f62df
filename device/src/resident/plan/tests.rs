//! The agent's decisions in simulated time: hours take no time, and every random delay is the
//! longest.

use super::*;

/// How a conversation ends, and what is stored then.
type Ca = Box<dyn Fn(u64, &Stored) -> (Result<(), Obstacle>, Stored)>;

/// An agent, its machine, a broker and a CA. The last two are functions of the time.
struct World {
    plan: Plan,
    now: Now,
    broker: Box<dyn Fn(u64) -> Result<Option<Duration>, Obstacle>>,
    ca: Ca,
    /// What was done, and when, in seconds since the start.
    done: Vec<(u64, Action)>,
    notices: Vec<Notice>,
}

impl World {
    fn new(stored: Stored) -> Self {
        let booted = Duration::from_secs(50);
        let now = Now { wall: START, system: START, boot: booted, awake: booted };
        Self {
            plan: Plan::new(stored, now, || u32::MAX),
            now,
            broker: Box::new(|_| Ok(None)),
            ca: Box::new(|wall, _| (Ok(()), certificate(&wall.to_string(), wall))),
            done: Vec::new(),
            notices: Vec::new(),
        }
    }

    fn seconds(&self) -> u64 {
        (self.now.boot - Duration::from_secs(50)).as_secs()
    }

    /// Does what is to be done now. Conversations and connections take no time.
    fn act(&mut self) {
        self.notices.extend(self.plan.observe(self.now));
        for _ in 0..100 {
            let Some(action) = self.plan.next(self.now) else { return };
            self.done.push((self.seconds(), action));
            let at = self.now.boot.as_secs() - 50;
            let event = match action {
                Action::Connect => match (self.broker)(at) {
                    Ok(good_for) => {
                        let key = match &self.plan.stored {
                            Stored::SharedKey { key, .. } => Some(key.clone()),
                            _ => None,
                        };
                        Event::Connected { good_for, key }
                    }
                    Err(obstacle) => Event::NotConnected(obstacle),
                },
                Action::Start(_) => {
                    let (outcome, stored) = (self.ca)(self.now.wall, &self.plan.stored);
                    Event::JobEnded(outcome, stored)
                }
            };
            self.plan.handle(self.now, event);
        }
        panic!("it does not come to rest: {:?}", self.done);
    }

    /// Lets time pass. The agent wakes when it said.
    fn run(&mut self, time: Duration) {
        let end = self.now.boot + time;
        loop {
            self.act();
            let wake = self.plan.wake(self.now);
            let by_wall = wake.wall.map(|wall| {
                self.now.boot + Duration::from_secs(wall.saturating_sub(self.now.wall))
            });
            let next = wake.boot.into_iter().chain(by_wall).min().unwrap_or(Duration::MAX);
            assert!(next > self.now.boot, "it wakes at once again, for ever: {wake:?}");
            if next > end {
                self.pass(end - self.now.boot);
                return;
            }
            self.pass(next - self.now.boot);
        }
    }

    fn pass(&mut self, time: Duration) {
        // Whole seconds, as the wall clock counts.
        let time = Duration::from_secs(time.as_millis().div_ceil(1000) as u64);
        self.now.boot += time;
        self.now.awake += time;
        self.now.wall += time.as_secs();
        self.now.system += time.as_secs();
    }

    /// Somebody sets the clock.
    fn set_clock(&mut self, wall: u64) {
        (self.now.wall, self.now.system) = (wall, wall);
    }

    fn suspend(&mut self, time: Duration) {
        self.now.boot += time;
        self.set_clock(self.now.wall + time.as_secs());
    }

    fn count(&self, action: Action) -> usize {
        self.done.iter().filter(|(_, done)| *done == action).count()
    }

    fn lose(&mut self) {
        self.plan.handle(self.now, Event::Lost);
    }
}

/// Valid for 90 days, to be renewed after 60.
fn certificate(serial: &str, not_before: u64) -> Stored {
    let (not_after, renew_at) = (not_before + 90 * DAY, not_before + 60 * DAY);
    Stored::Certificate {
        serial: serial.into(),
        not_before,
        not_after,
        renew_at,
        is_finished: true,
    }
}

/// A key that the device has since the start, and rotates after so many days.
fn shared_key(number: u8, days: u64, is_settled: bool) -> Stored {
    let rotation = Rotation { from: START, at: START + days * DAY };
    Stored::SharedKey { key: vec![number], rotation, is_settled }
}

/// A key that the device got at this time, and rotates 90 days later.
fn next_key(wall: u64) -> Stored {
    let rotation = Rotation { from: wall, at: wall + 90 * DAY };
    Stored::SharedKey { key: wall.to_be_bytes().into(), rotation, is_settled: false }
}

fn settled(stored: &Stored) -> Stored {
    let Stored::SharedKey { key, rotation, .. } = stored.clone() else { panic!("{stored:?}") };
    Stored::SharedKey { key, rotation, is_settled: true }
}

fn refused_for_good(retry_after: u64) -> Obstacle {
    Obstacle::Lasting { retry_after: Duration::from_secs(retry_after) }
}

const START: u64 = 1_800_000_000;
const DAY: u64 = 86_400;
const HOUR: Duration = Duration::from_hours(1);

const PROVISION: Action = Action::Start(Job::Provision);
const AGAIN: Action = Action::Start(Job::ProvisionAgain);
const RENEW: Action = Action::Start(Job::Renew);
const ROTATE: Action = Action::Start(Job::Rotate);
const SETTLE: Action = Action::Start(Job::Settle);

/// A CA that gives the next key whenever it is asked, and a device that settles.
fn rotating() -> Ca {
    Box::new(|wall, stored| match stored {
        Stored::SharedKey { is_settled: false, .. } => (Ok(()), settled(stored)),
        _ => (Ok(()), next_key(wall)),
    })
}

#[test]
fn a_shared_key_is_rotated_when_it_is_due_and_settled_once_a_broker_took_it() {
    let mut world = World::new(shared_key(1, 90, true));
    world.ca = rotating();
    world.run(Duration::from_secs(90 * DAY - 1));
    assert_eq!(world.done, [(0, Action::Connect)]);
    world.run(HOUR);
    let at = 90 * DAY;
    assert_eq!(world.done[1..], [(at, ROTATE), (at, Action::Connect), (at, SETTLE)]);
    world.run(Duration::from_secs(90 * DAY));
    assert_eq!((world.count(ROTATE), world.count(SETTLE)), (2, 2));
}

#[test]
fn a_shared_key_that_an_earlier_agent_did_not_settle_is_settled_once_it_is_online() {
    let mut world = World::new(shared_key(2, 90, false));
    world.ca = rotating();
    world.broker = Box::new(|at| if at < 60 { Err(Obstacle::Passing) } else { Ok(None) });
    world.run(HOUR);
    assert_eq!(world.count(SETTLE), 1);
    assert!(world.done.iter().all(|(at, done)| *done != SETTLE || *at >= 60), "{:?}", world.done);
    assert_eq!(world.count(ROTATE), 0);
}

#[test]
fn a_connection_of_the_key_before_settles_nothing() {
    let mut world = World::new(shared_key(2, 90, false));
    world.plan.handle(world.now, Event::Connected { good_for: None, key: Some(vec![1]) });
    assert_eq!(world.plan.next(world.now), None);
    world.plan.handle(world.now, Event::Connected { good_for: None, key: Some(vec![2]) });
    assert_eq!(world.plan.next(world.now), Some(SETTLE));
}

#[test]
fn a_key_that_the_broker_does_not_take_is_given_up_and_the_one_before_connects() {
    let mut world = World::new(shared_key(2, 90, false));
    world.broker = Box::new(|at| if at < 1 { Err(Obstacle::Refused) } else { Ok(None) });
    world.ca = Box::new(|wall, _| {
        let rotation = Rotation { from: wall, at: wall + DAY };
        (Ok(()), Stored::SharedKey { key: vec![1], rotation, is_settled: true })
    });
    world.run(HOUR);
    assert_eq!(world.count(AGAIN), 1, "{:?}", world.done);
    assert_eq!(world.done.last().map(|(_, done)| *done), Some(Action::Connect));
    assert_eq!((world.count(ROTATE), world.count(SETTLE)), (0, 0));
}

#[test]
fn a_ca_that_does_not_rotate_a_key_is_asked_once_a_day_whatever_the_clock_does() {
    let mut world = World::new(shared_key(1, 1, true));
    world.ca = Box::new(|wall, _| {
        let rotation = Rotation { from: wall, at: wall + DAY };
        (Ok(()), Stored::SharedKey { key: vec![1], rotation, is_settled: true })
    });
    world.run(10 * 24 * HOUR);
    assert_eq!(world.count(ROTATE), 10);
    world.set_clock(START);
    world.run(3 * 24 * HOUR);
    assert_eq!(world.count(ROTATE), 13, "a clock that was set back keeps no key for ever");
    assert_eq!(world.count(Action::Connect), 1);
}

#[test]
fn a_new_device_is_provisioned_and_then_connects() {
    let mut world = World::new(Stored::Nothing);
    world.run(HOUR);
    assert_eq!(world.done, [(0, PROVISION), (0, Action::Connect)]);
    assert!(world.plan.is_provisioned());
}

#[test]
fn a_provisioned_device_connects_at_once_and_then_sleeps_until_its_renewal() {
    let mut world = World::new(certificate("a", START));
    world.run(HOUR);
    assert_eq!(world.done, [(0, Action::Connect)]);
    let wake = world.plan.wake(world.now);
    assert_eq!(wake.wall, Some(START + 60 * DAY));
    assert_eq!(wake.boot, Some(Duration::from_secs(50 + 60 * DAY)), "if there is no clock");
}

#[test]
fn delays_of_a_device_whose_ca_is_away_grow_to_a_minute_and_are_random_below() {
    let mut world = World::new(Stored::Nothing);
    world.ca = Box::new(|_, _| (Err(Obstacle::Passing), Stored::Nothing));
    world.run(HOUR);
    let times: Vec<_> = world.done.iter().take(8).map(|(time, _)| *time).collect();
    assert_eq!(times, [0, 1, 3, 7, 15, 31, 63, 123]);
    assert_eq!(world.count(Action::Connect), 0, "there is nothing to show");

    let mut lucky = World::new(Stored::Nothing);
    lucky.plan.random = || 0;
    lucky.plan.handle(lucky.now, Event::JobEnded(Err(Obstacle::Passing), Stored::Nothing));
    assert_eq!(lucky.plan.next(lucky.now), Some(PROVISION), "the shortest delay is none");
}

#[test]
fn a_ca_that_names_a_time_is_not_asked_before_it() {
    let mut world = World::new(Stored::Nothing);
    world.ca = Box::new(|_, _| (Err(refused_for_good(3600)), Stored::Nothing));
    world.run(HOUR);
    assert_eq!(world.count(PROVISION), 1);
    world.run(HOUR);
    assert_eq!(world.count(PROVISION), 2);
}

#[test]
fn a_time_that_nobody_waits_for_is_cut_to_a_day() {
    let mut world = World::new(Stored::Nothing);
    world.ca = Box::new(|_, _| (Err(refused_for_good(u32::MAX.into())), Stored::Nothing));
    world.run(10 * 24 * HOUR);
    assert!((9..=10).contains(&world.count(PROVISION)), "{}", world.count(PROVISION));
}

#[test]
fn a_device_that_the_ca_refuses_asks_every_quarter_of_an_hour_at_most() {
    let mut world = World::new(Stored::Nothing);
    world.ca = Box::new(|_, _| (Err(refused_for_good(0)), Stored::Nothing));
    world.run(24 * HOUR);
    assert!((90..110).contains(&world.count(PROVISION)), "{}", world.count(PROVISION));
}

#[test]
fn a_certificate_is_renewed_when_it_is_due_and_the_connection_follows() {
    let mut world = World::new(certificate("a", START));
    world.run(Duration::from_secs(60 * DAY - 1));
    assert_eq!(world.done, [(0, Action::Connect)]);
    world.run(HOUR);
    let at = 60 * DAY;
    assert_eq!(world.done[1..], [(at, RENEW), (at, Action::Connect)]);
    world.run(Duration::from_secs(60 * DAY));
    assert_eq!(world.count(RENEW), 2);
}

#[test]
fn a_renewal_that_fails_is_tried_again_and_the_connection_stays() {
    let mut world = World::new(certificate("a", START - 60 * DAY));
    world.ca = Box::new(|_, stored| (Err(refused_for_good(120)), stored.clone()));
    world.run(HOUR);
    assert_eq!(world.count(Action::Connect), 1);
    assert_eq!(world.done[1].0, 0, "at once");
    let renewals: Vec<_> =
        world.done.iter().filter(|(_, it)| *it == RENEW).map(|(time, _)| *time).collect();
    assert!(renewals[1] >= 120 && (5..20).contains(&renewals.len()), "{renewals:?}");
}

#[test]
fn a_ca_whose_every_certificate_is_due_at_once_is_not_asked_without_end() {
    let mut world = World::new(certificate("a", START - 60 * DAY));
    world.ca = Box::new(|wall, _| (Ok(()), certificate(&wall.to_string(), wall - 60 * DAY)));
    world.run(HOUR);
    assert!(world.count(RENEW) < 15, "{}", world.count(RENEW));
}

#[test]
fn a_ca_that_says_not_due_is_asked_again_when_it_said() {
    let mut world = World::new(certificate("a", START - 60 * DAY));
    world.ca = Box::new(|_, _| (Ok(()), certificate("a", START - 50 * DAY)));
    world.run(Duration::from_secs(10 * DAY - 60));
    assert_eq!((world.count(RENEW), world.count(Action::Connect)), (1, 1));
    world.run(Duration::from_secs(120));
    assert!(world.count(RENEW) > 1);
}

#[test]
fn what_is_not_adopted_or_confirmed_is_finished_first() {
    let Stored::Certificate { serial, not_before, not_after, renew_at, .. } =
        certificate("a", START)
    else {
        unreachable!()
    };
    let unfinished =
        Stored::Certificate { serial, not_before, not_after, renew_at, is_finished: false };
    let mut world = World::new(unfinished);
    world.ca = Box::new(|_, _| (Ok(()), certificate("a", START)));
    world.run(HOUR);
    assert_eq!(world.done, [(0, PROVISION), (0, Action::Connect)]);
}

#[test]
fn an_expired_certificate_is_not_shown_and_the_tpm_is_proven() {
    let mut world = World::new(certificate("a", START - 91 * DAY));
    world.ca = Box::new(|_, stored| (Err(Obstacle::Passing), stored.clone()));
    world.run(HOUR);
    assert_eq!((world.count(Action::Connect), world.count(RENEW)), (0, 0));
    assert!(world.count(PROVISION) > 10);
}

#[test]
fn a_connection_that_is_lost_comes_back_within_a_second_and_a_broker_that_is_away_is_not_hammered()
{
    let mut world = World::new(certificate("a", START));
    world.run(HOUR);
    world.lose();
    world.run(Duration::from_secs(1));
    assert_eq!(world.count(Action::Connect), 2);

    world.broker = Box::new(|_| Err(Obstacle::Passing));
    world.run(Duration::from_secs(60));
    world.lose();
    world.run(HOUR);
    assert!((60..80).contains(&world.count(Action::Connect)), "{:?}", world.done);
    assert_eq!(world.done.len(), world.count(Action::Connect), "the CA is not asked");
}

#[test]
fn two_devices_that_share_an_identity_do_not_cut_each_other_off_without_end() {
    let mut world = World::new(certificate("a", START));
    for _ in 0..600 {
        world.run(Duration::from_secs(1));
        if world.plan.link.up_since.is_some() {
            world.lose();
        }
    }
    assert!(world.count(Action::Connect) < 25, "{}", world.count(Action::Connect));
}

#[test]
fn a_refused_certificate_is_asked_about_once_for_each_refusal_with_growing_pauses() {
    let mut world = World::new(certificate("a", START));
    world.broker = Box::new(|_| Err(Obstacle::Refused));
    world.ca = Box::new(|_, stored| (Err(refused_for_good(0)), stored.clone()));
    world.run(HOUR);
    assert_eq!(world.done[..3], [(0, Action::Connect), (0, AGAIN), (10, Action::Connect)]);
    let (connections, questions) = (world.count(Action::Connect), world.count(AGAIN));
    assert!((6..12).contains(&questions) && connections <= questions + 1, "{:?}", world.done);

    // An operator enables the device.
    world.broker = Box::new(|_| Ok(None));
    world.run(Duration::from_mins(15));
    assert!(world.plan.link.up_since.is_some());
}

#[test]
fn a_refused_device_that_gets_another_certificate_shows_it_at_once() {
    let mut world = World::new(certificate("revoked", START - 1));
    world.broker = Box::new(|at| if at == 0 { Err(Obstacle::Refused) } else { Ok(None) });
    world.run(HOUR);
    assert_eq!(world.done, [(0, Action::Connect), (0, AGAIN), (1, Action::Connect)]);
}

#[test]
fn a_broker_that_refuses_what_the_ca_calls_good_is_not_hammered() {
    let mut world = World::new(certificate("a", START));
    world.broker = Box::new(|_| Err(Obstacle::Refused));
    world.ca = Box::new(|_, stored| (Ok(()), stored.clone()));
    world.run(HOUR);
    assert!(world.done.len() < 25, "{:?}", world.done);
}

#[test]
fn a_key_that_is_gone_makes_the_device_ask_for_another_one_until_it_has_one() {
    let mut world = World::new(certificate("a", START));
    world.broker = Box::new(|at| if at < 3 { Err(Obstacle::Gone) } else { Ok(None) });
    world.ca = Box::new(|wall, stored| {
        if wall < START + 3 {
            (Err(Obstacle::Passing), stored.clone())
        } else {
            (Ok(()), certificate("b", START))
        }
    });
    world.run(HOUR);
    let actions: Vec<_> = world.done.iter().map(|(_, action)| *action).collect();
    assert_eq!(actions, [Action::Connect, PROVISION, PROVISION, PROVISION, Action::Connect]);
}

#[test]
fn a_tpm_that_forgets_its_keys_again_and_again_gets_no_certificate_a_second() {
    let mut world = World::new(certificate("a", START));
    world.broker = Box::new(|_| Err(Obstacle::Gone));
    world.run(HOUR);
    assert!(world.count(PROVISION) < 80, "{}", world.count(PROVISION));
}

#[test]
fn a_token_is_replaced_before_it_ends_and_the_connection_stays_meanwhile() {
    let mut world = World::new(shared_key(1, 90, true));
    world.broker = Box::new(|_| Ok(Some(12 * HOUR)));
    world.run(24 * HOUR);
    let times: Vec<_> = world.done.iter().map(|(time, _)| time / 360).collect();
    // After four fifths: 9.6 h and 19.2 h.
    assert_eq!(times, [0, 96, 192]);
    assert_eq!(world.plan.link.up_since.map(|since| since.as_secs() > 50), Some(true));
}

#[test]
fn a_clock_that_is_set_forward_past_the_end_keeps_the_connection_and_set_right_undoes_it() {
    let mut world = World::new(certificate("a", START));
    world.run(HOUR);
    world.set_clock(world.now.wall + 3650 * DAY);
    world.ca = Box::new(|_, stored| (Err(refused_for_good(0)), stored.clone()));
    world.run(HOUR);
    assert_eq!(world.notices, [Notice::ClockSet(3650 * DAY as i64)]);
    assert!(world.plan.link.up_since.is_some() && world.count(PROVISION) > 0);
    assert!(world.count(PROVISION) < 12);

    let before = world.done.len();
    world.set_clock(world.now.wall - 3650 * DAY);
    world.run(24 * HOUR);
    assert_eq!(world.notices[1..], [Notice::ClockSet(-3650 * DAY as i64)]);
    assert_eq!(world.done.len(), before, "the certificate is good");
}

#[test]
fn a_clock_that_is_set_back_does_not_keep_a_certificate_beyond_its_time() {
    let mut world = World::new(Stored::Nothing);
    world.run(HOUR);
    world.set_clock(world.now.wall - 3650 * DAY);
    world.run(Duration::from_secs(60 * DAY));
    assert_eq!(world.notices, [Notice::ClockSet(-3650 * DAY as i64)]);
    assert_eq!(world.count(RENEW), 1);
}

#[test]
fn a_clock_that_is_set_right_ends_a_long_delay() {
    let mut world = World::new(Stored::Nothing);
    world.ca = Box::new(|wall, _| match wall {
        ..START => (Err(refused_for_good(0)), Stored::Nothing),
        _ => (Ok(()), certificate("a", START)),
    });
    world.set_clock(1000);
    world.plan.last = world.now;
    world.run(12 * HOUR);
    assert_eq!(world.count(Action::Connect), 0);
    world.set_clock(START);
    let set = world.seconds();
    world.run(Duration::from_secs(5));
    assert_eq!(world.done.last(), Some(&(set + 1, Action::Connect)));
}

#[test]
fn a_clock_that_drifts_by_seconds_is_not_one_that_was_set() {
    let mut world = World::new(certificate("a", START));
    for _ in 0..100 {
        world.run(HOUR);
        world.set_clock(world.now.wall + 2);
    }
    assert_eq!(world.notices, []);
}

#[test]
fn a_clock_that_is_set_every_second_does_not_make_the_device_hammer_its_ca() {
    let mut world = World::new(Stored::Nothing);
    world.ca = Box::new(|_, _| (Err(refused_for_good(0)), Stored::Nothing));
    for _ in 0..3600 {
        world.set_clock(world.now.wall + 1000);
        world.run(Duration::from_secs(1));
    }
    assert!(world.count(PROVISION) < 75, "{}", world.count(PROVISION));
}

#[test]
fn a_machine_that_was_suspended_connects_anew_at_once() {
    let mut world = World::new(certificate("a", START));
    world.run(HOUR);
    let asleep = Duration::from_secs(7200);
    world.suspend(asleep);
    let resumed = world.seconds();
    world.run(HOUR);
    assert_eq!(world.notices, [Notice::Resumed(asleep)]);
    assert_eq!(world.done[1..], [(resumed, Action::Connect)]);
}

#[test]
fn a_nap_and_a_long_sleep_without_a_connection_change_nothing() {
    let mut world = World::new(certificate("a", START));
    world.run(HOUR);
    world.suspend(Duration::from_secs(30));
    world.run(HOUR);
    assert_eq!((world.notices.len(), world.count(Action::Connect)), (0, 1));
}

#[test]
fn a_renewal_that_came_due_in_suspension_is_made_on_resumption() {
    let mut world = World::new(certificate("a", START));
    world.run(HOUR);
    let asleep = Duration::from_secs(70 * DAY);
    world.suspend(asleep);
    let resumed = world.seconds();
    world.run(HOUR);
    assert_eq!(world.done[1], (resumed, RENEW));
    assert_eq!(world.count(RENEW), 1);
}

#[test]
fn a_device_without_a_clock_renews_after_the_time_that_the_ca_said() {
    let mut world = World::new(certificate("a", START));
    // The time is taken to be the first day of the root, for ever.
    for _ in 0..60 * 24 {
        world.act();
        world.now.boot += HOUR;
        world.now.awake += HOUR;
        world.now.system += 3600;
    }
    assert_eq!(world.count(RENEW), 0);
    world.act();
    assert_eq!(world.count(RENEW), 1);
    assert!(!world.notices.iter().any(|it| matches!(it, Notice::ClockSet(_))));
}

#[test]
fn a_renewed_certificate_whose_adoption_came_late_is_used_then() {
    let mut world = World::new(certificate("a", START - 60 * DAY));
    let unfinished = |is_finished| Stored::Certificate {
        serial: "b".into(),
        not_before: START,
        not_after: START + 90 * DAY,
        renew_at: START + 60 * DAY,
        is_finished,
    };
    world.ca = Box::new(move |_, stored| match name(stored) {
        Some(b"a") => (Err(Obstacle::Passing), unfinished(false)),
        _ => (Ok(()), unfinished(true)),
    });
    world.run(HOUR);
    let actions: Vec<_> = world.done.iter().map(|(_, action)| *action).collect();
    assert_eq!(actions, [RENEW, Action::Connect, PROVISION, Action::Connect]);
}

fn news(concerns: u64, newest: u64) -> Event {
    Event::News(News { concerns, newest, spread: Duration::from_secs(100) })
}

/// A device with a good certificate, online, that knows the configuration of revision 5.
fn configured() -> World {
    let mut world = World::new(certificate("1", START));
    // Nothing is due: the CA gives the same certificate.
    world.ca = Box::new(|_, stored| (Ok(()), stored.clone()));
    world.plan.has_configuration(5);
    world.run(Duration::from_secs(1));
    world
}

fn hear(world: &mut World, event: Event) {
    world.plan.handle(world.now, event);
}

#[test]
fn device_asks_once_for_a_configuration_that_is_new_and_not_at_once() {
    let mut world = configured();
    let asked = |world: &World| world.count(Action::Start(Job::Renew));
    hear(&mut world, news(6, 6));
    world.run(Duration::from_secs(90));
    assert_eq!(asked(&world), 0, "before its turn");
    world.run(Duration::from_secs(20));
    assert_eq!(asked(&world), 1);
    // The broker retains the news, and tells them at each connection.
    hear(&mut world, news(6, 6));
    world.run(Duration::from_hours(1));
    assert_eq!(asked(&world), 1);
}

#[test]
fn device_does_not_ask_for_what_concerns_others() {
    let mut world = configured();
    for newest in 6..20 {
        hear(&mut world, news(5, newest));
    }
    world.run(Duration::from_hours(1));
    // What concerned others then, among those that are no longer named.
    hear(&mut world, news(19, 30));
    world.run(Duration::from_hours(1));
    assert_eq!(world.count(Action::Start(Job::Renew)), 0);
    hear(&mut world, news(31, 31));
    world.run(Duration::from_hours(1));
    assert_eq!(world.count(Action::Start(Job::Renew)), 1);
}

#[test]
fn news_without_end_make_a_device_ask_seldom() {
    let mut world = configured();
    for revision in 6..606 {
        let spread = Duration::ZERO;
        let news = News { concerns: revision, newest: revision, spread };
        hear(&mut world, Event::News(news));
        world.run(Duration::from_secs(1));
    }
    let asked = world.count(Action::Start(Job::Renew));
    assert!((10..=61).contains(&asked), "{asked} in ten minutes");
}

#[test]
fn device_asks_again_until_the_ca_answers() {
    let mut world = configured();
    world.ca = Box::new(|_, stored| (Err(Obstacle::Passing), stored.clone()));
    hear(&mut world, news(6, 6));
    world.run(Duration::from_mins(10));
    let asked = world.count(Action::Start(Job::Renew));
    assert!(asked > 3, "{asked}");
    world.ca = Box::new(|_, stored| (Ok(()), stored.clone()));
    world.run(Duration::from_mins(10));
    let asked = world.count(Action::Start(Job::Renew));
    world.run(Duration::from_hours(1));
    assert_eq!(world.count(Action::Start(Job::Renew)), asked);
}

#[test]
fn news_that_were_not_true_do_not_make_a_device_deaf() {
    let mut world = configured();
    hear(&mut world, news(u64::MAX, u64::MAX));
    world.run(Duration::from_hours(1));
    assert_eq!(world.count(Action::Start(Job::Renew)), 1);
    hear(&mut world, news(6, 6));
    world.run(Duration::from_hours(1));
    assert_eq!(world.count(Action::Start(Job::Renew)), 2);
}

#[test]
fn device_waits_an_hour_at_most_whatever_the_news_say() {
    let mut world = configured();
    hear(&mut world, Event::News(News { concerns: 6, newest: 6, spread: Duration::MAX }));
    world.run(Duration::from_secs(3602));
    assert_eq!(world.count(Action::Start(Job::Renew)), 1);
}

#[test]
fn certificate_that_another_process_got_is_found_once_and_renewed_in_its_own_time() {
    let mut world = World::new(certificate("old", START));
    world.act();
    let found = certificate("another", START + 60);
    assert!(!world.plan.is_anothers(&certificate("old", START)));
    assert!(world.plan.is_anothers(&found));
    world.plan.handle(world.now, Event::Found(found.clone()));
    assert!(!world.plan.is_anothers(&found), "it was told of");
    assert_eq!(world.plan.next(world.now), None);
    // While a conversation is under way, its end tells.
    world.plan.job = Some(Job::Renew);
    assert!(!world.plan.is_anothers(&certificate("third", START + 90)));
}
