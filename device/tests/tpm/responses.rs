//! Something that answers in place of a TPM: with lies, with refusals that ask for a retry, or not
//! at all.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use assay_device::tpm::{
    EkKind, HierarchyPasswords, SignatureScheme, Tpm, Tpm2, TpmError, TpmThread,
};
use tempfile::TempDir;

use crate::IK;
use crate::proxy::read_message;

#[test]
fn response_that_lies_about_its_size_is_refused() {
    for (case, response) in [
        ("shorter than said", [&header(0x8001, 20, 0)[..], &[0; 4]].concat()),
        ("longer than said", [&header(0x8001, 10, 0x101)[..], &[0; 4]].concat()),
        ("no room for a header", header(0x8001, 9, 0x101).to_vec()),
        ("more than a TPM sends", header(0x8001, 4097, 0).to_vec()),
        ("four gigabytes", header(0x8001, u32::MAX, 0).to_vec()),
        ("no whole header", header(0x8001, 10, 0)[..8].to_vec()),
        ("no size", vec![0x80, 0x01, 0]),
    ] {
        let (error, sent) = answered_with(&[response]);
        assert!(matches!(error, TpmError::BadResponse { .. }), "{case}: {error:?}");
        assert_eq!(sent, 1, "{case}");
    }
}

#[test]
fn response_that_is_none_to_the_command_is_refused() {
    let signature = signature();
    for (case, tag, body) in [
        ("no parameters", 0x8002, vec![]),
        (
            "fewer bytes of parameters than said",
            0x8002,
            [&[0, 0, 1, 0][..], &signature, AUTHORISED].concat(),
        ),
        ("parameters that end early", 0x8002, parameters(&signature[..signature.len() - 1])),
        ("something behind the parameters", 0x8002, parameters(&[&signature[..], &[0]].concat())),
        ("something behind the sessions", 0x8002, [&parameters(&signature)[..], &[0]].concat()),
        ("no sessions where some were sent", 0x8001, signature.clone()),
        ("a tag that is none", 0x1234, parameters(&signature)),
        ("the tag of a ticket", 0x8024, parameters(&signature)),
        (
            "an algorithm that is none",
            0x8002,
            parameters(&[&[0xFF, 0xFF][..], &signature[2..]].concat()),
        ),
        (
            "a number longer than any",
            0x8002,
            parameters(&[&signature[..4], &[0xFF, 0xFF], &signature[6..]].concat()),
        ),
    ] {
        let (error, _) = answered_with(&[message(tag, 0, &body)]);
        assert!(matches!(error, TpmError::BadResponse { .. }), "{case}: {error:?}");
    }
    let (error, _) = answered_with(&[message(0x8001, 0x101, &[0])]);
    assert!(matches!(error, TpmError::BadResponse { .. }), "something behind a refusal: {error:?}");
}

#[test]
fn code_that_nobody_knows_is_a_refusal_that_shows_it() {
    let (error, _) = answered_with(&[message(0x8001, 0xDEAD_BEEF, &[])]);
    assert!(matches!(error, TpmError::Refused { code: 0xDEAD_BEEF, .. }), "{error:?}");
    assert!(error.to_string().contains("0xdeadbeef"), "{error}");
}

#[test]
fn command_that_the_tpm_could_not_start_is_sent_again() -> Result<()> {
    for code in [RETRY, YIELDED, TESTING] {
        let refusal = message(0x8001, code, &[]);
        let liar = Liar::new(vec![
            refusal.clone(),
            refusal,
            message(0x8002, 0, &parameters(&signature())),
        ])?;
        let signed = liar.tpm()?.sign(IK, SignatureScheme::EcdsaSha256, &[7; 32])?;
        assert_eq!(signed, [0x30, 6, 2, 1, 1, 2, 1, 2], "SEQUENCE {{ INTEGER 1, INTEGER 2 }}");
        assert_eq!(liar.heard(), 3);
    }
    Ok(())
}

#[test]
fn tpm_that_is_busy_for_ever_is_not_asked_for_ever() {
    let (error, sent) = answered_with(&vec![message(0x8001, RETRY, &[]); 100]);
    assert!(matches!(error, TpmError::Refused { code: RETRY, .. }), "{error:?}");
    assert_eq!(sent, 5);
}

