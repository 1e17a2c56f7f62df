//! Asks the operator's own service about requests, on threads of its own, before anything is signed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use assay_ca_core::EkFacts;
use assay_store::{Actor, Database, NewEnrolment, StoreError};
use assay_wire::{ClientId, EkId, Problem, ProblemCode};
use crossbeam_channel::Receiver;
use time::OffsetDateTime;

use super::decide::{self, Step, Unsigned};
use super::job::Job;
use super::outcome::{About, internal};
use super::plan::Planner;
use super::process::{Decided, Signers, caught};
use crate::ca::Ca;
use crate::hook::{Gift, Question, Wish, Word};

/// What the service is to be asked about a request.
#[derive(Clone)]
pub(super) struct Asking {
    pub(super) wish: Wish,
    /// What is known of the TPM.
    pub(super) facts: Option<EkFacts>,
}

/// A request that waits for the service's word.
pub(super) struct ToAuthorise {
    pub(super) ca: Arc<Ca>,
    pub(super) job: Job,
    pub(super) unsigned: Box<Unsigned>,
    pub(super) attempts: u32,
    pub(super) place: Place,
}

/// The EKs about which the service is being asked, and whether the device had proved itself. A
/// device asks for one thing at a time, and whoever shows its EK beside it takes no more threads than
/// one, and not the place in which it renews.
#[derive(Clone, Default)]
pub(super) struct BeingAsked(Arc<Mutex<HashSet<(EkId, bool)>>>);

/// That one is being asked about an EK, until this is dropped.
pub(super) struct Place {
    being_asked: BeingAsked,
    of: (EkId, bool),
}

impl BeingAsked {
    /// `None` if one is asked about this EK already.
    pub(super) fn take(&self, ek: EkId, wish: Wish) -> Option<Place> {
        let of = (ek, wish == Wish::Renew);
        self.eks().insert(of).then(|| Place { being_asked: self.clone(), of })
    }

    fn eks(&self) -> MutexGuard<'_, HashSet<(EkId, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.being_asked.eks().remove(&self.of);
    }
}

/// Asks until nobody plans any more.
pub(super) fn run(
    database: &Database,
    waiting: &Receiver<Box<ToAuthorise>>,
    decided: &Decided,
    signers: &Signers,
) {
    for to_authorise in waiting {
        let ToAuthorise { ca, job, unsigned, attempts, place: _place } = *to_authorise;
        let step = caught(&job, &decided.log, || authorise(database, &ca, &job, unsigned, decided));
        let step = step.unwrap_or_else(|| Step::refused(internal(), About::unreadable()));
        signers.finish(ca, job, step, attempts, decided);
    }
}

/// The step that the service allows.
fn authorise(
    database: &Database,
    ca: &Ca,
    job: &Job,
    unsigned: Box<Unsigned>,
    decided: &Decided,
) -> Step {
    let log = &decided.log;
    match ask(ca, job, &unsigned, decided) {
        Err(problem) => Step::refused(problem, unsigned.into_about()),
        Ok(gift) if gift == Gift::default() => Step::Unsigned(unsigned),
        Ok(gift) => match keep(database, unsigned.about(), gift, job.received.at) {
            // What was planned before is not what is on record now.
            Ok(mut planner) => {
                let examination = Some(Box::new(unsigned.into_examination()));
                decide::plan(&mut planner, ca, &job.received, examination, log)
            }
            Err(error) => {
                log.fault("what the hook says cannot be done", &error);
                Step::refused(cannot_be_done(&error), unsigned.into_about())
            }
        },
    }
}

/// What the service gives, or what the device is told instead.
fn ask(ca: &Ca, job: &Job, unsigned: &Unsigned, decided: &Decided) -> Result<Gift, Problem> {
    let about = unsigned.about();
    let (Some(hook), Some(asking), Some(ek_id), Some(device_id)) =
        (&ca.hook, &about.asking, about.ek_id, about.device_id())
    else {
        return Err(no_answer());
    };
    // Its device does not wait any more, and comes again.
    if job.delivery.since.elapsed() > STALE {
        return Err(no_answer());
    }
    let began = Instant::now();
    let word = hook.ask(&Question {
        scope: &ca.scope,
        wish: asking.wish,
        request: about.action,
        client: &job.received.client,
        ek_id,
        device_id,
        facts: asking.facts.as_ref(),
        at: job.received.at,
    });
    decided.outbox.metrics.took("hook", began.elapsed());
    match word {
        Ok(Word::Admit(gift)) => Ok(gift),
        Ok(Word::Refuse(reason)) => Err(Problem::new(
            ProblemCode::NotAdmitted,
            format!("the operator's service refuses it: {reason}"),
        )),
        Err(error) => {
            decided.log.fault("the hook gives no answer", &error);
            Err(no_answer())
        }
    }
}

