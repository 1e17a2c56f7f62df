//! What a TPM does with an activation if an attacker controls the device's software. He has
//! everything that the device has, and sends any command to the TPM.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context, Result, ensure};
use assay_tests::{EkKind, Swtpm, run, tool};
use assay_wire::ActivationReply;
use ring::digest::{SHA256, digest};

use crate::shared_key_tools::{Ca, Device, IMPORT, IMPORT_OR_LOAD, LOAD, Parent};
use crate::tools_device::sized;

const MESSAGE: &[u8] = b"plant-7%2Fregistrations%2Fpump-1\n1800000000";

/// This is why a plain SRK needs an operator's permission: the key that signs tokens gets out of
/// the TPM.
#[test]
fn tpm_gives_the_shared_key_of_a_plain_srk_to_anybody() -> Result<()> {
    let ca = Ca::new()?;
    let device = Device::new(EkKind::P256, 0, Parent::PlainSrk, "ecc256")?;
    let (reply, key) = ca.activation(&device, &device)?;
    let inner_key = device.activate(&reply)?;
    let tpm = Commands::of(&device)?;
    let answer = tpm.rewrap(&PASSWORD, &reply)?;
    ensure!(answer.code == SUCCESS, "{:#x}", answer.code);

    // From here on, the TPM is not used. OpenSSL removes the inner wrapper, and signs.
    device.tpm.tpm2(&["flushcontext", "-t"])?;
    let directory = device.tpm.work_dir();
    let inner = take_sized(answer.parameters()?)?.0;
    fs::write(directory.join("inner"), inner)?;
    let mut decrypt = tool("openssl")?;
    decrypt.args([
        "enc",
        "-d",
        "-aes-128-cfb",
        "-iv",
        &"0".repeat(32),
        "-K",
        &hex::encode(&inner_key),
        "-in",
        "inner",
    ]);
    let opened = run(decrypt.current_dir(directory))?.stdout;
    let (integrity, sensitive) = take_sized(&opened)?;
    ensure!(integrity == digest(&SHA256, &[sensitive, &name_of(&reply)].concat()).as_ref());
    let (sensitive, _) = take_sized(sensitive)?;
    let (_auth, rest) = take_sized(&sensitive[2..])?;
    let (_seed, rest) = take_sized(rest)?;
    let (stolen, _) = take_sized(rest)?;
    fs::write(directory.join("message"), MESSAGE)?;
    let mut sign = tool("openssl")?;
    sign.args([
        "dgst",
        "-sha256",
        "-mac",
        "HMAC",
        "-binary",
        "-macopt",
        &format!("hexkey:{}", hex::encode(stolen)),
    ]);
    let signed = run(sign.arg("message").current_dir(directory))?.stdout;
    ensure!(signed == key.hmac(MESSAGE), "what OpenSSL signs is what the CA expects of the TPM");
    Ok(())
}

