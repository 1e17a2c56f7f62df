//! Devices that outlive a run, with their keys and certificates, in a file.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use minicbor::{Decode, Encode};

use crate::device::{Bound, Device, Granted};
use crate::factory::{Ek, Ik};

/// A device in the file.
#[derive(Encode, Decode)]
struct Record {
    #[n(0)]
    ek_kind: String,
    #[cbor(n(1), with = "minicbor::bytes")]
    ek_pkcs8: Vec<u8>,
    #[cbor(n(2), with = "minicbor::bytes")]
    ek_certificate: Vec<u8>,
    #[n(3)]
    ik_kind: String,
    #[cbor(n(4), with = "minicbor::bytes")]
    ik_unique: Vec<u8>,
    #[cbor(n(5), with = "minicbor::bytes")]
    ik_spki: Vec<u8>,
    #[cbor(n(6), with = "minicbor::bytes")]
    ik_csr: Vec<u8>,
    #[cbor(n(7), with = "minicbor::bytes")]
    ik_pkcs8: Vec<u8>,
    #[n(8)]
    granted: Option<Granted>,
}

/// The devices in a file.
pub(crate) fn load(path: &Path) -> Result<Vec<Device>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let records: Vec<Record> =
        minicbor::decode(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    records.into_iter().map(device).collect()
}

/// Replaces the file. A crash leaves the whole old file or the whole new one.
pub(crate) fn save(path: &Path, devices: &[Device]) -> Result<()> {
    let records: Vec<_> = devices.iter().filter_map(record).collect();
    let fresh = path.with_extension("new");
    let mut file = File::options();
    file.create(true).write(true).truncate(true).mode(0o600);
    file.open(&fresh)
        .and_then(|mut file| {
            file.write_all(&minicbor::to_vec(&records).map_err(std::io::Error::other)?)
        })
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn device(record: Record) -> Result<Device> {
    let ek = Ek::new(kind(&record.ek_kind)?, &record.ek_pkcs8, &record.ek_certificate)?;
    let Record { ik_kind, ik_unique, ik_spki, ik_csr, ik_pkcs8, .. } = record;
    let ik = Ik::new(kind(&ik_kind)?, ik_unique, ik_spki, ik_csr, ik_pkcs8);
    let device = Device::new(ek, Bound::Ik(ik));
    record.granted.into_iter().for_each(|granted| device.keep(granted));
    Ok(device)
}

fn kind<K: ValueEnum>(name: &str) -> Result<K> {
    K::from_str(name, false).map_err(|error| anyhow::anyhow!("a kind of key: {error}"))
}

/// A device of the shared key flow has no record.
fn record(device: &Device) -> Option<Record> {
    let Bound::Ik(ik) = &device.bound else { return None };
    Some(Record {
        ek_kind: device.ek.kind.name().to_owned(),
        ek_pkcs8: device.ek.pkcs8.clone(),
        ek_certificate: device.ek.certificate.clone(),
        ik_kind: ik.kind.name().to_owned(),
        ik_unique: ik.unique.clone(),
        ik_spki: ik.spki.clone(),
        ik_csr: ik.csr.clone(),
        ik_pkcs8: ik.pkcs8.clone(),
        granted: device.granted(),
    })
}