/// Puts on record what the service gives to a device. Returns a planner for what is new: few
/// devices get something, so no thread keeps a connection to the store for them.
fn keep(database: &Database, about: &About, gift: Gift, at: OffsetDateTime) -> Result<Planner> {
    let Gift { device_id, tags, configuration } = gift;
    let asked = about.ek_id.zip(about.asking.as_ref()).zip(about.device_id());
    let ((ek_id, asking), due) = asked.context("nobody was asked about it")?;
    let mut store = database.open()?;
    store.act_as(Actor { name: hook_itself(), at });
    let named = device_id.clone().unwrap_or_else(|| due.clone());
    // Only a new device can be named.
    let is_new = asking.wish == Wish::Admit;
    ensure!(is_new || named == *due, "{due} cannot be called {named}: it is registered");
    if is_new && (device_id.is_some() || !tags.is_empty()) {
        let device_id = device_id.filter(|name| name != due);
        let new = NewEnrolment {
            ek_id,
            device_id,
            recognised: "hook".into(),
            reprovision: None,
            legacy_dps_ek: None,
            plain_srk: None,
            disabled: None,
            tags,
            facts: asking.facts.clone(),
            added_at: at,
        };
        for result in store.approve(&[new])? {
            result?;
        }
    }
    if let Some(document) = configuration {
        // It says the same again whenever a device asks.
        let has = store.configuration(&named)?.and_then(|due| due.document);
        if has.as_deref() != Some(document.as_bytes()) {
            store.set_configuration(Some(&named), Some(document.as_bytes()), at)?;
        }
    }
    Ok(Planner::open(store)?)
}

/// Who acts, in the audit.
fn hook_itself() -> ClientId {
    "hook".parse().expect("letters are a client id")
}

/// The answer while the service does not say anything that counts.
fn no_answer() -> Problem {
    let detail = "the operator's service, which decides on devices, gives no answer";
    Problem::new(ProblemCode::Busy, detail.into()).retry_after(RETRY_AFTER_S)
}

/// The answer if the service gives a device what it cannot have: it stays so until somebody acts.
fn cannot_be_done(error: &anyhow::Error) -> Problem {
    if error.is::<StoreError>() {
        return no_answer();
    }
    let detail = "the operator's service gives it a name or tags that it cannot have; the CA's log \
                  says why";
    Problem::new(ProblemCode::NotAdmitted, detail.into())
}

/// The answer while one is asked about the EK already.
pub(super) fn is_being_asked() -> Problem {
    let detail = "the operator's service is being asked about this TPM";
    Problem::new(ProblemCode::Busy, detail.into()).retry_after(RETRY_AFTER_ASKING_S)
}

/// As long as a service that does not answer rests.
const RETRY_AFTER_S: u32 = 10;
/// A device waits for 20 s, and the service may take 5.
const STALE: Duration = Duration::from_secs(12);
/// Most services answer sooner.
const RETRY_AFTER_ASKING_S: u32 = 2;
/// Requests that wait for a thread.
pub(super) const QUESTIONS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Directory;

    /// Otherwise a service could give one device's name, and with it the place of another device.
    #[test]
    fn registered_device_gets_no_other_name() {
        let parent = tempfile::tempdir().unwrap();
        Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
        let database = Database::Sqlite(parent.path().join("ca/assay.db"));
        let kept = |wish, name: &str| {
            let mut about = About::new("challenge");
            about.ek_id = Some([1; 32].into());
            about.device = Some(assay_store::Whom::Due("pump-1".parse().unwrap()));
            about.asking = Some(Asking { wish, facts: None });
            let gift = Gift { device_id: Some(name.parse().unwrap()), ..Gift::default() };
            keep(&database, &about, gift, OffsetDateTime::now_utc()).map(drop)
        };
        for wish in [Wish::Recover, Wish::Renew] {
            assert!(kept(wish, "pump-2").unwrap_err().to_string().contains("is registered"));
            assert!(kept(wish, "pump-1").is_ok());
        }
        assert!(database.open().unwrap().enrolments().unwrap().is_empty());
        kept(Wish::Admit, "pump-2").unwrap();
        let rows = database.open().unwrap().enrolments().unwrap();
        assert_eq!(rows[0].device_id.as_ref().unwrap().as_str(), "pump-2");
        // It was given another one.
        assert!(kept(Wish::Admit, "pump-3").is_err());
    }

    #[test]
    fn one_question_about_an_ek_at_a_time() {
        let being_asked = BeingAsked::default();
        let place = being_asked.take([1; 32].into(), Wish::Recover).unwrap();
        assert!(being_asked.take([1; 32].into(), Wish::Admit).is_none());
        assert!(being_asked.take([2; 32].into(), Wish::Admit).is_some());
        // Nobody but the device itself keeps it from renewing.
        assert!(being_asked.take([1; 32].into(), Wish::Renew).is_some());
        drop(place);
        assert!(being_asked.take([1; 32].into(), Wish::Recover).is_some());
    }
}
