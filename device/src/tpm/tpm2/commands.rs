//! The commands that this crate needs, whichever way they reach the TPM.

use assay_device_core::WrappedKey;
use tpm2_protocol::data::{TpmAlgId, TpmCc, TpmSe, TpmsContext, TpmtPublic};
use zeroize::Zeroizing;

use super::object::Key;
use super::parts::{CommandError, Hierarchy, NvIndex, Reader};
use crate::tpm::interface::SignatureScheme;

/// A connection to a TPM, and what was loaded over it.
pub(super) type Connection<'a> = dyn Commands + 'a;

/// The commands. None leaves anything loaded except what its comment names.
pub(super) trait Commands {
    /// Whether the TPM may hold something that was loaded over this connection.
    fn may_leave_something(&self) -> bool;

    /// Flushes everything that is still loaded, even if the TPM refuses to flush some of it. Does
    /// nothing on a broken connection.
    fn flush_loaded(&mut self) -> Result<(), CommandError>;

    /// TPM2_GetCapability (TPM 2.0 Part 3, 30.2): the handles in use from `first` on, of the type
    /// of `first` (TPM 2.0 Part 2, 7.2).
    fn handles(&mut self, first: u32) -> Result<Vec<u32>, CommandError>;

    /// TPM2_NV_ReadPublic (TPM 2.0 Part 3, 31.6); `None` if there is no such index.
    fn nv_index(&mut self, index: u32) -> Result<Option<NvIndex>, CommandError>;

    /// TPM2_NV_Read (TPM 2.0 Part 3, 31.13).
    fn nv_read(
        &mut self,
        index: u32,
        nv: &NvIndex,
        reader: Reader,
        offset: u16,
        size: u16,
    ) -> Result<Vec<u8>, CommandError>;

    /// TPM2_CreatePrimary (TPM 2.0 Part 3, 24.1). A session carries the hierarchy's password, if it
    /// has one.
    fn create_primary(
        &mut self,
        hierarchy: Hierarchy,
        session: Option<u32>,
        template: TpmtPublic,
    ) -> Result<(u32, TpmtPublic), CommandError>;

    /// TPM2_Create (TPM 2.0 Part 3, 12.1): the content of a TPM2B_PRIVATE, and the public area.
    fn create(
        &mut self,
        parent: u32,
        template: TpmtPublic,
    ) -> Result<(Vec<u8>, TpmtPublic), CommandError>;

    /// TPM2_Load (TPM 2.0 Part 3, 12.2). The policy session authorises the parent, and ends.
    /// Without one, the parent takes an empty password.
    fn load(
        &mut self,
        parent: u32,
        policy: Option<u32>,
        private: &[u8],
        public: TpmtPublic,
    ) -> Result<u32, CommandError>;

    /// TPM2_ReadPublic (TPM 2.0 Part 3, 12.4); `None` if there is no such object.
    fn read_public(&mut self, handle: u32) -> Result<Option<TpmtPublic>, CommandError>;

    /// TPM2_EvictControl (TPM 2.0 Part 3, 28.5): makes a loaded object persistent, or removes a
    /// persistent one. For the TPM both are one command.
    fn evict_control(
        &mut self,
        object: &Key,
        session: Option<u32>,
        persistent: u32,
    ) -> Result<(), CommandError>;

    /// TPM2_FlushContext (TPM 2.0 Part 3, 28.4).
    fn flush_context(&mut self, handle: u32) -> Result<(), CommandError>;

    /// TPM2_ContextSave (TPM 2.0 Part 3, 28.2).
    fn context_save(&mut self, handle: u32) -> Result<TpmsContext, CommandError>;

    /// TPM2_ContextLoad (TPM 2.0 Part 3, 28.3).
    fn context_load(&mut self, context: TpmsContext) -> Result<u32, CommandError>;

    /// TPM2_StartAuthSession (TPM 2.0 Part 3, 11.1): a session whose salt only the owner of `key`
    /// can read.
    fn start_session(
        &mut self,
        session_type: TpmSe,
        hash: TpmAlgId,
        key: &Key,
    ) -> Result<u32, CommandError>;

    /// A policy session without a salt. It can authorise, but cannot encrypt.
    fn start_policy(&mut self, hash: TpmAlgId) -> Result<u32, CommandError>;

    /// TPM2_PolicyCommandCode (TPM 2.0 Part 3, 23.11).
    fn policy_command_code(&mut self, policy: u32, code: TpmCc) -> Result<(), CommandError>;

    /// TPM2_PolicyOR (TPM 2.0 Part 3, 23.6).
    fn policy_or(&mut self, policy: u32, branches: &[[u8; 32]]) -> Result<(), CommandError>;

    /// A session that carries passwords for as long as the connection lives.
    fn start_password_session(&mut self, key: &Key) -> Result<u32, CommandError>;

    fn password_session(&self) -> Option<u32>;

    /// Whether a hierarchy is protected, so that a session must carry its password.
    fn has_password(&self, hierarchy: Hierarchy) -> bool;

    /// TPM2_GetCapability (TPM 2.0 Part 3, 30.2): the properties of one group.
    fn properties(&mut self, first: u32) -> Result<Vec<(u32, u32)>, CommandError>;

    /// TPM2_SelfTest (TPM 2.0 Part 3, 10.2) of what was not tested yet, and TPM2_GetTestResult
    /// (10.4).
    fn self_test(&mut self) -> Result<(), CommandError>;

    /// TPM2_PolicySecret (TPM 2.0 Part 3, 23.4): the endorsement hierarchy's password.
    fn policy_secret(&mut self, policy: u32, session: Option<u32>) -> Result<(), CommandError>;

    /// TPM2_ActivateCredential (TPM 2.0 Part 3, 12.5); `object` has an empty password. The session
    /// authorises the EK, and the secret comes back encrypted for it.
    fn activate_credential(
        &mut self,
        object: &Key,
        ek: &Key,
        session: u32,
        is_session_kept: bool,
        blob: &[u8],
        seed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, CommandError>;

    /// TPM2_Sign (TPM 2.0 Part 3, 20.2) over a digest that was not made by the TPM; unrestricted
    /// keys sign such digests. An ECDSA signature is in DER (RFC 3279 §2.2.3), an RSA signature as
    /// the TPM gives it.
    fn sign(
        &mut self,
        key: u32,
        scheme: SignatureScheme,
        digest: &[u8],
    ) -> Result<Vec<u8>, CommandError>;

    /// TPM2_Import (TPM 2.0 Part 3, 13.3) of a key with an inner wrapper. The key of the wrapper
    /// goes to the TPM encrypted for the session. Returns the content of a TPM2B_PRIVATE. The
    /// policy session is as for [`load`](Self::load). Both sessions end.
    fn import(
        &mut self,
        parent: &Key,
        policy: Option<u32>,
        session: u32,
        inner_key: &[u8],
        public: TpmtPublic,
        key: &WrappedKey,
    ) -> Result<Vec<u8>, CommandError>;

    /// TPM2_HMAC (TPM 2.0 Part 3, 15.5) with SHA-256.
    fn hmac(&mut self, key: u32, data: &[u8]) -> Result<Vec<u8>, CommandError>;
}
