//! The TPM trait, implemented outside of the library.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use assay_device::tpm::{
    EkKind, IkKind, OpenedKey, ParentKind, PublicArea, SignatureScheme, Tpm, TpmError, WrappedKey,
    Zeroizing,
};
use assay_device::{Device, DeviceOptions, Error};

use crate::{a_tpm, assert_nothing_loaded, open, provisioning};

#[test]
fn tpm_of_another_crate_serves_a_device() -> Result<()> {
    let (swtpm, state) = (a_tpm(), tempfile::tempdir()?);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let tpm = Wrapper { inner: open(&swtpm), calls: Arc::clone(&calls), delay: Duration::ZERO };
    let options = provisioning::options(&swtpm, state.path())?;
    let error = provision(Device::with_tpm(tpm, options)?).unwrap_err();
    assert!(matches!(error, Error::NotReached { .. }), "{error}");
    let calls = calls.lock().unwrap();
    for expected in ["identity_key", "endorsement_key", "create_identity_key", "sign"] {
        assert!(calls.contains(&expected), "{expected} is not among {calls:?}");
    }
    assert_nothing_loaded(&swtpm)
}

#[test]
fn tpm_of_another_crate_that_is_slow_is_given_up() -> Result<()> {
    let (swtpm, state) = (a_tpm(), tempfile::tempdir()?);
    let delay = Duration::from_secs(60);
    let tpm = Wrapper { inner: open(&swtpm), calls: Arc::default(), delay };
    let options = DeviceOptions {
        tpm_timeout: Duration::from_millis(50),
        ..provisioning::options(&swtpm, state.path())?
    };
    let error = provision(Device::with_tpm(tpm, options)?).unwrap_err();
    assert!(matches!(error, Error::Tpm(TpmError::TimedOut { .. })), "{error}");
    Ok(())
}

fn provision(device: Device) -> Result<(), Error> {
    device.provision(&provisioning::request(), &mut |_, _| ()).map(drop)
}

/// Notes the calls to another TPM, and delays them.
struct Wrapper<T> {
    inner: T,
    calls: Arc<Mutex<Vec<&'static str>>>,
    delay: Duration,
}

impl<T: Tpm> Wrapper<T> {
    fn call(&mut self, name: &'static str) -> &mut T {
        thread::sleep(self.delay);
        self.calls.lock().unwrap().push(name);
        &mut self.inner
    }
}

impl<T: Tpm> Tpm for Wrapper<T> {
    fn expect_ek(&mut self, kind: EkKind, id: [u8; 32]) {
        self.inner.expect_ek(kind, id);
    }

    fn ek_certificates(&mut self, kind: EkKind) -> Result<Vec<Vec<u8>>, TpmError> {
        self.call("ek_certificates").ek_certificates(kind)
    }

    fn endorsement_key(&mut self, kind: EkKind) -> Result<Option<PublicArea>, TpmError> {
        self.call("endorsement_key").endorsement_key(kind)
    }

    fn identity_key(&mut self, kind: IkKind, handle: u32) -> Result<Option<PublicArea>, TpmError> {
        self.call("identity_key").identity_key(kind, handle)
    }

    fn create_identity_key(&mut self, kind: IkKind, handle: u32) -> Result<PublicArea, TpmError> {
        self.call("create_identity_key").create_identity_key(kind, handle)
    }

    fn sign(
        &mut self,
        handle: u32,
        scheme: SignatureScheme,
        digest: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        self.call("sign").sign(handle, scheme, digest)
    }

    fn activate(
        &mut self,
        kind: EkKind,
        handle: u32,
        blob: &[u8],
        seed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.call("activate").activate(kind, handle, blob, seed)
    }

    fn parent(&mut self, kind: ParentKind) -> Result<Option<PublicArea>, TpmError> {
        self.call("parent").parent(kind)
    }

    fn hmac_key(&mut self, handle: u32) -> Result<Option<Vec<u8>>, TpmError> {
        self.call("hmac_key").hmac_key(handle)
    }

    fn open_hmac_key(
        &mut self,
        ek: EkKind,
        parent: ParentKind,
        key: &WrappedKey,
    ) -> Result<OpenedKey, TpmError> {
        self.call("open_hmac_key").open_hmac_key(ek, parent, key)
    }

    fn keep_hmac_key(
        &mut self,
        parent: ParentKind,
        handle: u32,
        key: &OpenedKey,
        replaced: Option<&[u8]>,
    ) -> Result<(), TpmError> {
        self.call("keep_hmac_key").keep_hmac_key(parent, handle, key, replaced)
    }

    fn remove_key(&mut self, handle: u32, public: &[u8]) -> Result<(), TpmError> {
        self.call("remove_key").remove_key(handle, public)
    }

    fn properties(&mut self, first: u32) -> Result<Vec<(u32, u32)>, TpmError> {
        self.call("properties").properties(first)
    }

    fn self_test(&mut self) -> Result<(), TpmError> {
        self.call("self_test").self_test()
    }

    fn hmac(&mut self, handle: u32, data: &[u8]) -> Result<Vec<u8>, TpmError> {
        self.call("hmac").hmac(handle, data)
    }
}