#[test]
fn command_that_a_tpm_refused_otherwise_is_not_sent_again() {
    let (error, sent) = answered_with(&vec![message(0x8001, OBJECT_MEMORY, &[]); 100]);
    assert!(matches!(error, TpmError::Refused { code: OBJECT_MEMORY, .. }), "{error:?}");
    assert_eq!(sent, 1);
}

#[test]
fn tpm_that_closes_without_a_response_is_asked_once_more() {
    let (error, sent) = answered_with(&[vec![], vec![], vec![]]);
    assert!(matches!(error, TpmError::Unreachable { .. }), "{error:?}");
    assert_eq!(sent, 2);
}

#[test]
fn tpm_that_closes_before_its_first_response_is_not_asked_again() -> Result<()> {
    let liar = Liar::flushing(false, vec![vec![], vec![]])?;
    let error = liar.tpm()?.hmac(IK, b"data").unwrap_err();
    assert!(matches!(error, TpmError::Unreachable { .. }), "{error:?}");
    assert_eq!(liar.heard(), 1);
    Ok(())
}

#[test]
fn handles_without_end_are_not_collected_for_ever() -> Result<()> {
    // The capability TPM_CAP_HANDLES, more to come, and one handle: always the same one.
    let answer = message(0x8001, 0, &[1, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0, 0, 0]);
    let liar = Liar::flushing(false, vec![answer; 100])?;
    let error = liar.tpm()?.hmac(IK, b"data").unwrap_err();
    assert!(matches!(error, TpmError::BadResponse { .. }), "{error:?}");
    assert_eq!(liar.heard(), 2);
    Ok(())
}

#[test]
fn ever_more_handles_are_not_collected_for_ever() -> Result<()> {
    let answer = |first: u32| {
        let handles: Vec<_> = (first..first + 128).flat_map(u32::to_be_bytes).collect();
        message(0x8001, 0, &[&[1, 0, 0, 0, 1, 0, 0, 0, 128][..], &handles].concat())
    };
    let liar =
        Liar::flushing(false, (0..100).map(|number| answer(0x8000_0000 + 128 * number)).collect())?;
    let error = liar.tpm()?.hmac(IK, b"data").unwrap_err();
    assert!(matches!(error, TpmError::BadResponse { .. }), "{error:?}");
    assert_eq!(liar.heard(), 4096 / 128 + 1);
    Ok(())
}

#[test]
fn nothing_more_is_sent_after_a_response_that_puts_the_connection_out_of_step() -> Result<()> {
    let one_object = message(0x8001, 0, &[0, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0, 0, 0]);
    let liar = Liar::flushing(
        false,
        vec![one_object, header(0x8001, 4097, 0).to_vec(), header(0x8001, 10, 0).to_vec()],
    )?;
    let error = liar.tpm()?.hmac(IK, b"data").unwrap_err();
    assert!(matches!(error, TpmError::Unreachable { .. }), "{error:?}");
    assert_eq!(liar.heard(), 2);
    Ok(())
}

#[test]
fn nv_index_that_is_read_in_parts_of_no_or_too_many_bytes_is_refused() -> Result<()> {
    let (index, attributes, size) =
        (0x01C0_000A_u32.to_be_bytes(), 0x2004_0000_u32.to_be_bytes(), [0, 100]);
    let handles = |count: u8, handles: &[u8]| {
        message(0x8001, 0, &[&[0, 0, 0, 0, 1, 0, 0, 0, count][..], handles].concat())
    };
    let (nothing_loaded, indices) = (handles(0, &[]), handles(1, &index));
    // TPM2B_NV_PUBLIC without a policy, and an empty TPM2B_NAME.
    let public = [&[0, 14][..], &index, &[0, 0x0B], &attributes, &[0, 0], &size, &[0, 0]].concat();
    for part in [0, 101] {
        let part = [&u16::try_from(part)?.to_be_bytes()[..], &vec![7; part]].concat();
        let (public, part) = (message(0x8001, 0, &public), message(0x8002, 0, &parameters(&part)));
        let responses =
            vec![nothing_loaded.clone(), nothing_loaded.clone(), indices.clone(), public, part];
        let liar = Liar::flushing(false, responses)?;
        let error = liar.tpm()?.ek_certificates(EkKind::P256).unwrap_err();
        assert!(
            matches!(&error, TpmError::BadResponse { reason, .. } if reason.contains("100 were asked")),
            "{error:?}"
        );
        assert_eq!(liar.heard(), 5);
    }
    Ok(())
}

