//! A small CA for a broker and its clients.

use std::time::Duration;

use assay_broker_plugin::embedded::{ClientCertificates, bootstrap_tls, operational_tls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub(crate) struct Pki {
    root: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its private key.
pub(crate) struct Credential {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { root: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    fn server(&self) -> Credential {
        let mut params = CertificateParams::new(["localhost".to_string()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// A client certificate with `names` as URIs.
    pub(crate) fn client(&self, names: &[&str]) -> Credential {
        self.issue(Self::client_params(names))
    }

    pub(crate) fn expired_client(&self, name: &str) -> Credential {
        let mut params = Self::client_params(&[name]);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        self.issue(params)
    }

    pub(crate) fn client_expiring_in(&self, name: &str, validity: Duration) -> Credential {
        let mut params = Self::client_params(&[name]);
        params.not_after = (std::time::SystemTime::now() + validity).into();
        self.issue(params)
    }

    /// A certificate with the name of a worker, made for servers.
    pub(crate) fn server_named_worker(&self) -> Credential {
        let mut params = Self::client_params(&["urn:assay:worker"]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    fn client_params(names: &[&str]) -> CertificateParams {
        let mut params = CertificateParams::new([]).unwrap();
        params.subject_alt_names =
            names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    fn issue(&self, params: CertificateParams) -> Credential {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.root).unwrap();
        Credential {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }

    pub(crate) fn bootstrap_tls(&self) -> ServerConfig {
        let Credential { chain, key } = self.server();
        bootstrap_tls(chain, key).unwrap()
    }

    pub(crate) fn operational_tls(&self, certificates: ClientCertificates) -> ServerConfig {
        let Credential { chain, key } = self.server();
        let mut roots = RootCertStore::empty();
        roots.add(self.root()).unwrap();
        operational_tls(chain, key, roots, certificates).unwrap()
    }

    /// A client that trusts this CA, and shows `credential` if it has one.
    pub(crate) fn client_tls(&self, credential: Option<&Credential>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root()).unwrap();
        let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match credential {
            Some(Credential { chain, key }) => {
                config.with_client_auth_cert(chain.clone(), key.clone_key()).unwrap()
            }
            None => config.with_no_client_auth(),
        }
    }
}
