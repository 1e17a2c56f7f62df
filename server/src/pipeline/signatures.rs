//! Requests that wait for a signature by a key that is elsewhere.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use assay_wire::{EkId, Problem};
use crossbeam_channel as channel;

use super::outcome::{is_being_signed, signatures_wait};
use super::pressure::Pressure;
use crate::random::random_u32;

/// How much a request has shown before a key signs for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    /// It begins a flow: anybody can send the public keys of any TPM.
    Begins,
    /// It finishes a flow: a ticket or a certificate in force proves whose TPM it is.
    Finishes,
}

/// Bounded queues of what is to be signed, by their sending ends.
///
/// A slow token is a narrow place, so nobody may fill it: of one EK, one request that begins a flow
/// and one that finishes one are in here at a time. These are counted apart, because a stranger can
/// begin a flow in the name of another's EK.
pub(super) struct Signatures<T> {
    finishing: channel::Sender<Placed<T>>,
    beginning: channel::Sender<Placed<T>>,
    in_flight: InFlight,
    /// Of both queues.
    pressure: Arc<Mutex<Pressure>>,
}

/// The receiving ends.
pub(super) struct ToBeSigned<T> {
    finishing: channel::Receiver<Placed<T>>,
    beginning: channel::Receiver<Placed<T>>,
}

/// Something to sign. Its sender may send nothing else of the kind until the place is dropped.
pub(super) struct Placed<T> {
    pub(super) item: T,
    pub(super) place: Place,
}

/// The place of an EK among those that are in flight.
pub(super) struct Place {
    of: (EkId, Standing),
    in_flight: InFlight,
}

impl Drop for Place {
    fn drop(&mut self) {
        locked(&self.in_flight).remove(&self.of);
    }
}

type InFlight = Arc<Mutex<HashSet<(EkId, Standing)>>>;

impl<T> Signatures<T> {
    pub(super) fn new() -> (Self, ToBeSigned<T>) {
        let (finishing, to_finish) = channel::bounded(FINISHING);
        let (beginning, to_begin) = channel::bounded(BEGINNING);
        let (in_flight, pressure) = (InFlight::default(), Pressure::new(Instant::now()));
        let pressure = Arc::new(Mutex::new(pressure));
        let signatures = Self { finishing, beginning, in_flight, pressure };
        (signatures, ToBeSigned { finishing: to_finish, beginning: to_begin })
    }

    /// Gives the item back, and what its sender is told, if there is no place for it.
    pub(super) fn put(&self, item: T, ek: EkId, standing: Standing) -> Result<(), (T, Problem)> {
        let of = (ek, standing);
        if !locked(&self.in_flight).insert(of) {
            return Err((item, is_being_signed(random_u32())));
        }
        let placed = Placed { item, place: Place { of, in_flight: Arc::clone(&self.in_flight) } };
        let queue = match standing {
            Standing::Begins => &self.beginning,
            Standing::Finishes => &self.finishing,
        };
        match queue.try_send(placed) {
            Ok(()) => {
                locked(&self.pressure).take(Instant::now());
                Ok(())
            }
            Err(error) => {
                let advice = locked(&self.pressure).send_away(Instant::now(), random_u32());
                Err((error.into_inner().item, signatures_wait(advice)))
            }
        }
    }
}

impl<T> ToBeSigned<T> {
    /// The next item; `None` when nothing is left, and nobody to put something there.
    ///
    /// Requests that finish a flow go first: who is sent away there has to begin again. `taken`
    /// counts the items taken before. Every eighth may be one that begins a flow, so that those are
    /// not kept out by the others.
    pub(super) fn next(&self, taken: usize) -> Option<Placed<T>> {
        if taken % FINISHED_PER_BEGUN == FINISHED_PER_BEGUN - 1
            && let Ok(placed) = self.beginning.try_recv()
        {
            return Some(placed);
        }
        channel::select_biased! {
            recv(self.finishing) -> placed => placed.or_else(|_| self.beginning.recv()).ok(),
            recv(self.beginning) -> placed => placed.or_else(|_| self.finishing.recv()).ok(),
        }
    }
}

impl<T> ToBeSigned<T> {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.finishing.len() + self.beginning.len()
    }
}

