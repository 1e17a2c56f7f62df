//! Mutual TLS with the key in the TPM, against a rustls server.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use assay_device::tpm::{IkKind, PublicArea, Tpm};
use assay_device::{Device, DeviceOptions};
use assay_tests::Swtpm;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConnection, ProtocolVersion, RootCertStore, ServerConfig, ServerConnection, Stream,
    SupportedProtocolVersion,
};
use serde_json::json;
use time::OffsetDateTime;

use crate::{IK, a_tpm, assert_nothing_loaded, open};

#[test]
fn server_accepts_the_tpm_key_as_client_key() -> Result<()> {
    let cases = [
        (IkKind::P256, &TLS13, ProtocolVersion::TLSv1_3),
        (IkKind::P256, &TLS12, ProtocolVersion::TLSv1_2),
        (IkKind::P384, &TLS13, ProtocolVersion::TLSv1_3),
        (IkKind::Rsa2048, &TLS13, ProtocolVersion::TLSv1_3),
        (IkKind::Rsa2048, &TLS12, ProtocolVersion::TLSv1_2),
    ];
    for (kind, version, expected) in cases {
        let swtpm = a_tpm();
        let ik = open(&swtpm).create_identity_key(kind, IK)?;
        let ca = Ca::new()?;
        let state = tempfile::tempdir()?;
        ca.provision(state.path(), kind, &ik)?;
        let tls = device(&swtpm, state.path(), &ca)?.mqtt_tls_config()?;
        assert_eq!(ca.serve_once(version, tls)?, expected, "{kind}");
        assert_nothing_loaded(&swtpm)?;
    }
    Ok(())
}

#[test]
fn certificate_for_the_key_of_a_cleared_tpm_is_not_used() -> Result<()> {
    let mut swtpm = a_tpm();
    let ik = open(&swtpm).create_identity_key(IkKind::P256, IK)?;
    let ca = Ca::new()?;
    let state = tempfile::tempdir()?;
    ca.provision(state.path(), IkKind::P256, &ik)?;
    swtpm.clear()?;
    let device = device(&swtpm, state.path(), &ca)?;
    let error = device.mqtt_tls_config().unwrap_err();
    assert!(error.to_string().contains("cleared"), "{error}");
    open(&swtpm).create_identity_key(IkKind::P256, IK)?;
    let error = device.mqtt_tls_config().unwrap_err();
    assert!(error.to_string().contains("another key"), "{error}");
    Ok(())
}

#[test]
fn certificate_of_another_root_is_not_used() -> Result<()> {
    let swtpm = a_tpm();
    let ik = open(&swtpm).create_identity_key(IkKind::P256, IK)?;
    let state = tempfile::tempdir()?;
    Ca::new()?.provision(state.path(), IkKind::P256, &ik)?;
    let error = device(&swtpm, state.path(), &Ca::new()?)?.mqtt_tls_config().unwrap_err();
    assert_eq!(error.exit_code(), 6, "{error}");
    assert!(error.to_string().contains("pinned root"), "{error}");
    Ok(())
}

pub(crate) fn device(swtpm: &Swtpm, state: &Path, ca: &Ca) -> Result<Device> {
    device_at(&swtpm.tcti(), state, ca)
}

pub(crate) fn device_at(tcti: &str, state: &Path, ca: &Ca) -> Result<Device> {
    open_device(options(tcti, state, ca)?)
}

pub(crate) fn options(tcti: &str, state: &Path, ca: &Ca) -> Result<DeviceOptions> {
    Ok(DeviceOptions {
        tcti: tcti.parse()?,
        passwords: Default::default(),
        tpm_timeout: Duration::from_secs(30),
        state: state.into(),
        ca_roots: vec![ca.root.der().clone()],
        no_clock: false,
    })
}

pub(crate) fn open_device(options: DeviceOptions) -> Result<Device> {
    loop {
        match Device::open(options.clone()) {
            // Another test's child process has a copy of the lock file between fork and exec.
            Err(error) if error.to_string().contains("in use by another") => {
                thread::sleep(Duration::from_millis(10))
            }
            outcome => return Ok(outcome?),
        }
    }
}

/// A CA that signs everything.
pub(crate) struct Ca {
    root: rcgen::CertifiedIssuer<'static, KeyPair>,
}

/// The first and the last moment of a certificate.
#[derive(Clone, Copy)]
pub(crate) struct Validity {
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

impl Default for Validity {
    /// The time that rcgen takes by default.
    fn default() -> Self {
        let CertificateParams { not_before, not_after, .. } = CertificateParams::default();
        Self { not_before, not_after }
    }
}

impl Ca {
    pub(crate) fn new() -> Result<Self> {
        Self::from(CertificateParams::default())
    }

    /// A CA whose root is valid from the first day of `year` on.
    pub(crate) fn made_in(year: i32) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        Self::from(params)
    }