/// The error of TPM2_Sign if the TPM gives these responses, and how often the command was sent.
fn answered_with(responses: &[Vec<u8>]) -> (TpmError, usize) {
    let liar = Liar::new(responses.to_vec()).unwrap();
    let tpm = TpmThread::start(liar.tpm().unwrap(), Duration::from_secs(5));
    let error = tpm
        .call("signing", |tpm| tpm.sign(IK, SignatureScheme::EcdsaSha256, &[7; 32]))
        .unwrap_err();
    (error, liar.heard())
}

/// Answers commands with what it was given, one after the other, over all connections. Listens
/// until the process ends.
struct Liar {
    directory: TempDir,
    heard: Arc<AtomicUsize>,
}

impl Liar {
    /// Answers truthfully at first that there is nothing to flush.
    fn new(responses: Vec<Vec<u8>>) -> Result<Self> {
        Self::flushing(true, responses)
    }

    fn flushing(is_truthful_at_first: bool, responses: Vec<Vec<u8>>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let listener = UnixListener::bind(directory.path().join("tpm"))?;
        let this = Self { directory, heard: Arc::default() };
        let heard = Arc::clone(&this.heard);
        thread::spawn(move || {
            let mut responses = responses.into_iter();
            for client in listener.incoming().flatten() {
                _ = answer(client, is_truthful_at_first, &mut responses, &heard);
            }
        });
        Ok(this)
    }

    fn tpm(&self) -> Result<Tpm2> {
        let tcti = format!("swtpm:path={}", self.directory.path().join("tpm").display());
        Ok(Tpm2::new(tcti.parse()?, HierarchyPasswords::default()))
    }

    /// How many commands were not answered truthfully.
    fn heard(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }
}

fn answer(
    mut client: UnixStream,
    is_truthful_at_first: bool,
    responses: &mut impl Iterator<Item = Vec<u8>>,
    heard: &AtomicUsize,
) -> Result<()> {
    loop {
        let command = read_message(&mut client)?;
        if is_truthful_at_first && command[6..10] == GET_CAPABILITY {
            // No handles of this type, and no more to come.
            client.write_all(&message(0x8001, 0, &[0, 0, 0, 0, 1, 0, 0, 0, 0]))?;
            continue;
        }
        heard.fetch_add(1, Ordering::SeqCst);
        let Some(response) = responses.next() else { return Ok(()) };
        client.write_all(&response)?;
        let size =
            response.get(2..6).map(|size| u32::from_be_bytes(size.try_into().unwrap()) as usize);
        // Otherwise the connection stays open, so a client waits for ever if it waits for more than
        // a TPM sends, or goes on although it got too much.
        if size.is_none_or(|size| (response.len()..=4096).contains(&size) && size != response.len())
        {
            return Ok(());
        }
    }
}

fn message(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    [&header(tag, 10 + u32::try_from(body.len()).unwrap(), code)[..], body].concat()
}

fn header(tag: u16, size: u32, code: u32) -> [u8; 10] {
    let bytes = [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes()].concat();
    bytes.try_into().unwrap()
}

/// The parameters of a response to a command with one password, and the session area behind them.
fn parameters(parameters: &[u8]) -> Vec<u8> {
    [&u32::try_from(parameters.len()).unwrap().to_be_bytes(), parameters, AUTHORISED].concat()
}

/// TPMT_SIGNATURE: ECDSA with SHA-256, r = 1, s = 2.
fn signature() -> Vec<u8> {
    vec![0x00, 0x18, 0x00, 0x0B, 0, 1, 1, 0, 1, 2]
}

/// No nonce, continueSession, no HMAC.
const AUTHORISED: &[u8] = &[0, 0, 1, 0, 0];
const GET_CAPABILITY: [u8; 4] = [0, 0, 0x01, 0x7A];
/// TPM_RC (TPM 2.0 Part 2, 6.6.3).
const RETRY: u32 = 0x922;
const YIELDED: u32 = 0x908;
const TESTING: u32 = 0x90A;
const OBJECT_MEMORY: u32 = 0x902;