#[test]
fn tpm_gives_the_shared_key_of_an_import_parent_to_nobody() -> Result<()> {
    let ca = Ca::new()?;
    for algorithm in ["ecc256", "rsa2048"] {
        let device = Device::new(EkKind::P256, 0, Parent::Import, algorithm)?;
        let (reply, key) = ca.activation(&device, &device)?;
        let inner_key = device.activate(&reply)?;
        let tpm = Commands::of(&device)?;

        let refused = |authorisation: &[u8], code: u32, how: &str| -> Result<()> {
            let answer = tpm.rewrap(authorisation, &reply)?;
            ensure!(answer.code == code, "{algorithm}, {how}: {:#x}", answer.code);
            Ok(())
        };
        refused(&PASSWORD, AUTH_UNAVAILABLE, "the empty password")?;
        let hmac = tpm.start_session(HMAC_SESSION)?;
        refused(&keyless(hmac), AUTH_UNAVAILABLE, "an HMAC session")?;
        tpm.flush(hmac)?;
        let policy = tpm.start_session(POLICY_SESSION)?;
        refused(&keyless(policy), POLICY_FAIL, "no policy")?;
        tpm.flush(policy)?;
        for code in [IMPORT_CODE, LOAD_CODE] {
            let policy = tpm.start_session(POLICY_SESSION)?;
            ensure!(
                tpm.policy_command_code(policy, code)? == SUCCESS
                    && tpm.policy_or(policy)? == SUCCESS
            );
            refused(&keyless(policy), POLICY_CC, "the policy of another command")?;
            ensure!(
                tpm.policy_command_code(policy, REWRAP)? == VALUE_1,
                "the command of a policy does not change"
            );
            refused(&keyless(policy), POLICY_CC, "the same")?;
            tpm.flush(policy)?;
        }
        let policy = tpm.start_session(POLICY_SESSION)?;
        ensure!(tpm.policy_command_code(policy, REWRAP)? == SUCCESS);
        ensure!(tpm.policy_or(policy)? == VALUE_1, "Rewrap is no branch of it");
        refused(&keyless(policy), POLICY_FAIL, "its own command code")?;
        tpm.flush(policy)?;

        // The parent cannot be used by another command, get another authorisation value, or be
        // duplicated.
        let create =
            [&sized(&[0, 0, 0, 0])?[..], &sized(&template_of_an_srk()?)?, &[0, 0], &[0, 0, 0, 0]]
                .concat();
        for (command, handles, parameters, code) in [
            (CREATE, &[PARENT][..], create, AUTH_UNAVAILABLE),
            (UNSEAL, &[PARENT], Vec::new(), AUTH_UNAVAILABLE),
            (OBJECT_CHANGE_AUTH, &[PARENT, PARENT], sized(b"new")?, TYPE_2),
            (DUPLICATE, &[PARENT, NULL], NO_WRAPPER.to_vec(), AUTH_TYPE),
        ] {
            let answer = tpm.run(command, handles, Some(&PASSWORD), &parameters)?;
            ensure!(answer.code == code, "{algorithm}, command {command:#x}: {:#x}", answer.code);
        }

        // The imported key signs, and does not leave the TPM either.
        device.load(&reply, &inner_key)?;
        ensure!(device.hmac(MESSAGE)? == key.hmac(MESSAGE));
        device.tpm.tpm2(&["evictcontrol", "-C", "o", "-c", "key.ctx", &format!("{KEY:#x}")])?;
        device.tpm.tpm2(&["flushcontext", "-t"])?;
        let answer = tpm.run(DUPLICATE, &[KEY, NULL], Some(&PASSWORD), &NO_WRAPPER)?;
        ensure!(answer.code == AUTH_TYPE, "duplicated by password: {:#x}", answer.code);
        let policy = tpm.start_session(POLICY_SESSION)?;
        ensure!(tpm.policy_command_code(policy, DUPLICATE)? == SUCCESS);
        let answer = tpm.run(DUPLICATE, &[KEY, NULL], Some(&keyless(policy)), &NO_WRAPPER)?;
        ensure!(answer.code == POLICY_FAIL, "duplicated by policy: {:#x}", answer.code);
        tpm.flush(policy)?;
    }
    Ok(())
}

/// A TPM makes another key from each template (TPM 2.0 Part 3, 24.1). So nobody gets an import
/// parent's key under a template that allows more.
#[test]
fn another_template_gives_another_key() -> Result<()> {
    let device = Device::new(EkKind::P256, 0, Parent::Import, "ecc256")?;
    let tpm = Commands::of(&device)?;
    let import_or_load = hex::decode(IMPORT_OR_LOAD)?;
    let mut keys = Vec::new();
    for (attributes, policy) in [
        (0x0003_0432, &import_or_load[..]),
        (0x0003_0472, &[]),
        (0x0003_0472, &import_or_load),
        (0x0003_04B2, &import_or_load),
        (0x0003_0432, &[]),
    ] {
        let parameters =
            [&sized(&[0, 0, 0, 0])?[..], &sized(&template(attributes, policy)?)?, &[0, 0], &[0; 4]]
                .concat();
        let answer = tpm.run(CREATE_PRIMARY, &[OWNER], Some(&PASSWORD), &parameters)?;
        ensure!(answer.code == SUCCESS, "{attributes:#x}: {:#x}", answer.code);
        let (handle, rest) = answer.body.split_first_chunk().context("a handle")?;
        tpm.flush(u32::from_be_bytes(*handle))?;
        let (public, _) = take_sized(&rest[4..])?;
        let key = public.last_chunk::<68>().context("a P-256 key")?.to_vec();
        ensure!(!keys.contains(&key), "{attributes:#x} has the key of another template");
        keys.push(key);
    }
    Ok(())
}

