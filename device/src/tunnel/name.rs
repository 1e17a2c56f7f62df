//! The name under which the broker knows the connection of a local client.

use assay_wire::ConnectionName;
use data_encoding::BASE32_NOPAD;
use ring::digest::{SHA256, digest};

use crate::random::random;

/// The name for a client id. The same client id has the same name at all times, and two client ids
/// have two names, so a client that comes back ends its own old connection and nobody else's.
///
/// Most client ids are names. Others are hashed: 110 bits of SHA-256 after a `_`, with which no
/// client id begins that is taken as it is.
pub(super) fn of_client(client: &str) -> Option<ConnectionName> {
    if client.is_empty() {
        return None;
    }
    if let Ok(name) = client.parse::<ConnectionName>()
        && !client.starts_with(HASHED)
    {
        return Some(name);
    }
    let text = BASE32_NOPAD.encode(digest(&SHA256, client.as_bytes()).as_ref());
    format!("{HASHED}{}", text[..22].to_lowercase()).parse().ok()
}

/// A name for a client without a client id. If the client comes back with the name as its client
/// id, it has the same name again.
pub(super) fn assigned() -> Option<ConnectionName> {
    let random: [u8; 11] = random();
    format!("auto-{}", BASE32_NOPAD.encode(&random).to_lowercase()).parse().ok()
}

const HASHED: char = '_';

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn name(client: &str) -> String {
        of_client(client).unwrap().to_string()
    }

    #[test]
    fn client_id_that_can_be_a_name_is_one() {
        for client in ["node-red", "mosq.1_x", "abcdefghijklmnopqrstuvw"] {
            assert_eq!(name(client), client);
        }
    }

    #[test]
    fn other_client_ids_have_names_of_their_own_that_stay() {
        let odd = [
            "a/b",
            "a b",
            "mosq-Wp0Qg4yV6YyYyV0aIY7",
            "é",
            "_",
            "_abc",
            "+",
            "#",
            "\0",
            &"x".repeat(60_000),
            &name("a/b"),
        ];
        let names: HashSet<_> = odd.iter().map(|client| name(client)).collect();
        assert_eq!(names.len(), odd.len());
        for client in odd {
            assert!(name(client).starts_with('_') && name(client) == name(client), "{client}");
        }
    }

    #[test]
    fn client_without_an_id_gets_one_that_it_can_come_back_with() {
        assert_eq!(of_client(""), None);
        let (one, other) = (assigned().unwrap(), assigned().unwrap());
        assert_ne!(one, other);
        assert_eq!(name(one.as_str()), one.as_str());
    }
}
