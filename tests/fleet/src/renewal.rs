//! Renewal, from a device's side: a device that has a certificate keeps a good one.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow, ensure};
use assay_wire::{
    Adoption, DeviceId, EkId, Flow, Problem, ProblemCode, Renewal, ReplyBody, RequestBody,
};

use crate::device::Granted;
use crate::flow::{Attempt, Stop, check_chain, unexpected};
use crate::tpm::hash::Hash;

impl Attempt<'_> {
    /// Renews the device's certificate, and adopts the new one, when the CA said that this is due,
    /// or `at_once`. A device that the CA refuses this for good, or that the broker refuses, proves
    /// its TPM anew, as assay-device does: its certificate has ended, or the CA does not know it.
    pub(crate) async fn keep_good(&mut self, at_once: bool) -> Result<(), Stop> {
        let granted = match self.device.granted() {
            Some(granted) if !self.device.is_refused() => granted,
            _ => return self.come_back().await,
        };
        if granted.is_adopted && !at_once && !granted.is_due() {
            return Ok(());
        }
        match self.renew_and_adopt(granted).await {
            Err(Stop::Problem(problem)) if !passes(&problem) => self.come_back().await,
            outcome => outcome,
        }
    }

    /// Gets a certificate by the ticket flow. The CA may give the one that it knows of, which may
    /// be due.
    async fn come_back(&mut self) -> Result<(), Stop> {
        let granted = self.provision(Flow::Ticket).await?.ok_or_else(unexpected)?;
        self.tally.came_back();
        self.device.keep(granted.clone());
        if granted.is_due() { self.renew_and_adopt(granted).await } else { Ok(()) }
    }

    async fn renew_and_adopt(&mut self, granted: Granted) -> Result<(), Stop> {
        let renewed = if granted.is_adopted { self.renew(&granted).await? } else { granted };
        self.adopt(renewed).await
    }

    /// Asks for the next certificate, and keeps it before it is adopted.
    async fn renew(&mut self, old: &Granted) -> Result<Granted, Stop> {
        let (ik, time, certificate) = (self.ik()?, now(), sha256(&old.chain[0]));
        let signature = ik.sign(&Renewal::signed(&self.broker.scope, &certificate, time))?;
        let body = RequestBody::Renew(Renewal {
            ek_public: self.device.ek_public()?,
            ek_certificates: self.device.ek_certificates()?,
            certificate,
            time,
            signature: signature.try_into().map_err(anyhow::Error::from)?,
        });
        let ReplyBody::Certificate(reply) = self.ask("renew", body).await? else {
            return Err(unexpected());
        };
        if reply.chain[0] == old.chain[0] {
            return Err(Stop::Wrong(anyhow!("the CA says that the renewal is not due")));
        }
        let device_id = check_chain(&reply.chain, &ik.spki)?;
        check_same(old, &device_id)?;
        let chain: Vec<_> = reply.chain.iter().map(|certificate| &certificate[..]).collect();
        self.broker.paths.verify(&chain)?;
        let granted =
            Granted { device_id, chain: reply.chain, renew_at: reply.renew_at, is_adopted: false };
        self.device.keep(granted.clone());
        Ok(granted)
    }

    async fn adopt(&mut self, renewed: Granted) -> Result<(), Stop> {
        let (ik, time, certificate) = (self.ik()?, now(), sha256(&renewed.chain[0]));
        let signature = ik.sign(&Adoption::signed(&self.broker.scope, &certificate, time))?;
        let body = RequestBody::Adopt(Adoption {
            certificate,
            time,
            signature: signature.try_into().map_err(anyhow::Error::from)?,
            ek_id: EkId::from(sha256(self.device.ek.key.spki())),
        });
        let ReplyBody::Adopted = self.ask("adopt", body).await? else {
            return Err(unexpected());
        };
        self.device.keep(Granted { is_adopted: true, ..renewed });
        Ok(())
    }
}

impl Granted {
    fn is_due(&self) -> bool {
        self.renew_at.is_some_and(|renew_at| renew_at <= now())
    }
}

/// Whether a refusal passes by itself.
fn passes(problem: &Problem) -> bool {
    problem.retry_after.is_some() || problem.code == ProblemCode::ClockOff
}

fn check_same(old: &Granted, device_id: &DeviceId) -> Result<()> {
    ensure!(old.device_id == *device_id, "{} became {device_id}", old.device_id);
    Ok(())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    // Unwrap safety: that is the length of SHA-256.
    Hash::Sha256.digest(&[bytes]).try_into().unwrap()
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
