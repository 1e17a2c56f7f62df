//! Kinds of things that the command line and files name.

/// Prints a kind as its name, and reads it back.
macro_rules! named_kind {
    ($kind:ty, $of:literal) => {
        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $kind {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
                    let names = Self::ALL.map(Self::name).join(", ");
                    format!("not a kind of {}: expected one of {names}", $of)
                })
            }
        }
    };
}

pub(crate) use named_kind;
