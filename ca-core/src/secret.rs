//! Secrets of a CA, each in a file of 32 random bytes, and how one takes over from another.

use time::OffsetDateTime;

/// A secret that is wiped when it is dropped, and whose `Debug` shows nothing.
macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
        pub struct $name([u8; Self::LEN]);

        impl $name {
            /// Its length in bytes.
            pub const LEN: usize = 32;

            /// Takes a secret from storage. The caller wipes its own copy.
            pub fn new(secret: [u8; Self::LEN]) -> Self {
                Self(secret)
            }

            /// Makes a new secret.
            pub fn generate(rng: &mut dyn rand_core::CryptoRng) -> Self {
                let mut secret = [0; Self::LEN];
                rng.fill_bytes(&mut secret);
                Self(secret)
            }

            /// The bytes, for storage.
            pub fn secret(&self) -> &[u8; Self::LEN] {
                &self.0
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

pub(crate) use secret;

/// A secret of the CA, and the next one from a time on, while the two overlap.
///
/// Something is made with the one [in use](Self::in_use), and accepted from both (SP 800-57 Part 1,
/// 5.3.4: the originator's and the recipient's usage period). So a worker accepts what another made
/// whose clock is ahead, and what was made before the time.
#[derive(Clone, Debug)]
pub struct Overlapping<K> {
    first: K,
    next: Option<(OffsetDateTime, K)>,
}

impl<K> Overlapping<K> {
    /// One secret, and the one that is used in its place from a time on, if there is one.
    pub fn new(first: K, next: Option<(OffsetDateTime, K)>) -> Self {
        Self { first, next }
    }

    /// All of them, the older one first.
    pub fn iter(&self) -> impl Iterator<Item = &K> {
        [&self.first].into_iter().chain(self.next.iter().map(|(_, next)| next))
    }

    /// What each becomes, used from the same time on.
    pub fn map<L>(self, mut change: impl FnMut(K) -> L) -> Overlapping<L> {
        let Self { first, next } = self;
        Overlapping::new(change(first), next.map(|(from, next)| (from, change(next))))
    }

    /// The same by a change that may fail.
    ///
    /// # Errors
    /// It failed.
    pub fn try_map<L, E>(
        &self,
        mut change: impl FnMut(&K) -> Result<L, E>,
    ) -> Result<Overlapping<L>, E> {
        let first = change(&self.first)?;
        let next = self.next.as_ref().map(|(from, next)| Ok((*from, change(next)?)));
        Ok(Overlapping::new(first, next.transpose()?))
    }

    /// The secret to make something with.
    pub fn in_use(&self, now: OffsetDateTime) -> &K {
        match &self.next {
            Some((from, next)) if *from <= now => next,
            _ => &self.first,
        }
    }

    /// The secrets that are accepted, the newer one first.
    pub(crate) fn accepted(&self) -> impl Iterator<Item = &K> {
        self.next.iter().map(|(_, next)| next).chain([&self.first])
    }
}

impl<K> From<K> for Overlapping<K> {
    fn from(only: K) -> Self {
        Self::new(only, None)
    }
}
