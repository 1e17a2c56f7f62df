//! Tells other programs how to use the identity key: by its handle, or by a file that they load.

use std::time::Duration;

use assay_device_core::Grant;
use webpki::EndEntityCert;

use crate::der;
use crate::device::DeviceOptions;
use crate::error::Error;
use crate::pem;
use crate::progress::Progress;
use crate::state;
use crate::tpm::{Tpm, Tpm2, TpmThread, id_of_key};

/// How another program names the identity key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFormat {
    /// A URI of tpm2-openssl, e.g. `handle:0x81000200`.
    Handle,
    /// A TSS2 PEM file (draft-bottomley-tpm2-keys). The key is encrypted in it, so that only this
    /// TPM can load it, under the storage root key at 0x81000001. The export makes the storage root
    /// key persistent there, if the handle is free.
    Tss2,
}

/// The identity key of the certificate in the state directory, as another program reads it. The
/// state directory is only read, and other processes can use it meanwhile.
///
/// # Errors
/// [`Error::NotProvisioned`] if there is no certificate, [`Error::NoCertificate`] if the device has
/// a shared key instead, [`Error::KeyGone`] if the TPM does not hold the key of the certificate,
/// [`Error::KeyNotKept`] if the file cannot be made of this key.
pub fn export_key(
    options: DeviceOptions,
    format: KeyFormat,
    progress: Progress<'_>,
) -> Result<String, Error> {
    let DeviceOptions { tcti, passwords, tpm_timeout, state: directory, .. } = options;
    let memory = state::memory(&directory)?;
    let grant = match memory.credentials().next() {
        Some(Grant::Certificate(grant)) => grant,
        Some(Grant::SharedKey(_)) => return Err(Error::NoCertificate),
        None => return Err(Error::NotProvisioned("this device has no certificate yet".into())),
    };
    let mut tpm = Tpm2::new(tcti, passwords);
    // A password is for the TPM that the CA knows, and for no other.
    if let Some(shown) = memory.granted_for() {
        tpm.expect_ek(shown.ek, *shown.ek_id.as_bytes());
    }
    let tpm = TpmThread::start(tpm, tpm_timeout);
    let (kind, handle) = (grant.record.ik, grant.record.ik_handle);
    let found =
        tpm.call("looking for the identity key", move |tpm| tpm.identity_key(kind, handle))?;
    let certified = grant.chain.first().and_then(|leaf| EndEntityCert::try_from(leaf).ok());
    let certified = certified.map(|leaf| id_of_key(leaf.subject_public_key_info().as_ref()));
    let public = found.filter(|public| Some(public.key.id()) == certified);
    let public = public.ok_or(Error::KeyGone { key: "the key of the certificate", handle })?;
    if format == KeyFormat::Handle {
        return Ok(format!("handle:{handle:#010x}\n"));
    }
    let private = state::private(&directory, handle)?.ok_or(Error::KeyNotKept { handle })?;
    let to_load = private.clone();
    let was_made_persistent =
        tpm.call("loading the identity key", move |tpm| tpm.share_identity_key(handle, &to_load))?;
    if was_made_persistent {
        let told = format!("made the storage root key persistent at {SRK:#010x}");
        progress(&told, Duration::ZERO);
    }
    Ok(pem::block("TSS2 PRIVATE KEY", &tss2(&public.bytes, &private)))
}

/// TPMKey (draft-bottomley-tpm2-keys, section 3). The key has no password.
fn tss2(public: &[u8], private: &[u8]) -> Vec<u8> {
    der::sequence(&[
        der::OID_LOADABLE_KEY,
        der::TAGGED_TRUE,
        &der::unsigned_integer(&SRK.to_be_bytes()),
        &der::octet_string(&sized(public)),
        &der::octet_string(&sized(private)),
    ])
}

/// A TPM2B. All that a TPM gives fits.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes(), bytes].concat()
}

/// Where TCG's guidance puts the storage root key (TCG TPM v2.0 Provisioning Guidance, 7.8).
const SRK: u32 = 0x8100_0001;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tss2_key_has_the_fields_of_the_draft() {
        let der = tss2(&[0xAA; 3], &[0xBB; 2]);
        let expected = "302106066781050a0103a0030101ff02050081000001\
                        04050003aaaaaa04040002bbbb";
        assert_eq!(data_encoding::HEXLOWER.encode(&der), expected);
    }
}