/// Sends commands as bytes (TPM 2.0 Part 1, 18), with the parent of a device at [`PARENT`].
struct Commands<'a>(&'a Swtpm);

struct Answer {
    code: u32,
    body: Vec<u8>,
}

impl<'a> Commands<'a> {
    fn of(device: &'a Device) -> Result<Self> {
        device.tpm.tpm2(&[
            "evictcontrol",
            "-C",
            "o",
            "-c",
            "parent.ctx",
            &format!("{PARENT:#x}"),
        ])?;
        device.tpm.tpm2(&["flushcontext", "-t"])?;
        Ok(Self(&device.tpm))
    }

    /// TPM2_Rewrap of what the CA sent, from the parent to no parent.
    fn rewrap(&self, authorisation: &[u8], reply: &ActivationReply) -> Result<Answer> {
        let parameters =
            [sized(&reply.duplicate)?, sized(&name_of(reply))?, sized(&reply.symmetric_seed)?]
                .concat();
        self.run(REWRAP, &[PARENT, NULL], Some(authorisation), &parameters)
    }

    fn start_session(&self, kind: u8) -> Result<u32> {
        let parameters = [&sized(&[7; 16])?[..], &[0, 0, kind, 0x00, 0x10, 0x00, 0x0B]].concat();
        let answer = self.run(START_AUTH_SESSION, &[NULL, NULL], None, &parameters)?;
        ensure!(answer.code == SUCCESS, "no session: {:#x}", answer.code);
        Ok(u32::from_be_bytes(*answer.body.first_chunk().context("a handle")?))
    }

    fn policy_command_code(&self, policy: u32, code: u32) -> Result<u32> {
        Ok(self.run(POLICY_COMMAND_CODE, &[policy], None, &code.to_be_bytes())?.code)
    }

    /// TPM2_PolicyOR of the import parent's branches.
    fn policy_or(&self, policy: u32) -> Result<u32> {
        let parameters =
            [&[0, 0, 0, 2][..], &sized(&hex::decode(IMPORT)?)?, &sized(&hex::decode(LOAD)?)?]
                .concat();
        Ok(self.run(POLICY_OR, &[policy], None, &parameters)?.code)
    }

    fn flush(&self, handle: u32) -> Result<()> {
        let answer = self.run(FLUSH_CONTEXT, &[], None, &handle.to_be_bytes())?;
        ensure!(answer.code == SUCCESS, "not flushed: {:#x}", answer.code);
        Ok(())
    }

    fn run(
        &self,
        code: u32,
        handles: &[u32],
        authorisation: Option<&[u8]>,
        parameters: &[u8],
    ) -> Result<Answer> {
        let tag = if authorisation.is_some() { SESSIONS } else { NO_SESSIONS };
        let mut body: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
        if let Some(authorisation) = authorisation {
            body.extend(u32::try_from(authorisation.len())?.to_be_bytes());
            body.extend(authorisation);
        }
        body.extend(parameters);
        let size = u32::try_from(10 + body.len())?.to_be_bytes();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.0.port()))?;
        stream.write_all(&[&tag.to_be_bytes()[..], &size, &code.to_be_bytes(), &body].concat())?;
        let mut header = [0; 10];
        stream.read_exact(&mut header)?;
        let number = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let mut body = vec![0; usize::try_from(number(2))? - header.len()];
        stream.read_exact(&mut body)?;
        Ok(Answer { code: number(6), body })
    }
}

