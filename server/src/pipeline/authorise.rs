//! Asks the operator's own service about requests, on threads of its own, before anything is signed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use assay_ca_core::EkFacts;
use assay_store::{Actor, Database, NewEnrolment};
use assay_wire::{ClientId, EkId, Problem, ProblemCode};
use crossbeam_channel::Receiver;
use time::OffsetDateTime;

use super::decide::{self, Step, Unsigned};
use super::job::Job;
use super::outcome::About;
use super::plan::Planner;
use super::process::{Decided, Signers};
use crate::ca::Ca;
use crate::hook::{Gift, Hook, Question, Wish, Word};

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

/// The EKs about which the service is being asked. A device asks for one thing at a time, and
/// whoever shows its EK beside it takes no more threads than one.
#[derive(Clone, Default)]
pub(super) struct BeingAsked(Arc<Mutex<HashSet<EkId>>>);

/// That one is being asked about an EK, until this is dropped.
pub(super) struct Place {
    being_asked: BeingAsked,
    ek: EkId,
}

impl BeingAsked {
    /// `None` if one is asked about this EK already.
    pub(super) fn take(&self, ek: EkId) -> Option<Place> {
        self.eks().insert(ek).then(|| Place { being_asked: self.clone(), ek })
    }

    fn eks(&self) -> MutexGuard<'_, HashSet<EkId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.being_asked.eks().remove(&self.ek);
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
        let word = ca.hook.as_ref().map(|hook| ask(hook, &ca, &job, &unsigned, decided));
        let step = match word {
            Some(Err(problem)) => Step::refused(problem, unsigned.into_about()),
            Some(Ok(gift)) if gift != Gift::default() => {
                match keep(database, unsigned.about(), gift, job.received.at) {
                    // What was planned before is not what is on record now.
                    Ok(mut planner) => {
                        let examination = Some(Box::new(unsigned.into_examination()));
                        decide::plan(&mut planner, &ca, &job.received, examination, &decided.log)
                    }
                    Err(error) => {
                        decided.log.fault("what the hook says cannot be done", &error);
                        Step::refused(no_answer(), unsigned.into_about())
                    }
                }
            }
            Some(Ok(_)) | None => Step::Unsigned(unsigned),
        };
        signers.finish(ca, job, step, attempts, decided);
    }
}

/// What the service gives, or what the device is told instead.
fn ask(
    hook: &Hook,
    ca: &Ca,
    job: &Job,
    unsigned: &Unsigned,
    decided: &Decided,
) -> Result<Gift, Problem> {
    let about = unsigned.about();
    let (Some(asking), Some(ek_id), Some(device_id)) =
        (&about.asking, about.ek_id, about.device_id())
    else {
        return Ok(Gift::default());
    };
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
        store.set_configuration(Some(&named), Some(document.as_bytes()), at)?;
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

/// The answer while one is asked about the EK already.
pub(super) fn is_being_asked() -> Problem {
    let detail = "the operator's service is being asked about this TPM";
    Problem::new(ProblemCode::Busy, detail.into()).retry_after(RETRY_AFTER_ASKING_S)
}

/// As long as a service that does not answer rests.
const RETRY_AFTER_S: u32 = 10;
/// Most services answer sooner.
const RETRY_AFTER_ASKING_S: u32 = 2;
/// Requests that wait for a thread: the last one is asked about while its device still waits.
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
        let place = being_asked.take([1; 32].into()).unwrap();
        assert!(being_asked.take([1; 32].into()).is_none());
        assert!(being_asked.take([2; 32].into()).is_some());
        drop(place);
        assert!(being_asked.take([1; 32].into()).is_some());
    }
}