impl<T> Clone for ToBeSigned<T> {
    fn clone(&self) -> Self {
        Self { finishing: self.finishing.clone(), beginning: self.beginning.clone() }
    }
}

impl<T> Clone for Signatures<T> {
    fn clone(&self) -> Self {
        Self {
            finishing: self.finishing.clone(),
            beginning: self.beginning.clone(),
            in_flight: Arc::clone(&self.in_flight),
            pressure: Arc::clone(&self.pressure),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests that wait to be finished: at 20 ms a signature, they wait for a second or so.
const FINISHING: usize = 64;
/// Requests that wait to be begun. If all the others come, too, they get every eighth signature, and
/// wait for 4 s at 20 ms a signature; a device waits for 20 s.
const BEGINNING: usize = 24;
/// While requests that finish a flow wait, one in eight may begin a flow.
const FINISHED_PER_BEGUN: usize = 8;

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use assay_wire::ProblemCode;

    use super::Standing::{Begins, Finishes};
    use super::*;

    fn ek(number: usize) -> EkId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        id.into()
    }

    #[test]
    fn what_finishes_a_flow_is_signed_first_and_what_begins_one_gets_its_turn() {
        let (signatures, to_sign) = Signatures::new();
        for number in 0..3 {
            signatures.put(Begins, ek(number), Begins).unwrap();
        }
        for number in 0..FINISHING {
            signatures.put(Finishes, ek(number), Finishes).unwrap();
        }
        let taken: Vec<_> = (0..24).map(|taken| to_sign.next(taken).unwrap().item).collect();
        assert_eq!(taken[..7], [Finishes; 7]);
        let begun = taken.iter().enumerate().filter(|(_, it)| **it == Begins);
        assert_eq!(begun.map(|(at, _)| at).collect::<Vec<_>>(), [7, 15, 23]);
    }

    #[test]
    fn one_tpm_has_one_request_of_each_kind_in_flight_until_it_is_signed() {
        let (signatures, to_sign) = Signatures::new();
        signatures.put("first", ek(1), Finishes).unwrap();
        let (item, problem) = signatures.put("second", ek(1), Finishes).unwrap_err();
        assert_eq!((item, problem.code), ("second", ProblemCode::Busy));
        assert!(problem.retry_after.is_some());
        // A stranger who begins a flow in the name of an EK keeps its device from finishing nothing.
        signatures.put("begun", ek(1), Begins).unwrap();
        signatures.put("another TPM", ek(2), Finishes).unwrap();
        let being_signed = to_sign.next(0).unwrap();
        assert!(signatures.put("while it is signed", ek(1), Finishes).is_err());
        drop(being_signed);
        signatures.put("afterwards", ek(1), Finishes).unwrap();
    }

    #[test]
    fn queues_are_bounded_and_who_is_sent_away_takes_no_place() {
        for (standing, bound) in [(Finishes, FINISHING), (Begins, BEGINNING)] {
            let (signatures, to_sign) = Signatures::new();
            let fits = |number| signatures.put(number, ek(number), standing).is_ok();
            assert_eq!((0..100).filter(|number| fits(*number)).count(), bound);
            drop(to_sign.next(0));
            assert!(fits(99), "its place is free, and so is one in the queue");
        }
    }

    /// 100 requests at once of one TPM cost others the time of one signature.
    #[test]
    fn pkcs11_queue_of_a_slow_token_cannot_be_filled_by_one_tpm() {
        let (signatures, to_sign) = Signatures::new();
        let signed = thread::scope(|scope| {
            let signer = scope.spawn(move || {
                let mut signed = Vec::new();
                while let Some(placed) = to_sign.next(signed.len()) {
                    thread::sleep(Duration::from_millis(20));
                    signed.push(placed.item);
                }
                signed
            });
            let repeated = (0..100).filter(|_| signatures.put(0, ek(0), Finishes).is_ok()).count();
            assert!(repeated <= 2, "{repeated} got a place");
            for number in 1..=20 {
                signatures.put(number, ek(number), Finishes).unwrap();
            }
            drop(signatures);
            signer.join().unwrap()
        });
        assert!(signed.ends_with(&(1..=20).collect::<Vec<_>>()), "{signed:?}");
    }
}