impl Answer {
    /// The parameters of a response with sessions and without handles.
    fn parameters(&self) -> Result<&[u8]> {
        self.body.get(4..).context("parameters after their size")
    }
}

/// The authorisation by a session that has no key, and therefore no HMAC.
fn keyless(session: u32) -> Vec<u8> {
    [&session.to_be_bytes()[..], &[0, 0, CONTINUE_SESSION, 0, 0]].concat()
}

fn name_of(reply: &ActivationReply) -> Vec<u8> {
    [&[0x00, 0x0B], digest(&SHA256, &reply.key_public).as_ref()].concat()
}

fn template_of_an_srk() -> Result<Vec<u8>> {
    template(0x0003_0472, &[])
}

/// TPMT_PUBLIC of a P-256 storage key.
fn template(attributes: u32, policy: &[u8]) -> Result<Vec<u8>> {
    let head = [&[0x00, 0x23, 0x00, 0x0B][..], &attributes.to_be_bytes(), &sized(policy)?].concat();
    let parameters = [0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x00, 0x03, 0x00, 0x10];
    Ok([&head[..], &parameters, &sized(&[0; 32])?, &sized(&[0; 32])?].concat())
}

/// Splits a TPM2B off the front.
fn take_sized(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first_chunk().context("a size")?;
    rest.split_at_checked(u16::from_be_bytes(*size).into()).context("as many bytes as it says")
}

/// Persistent handles of the owner.
const PARENT: u32 = 0x8100_0300;
const KEY: u32 = 0x8100_0301;
/// TPM_RH_NULL and TPM_RH_OWNER.
const NULL: u32 = 0x4000_0007;
const OWNER: u32 = 0x4000_0001;
/// TPM_RS_PW with the empty password.
const PASSWORD: [u8; 9] = [0x40, 0, 0, 0x09, 0, 0, 0, 0, 0];
/// TPM2_Duplicate's parameters: no inner wrapper.
const NO_WRAPPER: [u8; 4] = [0, 0, 0x00, 0x10];
/// TPM_ST.
const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
/// TPM_SE and TPMA_SESSION.
const HMAC_SESSION: u8 = 0;
const POLICY_SESSION: u8 = 1;
const CONTINUE_SESSION: u8 = 1;
/// TPM_CC.
const CREATE_PRIMARY: u32 = 0x131;
const DUPLICATE: u32 = 0x14B;
const OBJECT_CHANGE_AUTH: u32 = 0x150;
const REWRAP: u32 = 0x152;
const CREATE: u32 = 0x153;
const IMPORT_CODE: u32 = 0x156;
const LOAD_CODE: u32 = 0x157;
const UNSEAL: u32 = 0x15E;
const FLUSH_CONTEXT: u32 = 0x165;
const POLICY_COMMAND_CODE: u32 = 0x16C;
const POLICY_OR: u32 = 0x171;
const START_AUTH_SESSION: u32 = 0x176;
/// TPM_RC (TPM 2.0 Part 2, 6.6.3).
const SUCCESS: u32 = 0;
/// TPM_RC_AUTH_TYPE: the role wants a policy session.
const AUTH_TYPE: u32 = 0x124;
/// TPM_RC_AUTH_UNAVAILABLE: the object takes no such authorisation.
const AUTH_UNAVAILABLE: u32 = 0x12F;
/// TPM_RC_VALUE of parameter 1.
const VALUE_1: u32 = 0x1C4;
/// TPM_RC_TYPE of handle 2.
const TYPE_2: u32 = 0x28A;
/// TPM_RC_POLICY_FAIL of session 1.
const POLICY_FAIL: u32 = 0x99D;
/// TPM_RC_POLICY_CC of session 1.
const POLICY_CC: u32 = 0x9A4;