    fn from(mut params: CertificateParams) -> Result<Self> {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Test Root");
        Ok(Self { root: rcgen::CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// A device's certificate, DER.
    pub(crate) fn certify(
        &self,
        kind: IkKind,
        ik: &PublicArea,
        device_id: &str,
    ) -> Result<Vec<u8>> {
        self.certify_for(kind, ik, device_id, Validity::default())
    }

    pub(crate) fn certify_for(
        &self,
        kind: IkKind,
        ik: &PublicArea,
        device_id: &str,
        validity: Validity,
    ) -> Result<Vec<u8>> {
        let mut params = CertificateParams::default();
        Validity { not_before: params.not_before, not_after: params.not_after } = validity;
        params.distinguished_name.push(DnType::CommonName, device_id);
        params.subject_alt_names =
            vec![SanType::URI(format!("urn:assay:device:default:{device_id}").try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate =
            params.signed_by(&Key { kind, der: ik.key.subject_public_key() }, &self.root)?;
        Ok(certificate.der().to_vec())
    }

    /// Writes the state of a device that was provisioned with this key.
    pub(crate) fn provision(&self, state: &Path, kind: IkKind, ik: &PublicArea) -> Result<()> {
        self.provision_valid(state, kind, ik, Validity::default())
    }

    /// As [`provision`](Self::provision), with a certificate for the time `validity`.
    pub(crate) fn provision_valid(
        &self,
        state: &Path,
        kind: IkKind,
        ik: &PublicArea,
        validity: Validity,
    ) -> Result<()> {
        self.provision_beside(state, [0; 32], kind, ik, validity)
    }

    /// As [`provision_valid`](Self::provision_valid), beside the P-256 EK with this id.
    pub(crate) fn provision_beside(
        &self,
        state: &Path,
        ek_id: [u8; 32],
        kind: IkKind,
        ik: &PublicArea,
        validity: Validity,
    ) -> Result<()> {
        let certificate = self.certify_for(kind, ik, "pump-17", validity)?;
        let ek_id = data_encoding::HEXLOWER.encode(&ek_id);
        let shown = json!({"scope": "default", "ek": "p-256", "ek_id": ek_id});
        let record =
            json!({"shown": shown, "flow": "ticket", "ik": kind.to_string(), "ik_handle": IK});
        let base64 = data_encoding::BASE64.encode(&certificate);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
        let grant = json!({"record": record, "certificate": pem, "unconfirmed": null});
        let memory = json!({"in_use": {"certificate": grant}, "attempt": null});
        std::fs::write(state.join("device.json"), memory.to_string())?;
        Ok(())
    }

    /// The configuration of a server at `localhost`. The server asks for a client certificate of
    /// this CA, or for none.
    pub(crate) fn server(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        asks_for_certificate: bool,
    ) -> Result<ServerConfig> {
        self.server_valid(versions, asks_for_certificate, Validity::default())
    }

    /// As [`server`](Self::server), with a certificate for the time `validity`.
    pub(crate) fn server_valid(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        asks_for_certificate: bool,
        validity: Validity,
    ) -> Result<ServerConfig> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["localhost".into()])?;
        Validity { not_before: params.not_before, not_after: params.not_after } = validity;
        let certificate = params.signed_by(&key, &self.root)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = if asks_for_certificate {
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
                .build()?
        } else {
            WebPkiClientVerifier::no_client_auth()
        };
        Ok(ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?)
    }

    /// Lets a client in if it has a certificate of this CA, echoes what it says, and returns the
    /// TLS version.
    fn serve_once(
        &self,
        version: &'static SupportedProtocolVersion,
        client: rustls::ClientConfig,
    ) -> Result<ProtocolVersion> {
        let server = self.server(&[version], true)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let echo = thread::spawn(move || -> Result<ProtocolVersion> {
            let (mut socket, _) = listener.accept()?;
            let mut connection = ServerConnection::new(server.into())?;
            let mut stream = Stream::new(&mut connection, &mut socket);
            let mut said = [0; 5];
            stream.read_exact(&mut said)?;
            stream.write_all(&said)?;
            stream.flush()?;
            assert_eq!(connection.peer_certificates().unwrap().len(), 1);
            Ok(connection.protocol_version().unwrap())
        });
        let mut socket = TcpStream::connect(address)?;
        let mut connection = ClientConnection::new(client.into(), "localhost".try_into()?)?;
        let mut stream = Stream::new(&mut connection, &mut socket);
        stream.write_all(b"hello")?;
        let mut heard = [0; 5];
        stream.read_exact(&mut heard)?;
        assert_eq!(&heard, b"hello");
        echo.join().unwrap()
    }
}

struct Key {
    kind: IkKind,
    der: Vec<u8>,
}

impl rcgen::PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.der
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.kind {
            IkKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            IkKind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            IkKind::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        }
    }
}
