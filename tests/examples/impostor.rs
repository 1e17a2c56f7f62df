//! A dishonest device: it has a genuine EK, and asks for a certificate for a key that it keeps in a
//! file.
//!
//! It says truthfully that the key is not fixed to a TPM, because a lie would not help. The CA
//! makes the credential for the Name of the claimed key, and only a TPM that holds this key can
//! open it.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::Packet;
use assay_mqtt::rumqttc::v5::{AsyncClient, Event, EventLoop};
use assay_mqtt::{BrokerUrl, Client, connect, tls_config};
use assay_wire::{
    Bundle, ClientId, Reply, ReplyBody, Request, RequestBody, RequestId, Scope, Topic,
};
use clap::Parser;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Asks for a certificate for a key outside any TPM. Exit code 3 if the CA refuses, as for
/// assay-device.
#[derive(Parser)]
struct Impostor {
    /// The bootstrap listener
    #[arg(long)]
    broker: BrokerUrl,
    #[arg(long, default_value = "default")]
    scope: Scope,
    /// Root certificate of the CA, PEM
    #[arg(long)]
    ca_root: PathBuf,
    /// Public area of a genuine EK: TPM2B_PUBLIC, as `tpm2_readpublic -f tss` writes it
    #[arg(long)]
    ek_public: PathBuf,
    /// Its certificate, DER
    #[arg(long)]
    ek_certificate: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let impostor = Impostor::parse();
    let request = impostor.request()?;
    match tokio::time::timeout(Duration::from_secs(20), impostor.ask(request)).await?? {
        ReplyBody::Problem(problem) => {
            eprintln!(
                "impostor: refused: {} ({}): {}",
                problem.code,
                problem.code.number(),
                problem.detail
            );
            Ok(ExitCode::from(3))
        }
        ReplyBody::Challenge(_) => bail!("the CA challenges a TPM about a key that no TPM holds"),
        other => bail!("the CA answered with {other:?} for a key that no TPM holds"),
    }
}

impl Impostor {
    fn request(&self) -> Result<Request> {
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?;
        let ek_public = fs::read(&self.ek_public)?;
        let ek_certificate = fs::read(&self.ek_certificate)?;
        let body = Bundle {
            device_id: None,
            // TPM2B_PUBLIC is TPMT_PUBLIC after a length of two bytes.
            ek_public: ek_public
                .get(2..)
                .context("the EK's public area is empty")?
                .to_vec()
                .try_into()?,
            ek_certificates: vec![ek_certificate.try_into()?].try_into()?,
            ik_public: software_key(&key)?.try_into()?,
            csr: csr.der().to_vec().try_into()?,
            other_eks: None,
        };
        let mut id = [0; RequestId::LEN];
        getrandom::fill(&mut id)?;
        Ok(Request { id: id.into(), body: RequestBody::Challenge(body) })
    }

    async fn ask(&self, request: Request) -> Result<ReplyBody> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        let id = ClientId::bootstrap(id);
        let (client, mut events) = self.connect(&id)?;
        let reply_topic = Topic::Reply(self.scope.clone(), id.clone()).to_string();
        let request_topic = Topic::Request(self.scope.clone(), id).to_string();
        client.try_subscribe(&reply_topic, QoS::AtLeastOnce)?;
        loop {
            match events.poll().await? {
                Event::Incoming(Packet::SubAck(_)) => {
                    client.try_publish(
                        &request_topic,
                        QoS::AtLeastOnce,
                        false,
                        request.encode(),
                    )?;
                }
                Event::Incoming(Packet::Publish(reply)) => {
                    return Ok(Reply::decode(&reply.payload)?.body);
                }
                _ => {}
            }
        }
    }

    fn connect(&self, id: &ClientId) -> Result<(AsyncClient, EventLoop)> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(&self.ca_root)? {
            roots.add(root?)?;
        }
        let tls = tls_config(Arc::new(rustls::crypto::ring::default_provider()), roots, None)?;
        let settings =
            Client { id: id.to_string(), window: 10, receive_maximum: 10, manual_acks: false };
        Ok(connect(&self.broker, &Arc::new(tls), settings))
    }
}

/// TPMT_PUBLIC (TPM 2.0 Library part 2 section 12.2.4) of a P-256 signing key that may leave its
/// TPM.
fn software_key(key: &KeyPair) -> Result<Vec<u8>> {
    let Some([4, point @ ..]) = key.der_bytes().first_chunk::<65>() else {
        bail!("not an uncompressed P-256 point")
    };
    let coordinate = |bytes: &[u8]| [&[0, 32], bytes].concat();
    Ok([
        &[0x00, 0x23][..],         // type: ECC
        &[0x00, 0x0B],             // nameAlg: SHA-256
        &[0x00, 0x04, 0x04, 0x60], // sensitiveDataOrigin, userWithAuth, noDA, sign; neither fixedTPM nor fixedParent
        &[0x00, 0x00],             // authPolicy: empty
        &[0x00, 0x10],             // symmetric: null
        &[0x00, 0x18, 0x00, 0x0B], // scheme: ECDSA with SHA-256
        &[0x00, 0x03],             // curve: P-256
        &[0x00, 0x10],             // kdf: null
        &coordinate(&point[..32]),
        &coordinate(&point[32..]),
    ]
    .concat())
}
