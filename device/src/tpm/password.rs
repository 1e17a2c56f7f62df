//! The passwords of a TPM's hierarchies.

use std::fmt;

use zeroize::Zeroizing;

/// The passwords of the hierarchies, empty if there is none.
#[derive(Clone, Debug, Default)]
pub struct HierarchyPasswords {
    /// Needed to make the IK persistent.
    pub owner: Password,
    /// Needed to create and to use an EK.
    pub endorsement: Password,
}

/// A TPM password of at most [`Password::MAX`] bytes. Debug output does not show it, and it is
/// wiped on drop. Some copies in commands on their way to the TPM are not wiped.
#[derive(Clone, Default)]
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// The greatest length, in bytes: a TPM2B_AUTH holds one digest (TPM 2.0 Part 2, 10.4.5),
    /// SHA-512 at most.
    pub const MAX: usize = 64;

    /// Takes the password; `None` if it is too long.
    pub fn new(password: Vec<u8>) -> Option<Self> {
        let password = Zeroizing::new(password);
        (password.len() <= Self::MAX).then_some(Self(password))
    }

    /// The password without the zeros at its end, as a TPM keeps it (TPM 2.0 Part 1, 19.6.4).
    pub(super) fn without_zeros(&self) -> &[u8] {
        let end = self.0.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        &self.0[..end]
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_does_not_show_in_debug_output() {
        let password = Password::new(b"hunter2".to_vec()).unwrap();
        assert!(!format!("{password:?}").contains("hunter2"));
    }

    #[test]
    fn a_password_longer_than_a_tpm_takes_is_refused() {
        assert!(Password::new(vec![0; Password::MAX]).is_some());
        assert!(Password::new(vec![0; Password::MAX + 1]).is_none());
    }
}
