//! What a TPM would compute, in software: areas, Names, credentials and duplicates, written anew so
//! that the CA is not checked by its own code.
//!
//! All of the cryptography is AWS-LC's, because RustCrypto's private operations of RSA and ECDH are
//! five to twelve times slower. These are most of what a simulated device costs, and this process
//! shares the processors with the server that it measures.

pub(crate) mod area;
pub(crate) mod hash;
pub(crate) mod signing_key;
pub(crate) mod storage_key;
pub(crate) mod wrapper;

use anyhow::{Result, bail};

/// Splits a `TPM2B` off the front.
fn take_sized(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    match bytes.split_at_checked(2) {
        Some((size, rest)) if rest.len() >= usize::from(u16::from_be_bytes([size[0], size[1]])) => {
            Ok(rest.split_at(usize::from(u16::from_be_bytes([size[0], size[1]]))))
        }
        _ => bail!("a sized buffer is cut short"),
    }
}

#[cfg(test)]
mod tests {
    use super::area::{EkKind, IkKind, ParentKind};
    use super::hash::Hash;
    use super::storage_key::{KeyKind, StorageKey};
    use super::wrapper::{Protection, activate_credential, import_hmac_key};

    use assay_wire::{Reply, ReplyBody};
    use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};

    const EKS: [(EkKind, &str, usize); 4] = [
        (EkKind::P256, "p256", 68),
        (EkKind::P384, "p384", 100),
        (EkKind::Rsa2048, "rsa2048", 258),
        (EkKind::Rsa3072, "rsa3072", 386),
    ];
    const IKS: [(IkKind, &str, usize); 3] = [
        (IkKind::P256, "p256", 68),
        (IkKind::P384, "p384", 100),
        (IkKind::Rsa2048, "rsa2048", 258),
    ];
    const PARENTS: [(ParentKind, &str, usize); 2] =
        [(ParentKind::P256, "p256", 68), (ParentKind::Rsa2048, "rsa2048", 258)];

    /// A file that swtpm, tpm2-tools and OpenSSL made; see the README beside it.
    fn golden(file: &str) -> Vec<u8> {
        std::fs::read(format!("{}/../../ca-core/tests/golden/{file}", env!("CARGO_MANIFEST_DIR")))
            .unwrap()
    }

    /// Checks that `area` gives the area in a golden file from the `unique` at the file's end,
    /// which has this length.
    fn is_area(file: &str, length: usize, area: impl Fn(&[u8]) -> Vec<u8>) {
        let golden = golden(file);
        assert_eq!(area(&golden[golden.len() - length..]), golden[2..], "{file}");
    }

    fn software_ek(kind: EkKind, name: &str) -> StorageKey {
        let pem = pem::parse(golden(&format!("software-{name}.pem"))).unwrap();
        StorageKey::from_pkcs8(kind.into(), pem.contents()).unwrap()
    }

    #[test]
    fn areas_are_those_that_a_tpm_makes_of_the_templates() {
        for (kind, name, length) in EKS {
            is_area(&format!("ek-{name}.tpm2b"), length, |unique| kind.area(unique));
        }
        for (kind, name, length) in IKS {
            is_area(&format!("ik-{name}.tpm2b"), length, |unique| kind.area(unique));
        }
        for (kind, name, length) in PARENTS {
            is_area(&format!("parent-{name}.tpm2b"), length, |unique| kind.area(unique));
            is_area(&format!("srk-{name}.tpm2b"), length, |unique| kind.area_of_plain_srk(unique));
        }
    }

    #[test]
    fn area_around_an_openssl_key_is_that_of_tpm2_tools() {
        for (kind, name, _) in EKS {
            let area = kind.area(software_ek(kind, name).unique());
            assert_eq!(area, golden(&format!("software-{name}.tpm2b"))[2..], "{name}");
        }
    }

    #[test]
    fn names_are_those_that_a_tpm_computes() {
        for (_, name, _) in IKS {
            let area = golden(&format!("ik-{name}.tpm2b"));
            assert_eq!(Hash::sha256_name(&area[2..]), golden(&format!("ik-{name}.name")));
        }
        for (_, name, _) in PARENTS {
            let area = golden(&format!("parent-{name}.tpm2b"));
            assert_eq!(Hash::sha256_name(&area[2..]), golden(&format!("parent-{name}.name")));
        }
    }

    #[test]
    fn credential_of_tpm2_makecredential_opens_to_its_secret_for_its_name_alone() {
        let name = golden("ik-p256.name");
        for (kind, file, _) in EKS {
            let ek = software_ek(kind, file);
            let protection = Protection { hash: kind.hash(), aes_key_size: kind.aes_key_size() };
            // The file format of tpm2-tools: magic, version, TPM2B_ID_OBJECT,
            // TPM2B_ENCRYPTED_SECRET.
            let credential = golden(&format!("software-{file}.credential"));
            let (blob, rest) = super::take_sized(&credential[8..]).unwrap();
            let (seed, _) = super::take_sized(rest).unwrap();
            assert_eq!(
                activate_credential(&ek, protection, &name, blob, seed).unwrap(),
                golden("secret"),
                "{file}"
            );

            let other = golden("ik-p384.name");
            assert!(
                activate_credential(&ek, protection, &other, blob, seed).is_err(),
                "{file}: another object"
            );
            let mut altered = blob.to_vec();
            *altered.last_mut().unwrap() ^= 1;
            assert!(
                activate_credential(&ek, protection, &name, &altered, seed).is_err(),
                "{file}: an altered blob"
            );
        }
    }

    #[test]
    fn hmac_key_of_the_worked_example_is_imported_and_no_altered_one() {
        let value = |name| {
            hex::decode(
                example("shared-key-values")
                    .lines()
                    .find_map(|l| l.strip_prefix(name))
                    .unwrap()
                    .trim(),
            )
            .unwrap()
        };
        let private =
            PrivateKey::from_private_key(&ECDH_P256, &value("parent private key")).unwrap();
        let pkcs8: Pkcs8V1Der<'_> = private.as_der().unwrap();
        let parent = StorageKey::from_pkcs8(KeyKind::P256, pkcs8.as_ref()).unwrap();
        assert_eq!(
            Hash::sha256_name(&ParentKind::P256.area(parent.unique())),
            value("parent Name")
        );

        let message: String = example("activation-reply")
            .lines()
            .map(|line| line.split('#').next().unwrap())
            .collect();
        let message = hex::decode(message.replace(char::is_whitespace, "")).unwrap();
        let ReplyBody::Activation(reply) = Reply::decode(&message).unwrap().body else {
            panic!("an activation")
        };
        let import = |inner: &[u8], area: &[u8], duplicate: &[u8]| {
            import_hmac_key(&parent, inner, area, duplicate, &reply.symmetric_seed).ok()
        };
        let (inner, area, duplicate) = (value("inner key"), &reply.key_public, &reply.duplicate);
        assert_eq!(import(&inner, area, duplicate), Some(value("HMAC key  ")));
        assert_eq!(import(&[0; 16], area, duplicate), None, "another inner key");
        let altered =
            |bytes: &[u8]| [&bytes[..bytes.len() - 1], &[bytes[bytes.len() - 1] ^ 1]].concat();
        assert_eq!(import(&inner, &altered(area), duplicate), None, "another public area");
        assert_eq!(import(&inner, area, &altered(duplicate)), None, "another duplicate");
    }

    /// A block of the worked example of docs/protocol.md.
    fn example(name: &str) -> String {
        let page = std::fs::read_to_string(format!(
            "{}/../../docs/protocol.md",
            env!("CARGO_MANIFEST_DIR")
        ))
        .unwrap();
        let (_, block) = page.split_once(&format!("```text {name}\n")).unwrap();
        block.split_once("```").unwrap().0.to_owned()
    }
}
