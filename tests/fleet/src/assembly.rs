//! Makes the devices of a run from keys.

use anyhow::{Result, ensure};
use assay_wire::Flow;

use crate::bad::{Bad, BadShare, spread};
use crate::device::{Bound, Device};
use crate::factory::{Ek, Factory, Used};
use crate::options::Options;
use crate::tpm::area::ParentKind;
use crate::vendor::Vendor;

/// The devices of a run, made from keys that are not `used` yet.
pub(crate) fn assemble(
    factory: &Factory,
    options: &Options,
    used: &mut Used,
) -> Result<Vec<Device>> {
    let count = options.devices as usize;
    // All pairs of kinds occur.
    let ek_kind = |turn: usize| options.ek[turn % options.ek.len()];
    let ik_kind = |turn: usize| options.ik[turn / options.ek.len() % options.ik.len()];
    let parent_kind =
        |turn: usize| if ek_kind(turn).is_rsa() { ParentKind::Rsa2048 } else { ParentKind::P256 };

    let eks =
        deal(count, ek_kind, |kind, count| factory.eks(kind, used.take("ek", kind.name(), count)))?;
    let bounds: Vec<_> = match options.flow.flow() {
        Flow::Ticket | Flow::Sealed => {
            let iks = deal(count, ik_kind, |kind, count| {
                factory.iks(kind, used.take("ik", kind.name(), count))
            })?;
            iks.into_iter().map(Bound::Ik).collect()
        }
        Flow::SharedKey => {
            let take =
                |used: &mut Used, kind: ParentKind, count| used.take("parent", kind.name(), count);
            let parents = deal(count, parent_kind, |kind, count| {
                factory.parents(kind, take(used, kind, count))
            })?;
            parents.into_iter().map(Bound::Parent).collect()
        }
    };
    let mut devices: Vec<_> =
        eks.into_iter().zip(bounds).map(|(ek, bound)| Device::new(ek, bound)).collect();
    spoil(&mut devices, options)?;
    Ok(devices)
}

/// One key for each turn, of the kind that `kind` names. `make` makes all keys of a kind together.
fn deal<K: Copy + PartialEq, T>(
    turns: usize,
    kind: impl Fn(usize) -> K,
    mut make: impl FnMut(K, usize) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let mut counts: Vec<(K, usize)> = Vec::new();
    for turn in 0..turns {
        match counts.iter_mut().find(|(known, _)| *known == kind(turn)) {
            Some((_, count)) => *count += 1,
            None => counts.push((kind(turn), 1)),
        }
    }
    let mut made = Vec::new();
    for (kind, count) in counts {
        made.push((kind, make(kind, count)?.into_iter()));
    }
    let turn = |turn| {
        made.iter_mut().find(|(known, _)| *known == kind(turn)).and_then(|(_, keys)| keys.next())
    };
    Ok((0..turns).filter_map(turn).collect())
}

/// Makes some devices bad and some churn, as the options say.
fn spoil(devices: &mut [Device], options: &Options) -> Result<()> {
    let mut free = vec![true; devices.len()];
    for BadShare { kind, share } in &options.bad {
        spread(*share, &mut free).into_iter().for_each(|place| devices[place].bad = Some(*kind));
    }
    spread(options.churn, &mut free).into_iter().for_each(|place| devices[place].churns = true);

    let foreign = |bad| {
        let victims = (0..devices.len()).filter(|number| devices[*number].bad == Some(bad));
        victims.map(|number| (number, (number + 1) % devices.len())).collect::<Vec<_>>()
    };
    let (certificates, csrs) = (foreign(Bad::ForeignCertificate), foreign(Bad::ForeignCsr));
    ensure!(
        devices.len() > 1 || certificates.len() + csrs.len() == 0,
        "what is foreign takes a second device"
    );
    let certificates: Vec<_> = certificates
        .into_iter()
        .map(|(number, other)| (number, devices[other].ek.certificate.clone()))
        .collect();
    let csrs: Vec<_> =
        csrs.into_iter().map(|(number, other)| (number, csr(&devices[other]))).collect();
    for (number, certificate) in certificates {
        devices[number].ek.certificate = certificate;
    }
    for (number, foreign) in csrs {
        if let Bound::Ik(ik) = &mut devices[number].bound {
            ik.csr = foreign;
        }
    }
    if options.bad.iter().any(|bad| bad.kind == Bad::UntrustedVendor) {
        let stranger = Vendor::found()?;
        for Device { ek: Ek { kind, key, certificate, .. }, bad, .. } in devices {
            if *bad == Some(Bad::UntrustedVendor) {
                *certificate = stranger.certify(*kind, key.spki())?;
            }
        }
    }
    Ok(())
}

fn csr(device: &Device) -> Vec<u8> {
    match &device.bound {
        Bound::Ik(ik) => ik.csr.clone(),
        Bound::Parent(_) => Vec::new(),
    }
}
