//! What a secret of the CA is still needed for, when another one takes over.

/// What was made before a time, and is still needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MadeBefore {
    /// How many certificates wait for their confirmation or adoption.
    pub waiting: u32,
    /// When the last of them can no longer be confirmed or adopted, in seconds since 1970.
    pub last_until: Option<i64>,
    /// How many certificates that are in force were issued before.
    pub in_force: u32,
    /// How many EKs have a shared key in use and were offered none since.
    pub shared_keys: u32,
}
