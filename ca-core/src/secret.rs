//! Secrets of a CA, each in a file of 32 random bytes.

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
