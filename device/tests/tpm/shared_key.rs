//! HMAC keys from a CA, wrapped by software that shares nothing with ours.

use anyhow::Result;
use assay_device::tpm::{
    EkKind, HierarchyPasswords, MAX_HMAC_DATA, ParentKind, PublicKey, Tpm, Tpm2, TpmError,
    WrappedKey,
};
use assay_tests::Swtpm;

use crate::proxy::Proxy;
use crate::wrap::{hmac, wrap, wrap_as};
use crate::{HMAC_KEY, a_tpm, assert_nothing_loaded, open, told, vendor};

pub(crate) const KEY: [u8; 32] = *b"thirty-two bytes of key material";
const OTHER_KEY: [u8; 32] = [0xA5; 32];

#[test]
fn hmac_by_the_imported_key_is_that_of_other_software() -> Result<()> {
    let swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    let wrapped = wrapped_for(&swtpm, &KEY)?;
    assert_eq!(wrapped.public.len(), 48);
    import(&mut tpm, &wrapped, None)?;
    assert_nothing_loaded(&swtpm)?;
    assert_eq!(tpm.hmac_key(HMAC_KEY)?, Some(wrapped.public));
    for length in [0, 1, 64, MAX_HMAC_DATA] {
        let data = vec![0x3C; length];
        assert_eq!(tpm.hmac(HMAC_KEY, &data)?, hmac(&KEY, &data), "{length}");
    }
    assert_nothing_loaded(&swtpm)
}

#[test]
fn more_than_a_tpm_takes_at_once_is_refused() -> Result<()> {
    let swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    import(&mut tpm, &wrapped_for(&swtpm, &KEY)?, None)?;
    assert!(tpm.hmac(HMAC_KEY, &[0; MAX_HMAC_DATA + 1]).is_err());
    assert_nothing_loaded(&swtpm)
}

#[test]
fn imported_key_survives_a_power_cycle_and_is_gone_from_a_cleared_tpm() -> Result<()> {
    let mut swtpm = a_tpm();
    let wrapped = wrapped_for(&swtpm, &KEY)?;
    import(&mut open(&swtpm), &wrapped, None)?;
    swtpm.restart()?;
    assert_eq!(open(&swtpm).hmac(HMAC_KEY, b"data")?, hmac(&KEY, b"data"));
    swtpm.clear()?;
    assert_eq!(open(&swtpm).hmac_key(HMAC_KEY)?, None);
    let error = import(&mut open(&swtpm), &wrapped, None).unwrap_err();
    assert!(matches!(error, TpmError::NotForThisTpm { .. }), "the parent is another one: {error}");
    let wrapped = wrapped_for(&swtpm, &KEY)?;
    import(&mut open(&swtpm), &wrapped, None)?;
    assert_nothing_loaded(&swtpm)
}

#[test]
fn key_for_another_ek_or_parent_or_altered_is_refused_and_leaves_nothing() -> Result<()> {
    let swtpm = a_tpm();
    let other = vendor().device(assay_tests::EkKind::P256, 1)?;
    let (mut tpm, mut other) = (open(&swtpm), open(&other));
    let before = swtpm.persistent_handles()?;
    let ek = tpm.endorsement_key(EkKind::P256)?.unwrap();
    let parent = tpm.parent(ParentKind::P256)?.unwrap();
    let good = wrap(&KEY, &ek, &parent);
    let altered = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    let cases = [
        ("another EK", wrap(&KEY, &other.endorsement_key(EkKind::P256)?.unwrap(), &parent)),
        ("another parent", wrap(&KEY, &ek, &other.parent(ParentKind::P256)?.unwrap())),
        (
            "altered credential",
            WrappedKey { credential_blob: altered(&good.credential_blob), ..good.clone() },
        ),
        (
            "altered seed",
            WrappedKey { encrypted_seed: altered(&good.encrypted_seed), ..good.clone() },
        ),
        ("altered key", WrappedKey { duplicate: altered(&good.duplicate), ..good.clone() }),
        (
            "altered outer seed",
            WrappedKey { symmetric_seed: altered(&good.symmetric_seed), ..good.clone() },
        ),
        ("altered public area", WrappedKey { public: altered(&good.public), ..good.clone() }),
        (
            "longer public area",
            WrappedKey { public: [&good.public[..], &[0]].concat(), ..good.clone() },
        ),
        ("over-long seed", WrappedKey { symmetric_seed: vec![0; 4096], ..good.clone() }),
        ("nothing", WrappedKey { duplicate: Vec::new(), ..good.clone() }),
    ];
    for (case, wrapped) in cases {
        let error = import(&mut tpm, &wrapped, None).unwrap_err();
        assert!(matches!(error, TpmError::NotForThisTpm { .. }), "{case}: {error}");
        assert_eq!(swtpm.persistent_handles()?, before, "{case}");
        assert_nothing_loaded(&swtpm)?;
    }
    import(&mut tpm, &good, None)?;
    assert_nothing_loaded(&swtpm)
}

#[test]
fn key_of_another_shape_is_refused_before_the_tpm_sees_it() -> Result<()> {
    let swtpm = a_tpm();
    let good = wrapped_for(&swtpm, &KEY)?;
    // userWithAuth, noDA, sign; nameAlg; scheme; hash of the scheme
    for (at, value) in [(7, 0x00), (6, 0x00), (5, 0x00), (3, 0x04), (11, 0x10), (13, 0x04)] {
        let mut public = good.public.clone();
        public[at] = value;
        let error =
            import(&mut open(&swtpm), &WrappedKey { public, ..good.clone() }, None).unwrap_err();
        assert!(error.to_string().contains("agreed form"), "{at}: {error}");
    }
    Ok(())
}

#[test]
fn handle_that_holds_something_else_is_refused_and_left_alone() -> Result<()> {
    let swtpm = a_tpm();
    swtpm.tpm2(&["createprimary", "-C", "o", "-G", "ecc", "-c", "primary.ctx"])?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "primary.ctx", "0x81000100"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    let before = swtpm.tpm2(&["readpublic", "-c", "0x81000100"])?.stdout;
    let mut tpm = open(&swtpm);
    let wrapped = wrapped_for(&swtpm, &KEY)?;
    for error in
        [tpm.hmac_key(HMAC_KEY).unwrap_err(), import(&mut tpm, &wrapped, None).unwrap_err()]
    {
        assert!(matches!(error, TpmError::HandleOccupied { handle: HMAC_KEY, .. }), "{error}");
        assert!(told(error.clone()).contains("--hmac-handle"), "{error}");
        assert!(told(error.clone()).contains("tpm2_evictcontrol -c 0x81000100"), "{error}");
    }
    assert_eq!(swtpm.tpm2(&["readpublic", "-c", "0x81000100"])?.stdout, before);
    assert_nothing_loaded(&swtpm)
}

#[test]
fn hmac_key_that_nobody_allowed_to_replace_is_left_alone() -> Result<()> {
    let swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    let (theirs, ours) = (wrapped_for(&swtpm, &OTHER_KEY)?, wrapped_for(&swtpm, &KEY)?);
    import(&mut tpm, &theirs, None)?;
    for replaced in [None, Some(ours.public.as_slice())] {
        let error = import(&mut tpm, &ours, replaced).unwrap_err();
        assert!(matches!(error, TpmError::HandleOccupied { .. }), "{error}");
        assert_eq!(tpm.hmac(HMAC_KEY, b"data")?, hmac(&OTHER_KEY, b"data"));
    }
    import(&mut tpm, &ours, Some(&theirs.public))?;
    assert_eq!(tpm.hmac(HMAC_KEY, b"data")?, hmac(&KEY, b"data"));
    assert_nothing_loaded(&swtpm)
}

#[test]
fn key_with_the_public_area_of_another_is_not_opened() -> Result<()> {
    let swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    let (theirs, ours) = (wrapped_for(&swtpm, &OTHER_KEY)?, wrapped_for(&swtpm, &KEY)?);
    import(&mut tpm, &theirs, None)?;
    let mut forged = rewrapped(&swtpm, &KEY, &theirs.public)?;
    for _ in 0..2 {
        let error = tpm.open_hmac_key(EkKind::P256, ParentKind::P256, &forged).unwrap_err();
        assert!(matches!(error, TpmError::NotForThisTpm { .. }), "{error}");
        assert_nothing_loaded(&swtpm)?;
        forged = WrappedKey { public: theirs.public.clone(), ..ours.clone() };
    }
    Ok(())
}

#[test]
fn key_that_is_there_already_is_taken_as_it_is() -> Result<()> {
    let swtpm = a_tpm();
    let mut tpm = open(&swtpm);
    let wrapped = wrapped_for(&swtpm, &KEY)?;
    for _ in 0..2 {
        import(&mut tpm, &wrapped, None)?;
        assert_eq!(tpm.hmac(HMAC_KEY, b"data")?, hmac(&KEY, b"data"));
    }
    assert_nothing_loaded(&swtpm)
}

#[test]
fn a_replacement_cut_off_at_any_command_is_finished_the_next_time() -> Result<()> {
    let swtpm = a_tpm();
    let (old, new) = (wrapped_for(&swtpm, &OTHER_KEY)?, wrapped_for(&swtpm, &KEY)?);
    let mut was_free = false;
    for limit in 0.. {
        let mut tpm = open(&swtpm);
        if let Some(found) = tpm.hmac_key(HMAC_KEY)? {
            import(&mut tpm, &old, Some(&found))?;
        } else {
            import(&mut tpm, &old, None)?;
        }
        let proxy = Proxy::with_limit(&swtpm, limit)?;
        let mut cut_off = Tpm2::new(proxy.tcti().parse()?, HierarchyPasswords::default());
        let outcome = import(&mut cut_off, &new, Some(&old.public));
        drop(cut_off);
        let found = tpm.hmac_key(HMAC_KEY)?;
        was_free |= found.is_none();
        assert!(found.is_none_or(|found| [&old.public, &new.public].contains(&&found)), "{limit}");
        // The next process flushes what the one before it left.
        let mut tpm = open(&swtpm);
        import(&mut tpm, &new, Some(&old.public))?;
        assert_eq!(tpm.hmac(HMAC_KEY, b"data")?, hmac(&KEY, b"data"), "{limit}");
        assert_nothing_loaded(&swtpm)?;
        if outcome.is_ok() {
            assert!(proxy.commands() <= limit);
            assert!(was_free, "no cut fell between the removal of the old key and the new one");
            return Ok(());
        }
    }
    unreachable!()
}

#[test]
fn key_is_imported_by_a_parent_of_every_kind_and_each_is_another_key() -> Result<()> {
    let swtpm = a_tpm();
    let mut seen = Vec::new();
    for kind in ParentKind::ALL {
        let mut tpm = open(&swtpm);
        let parent = tpm.parent(kind)?.unwrap();
        assert!(!seen.contains(&parent.key), "{kind}");
        if matches!(parent.key, PublicKey::P256(..)) {
            let wrapped = wrap(&KEY, &tpm.endorsement_key(EkKind::P256)?.unwrap(), &parent);
            let opened = tpm.open_hmac_key(EkKind::P256, kind, &wrapped)?;
            tpm.keep_hmac_key(kind, HMAC_KEY, &opened, None)?;
            assert_eq!(tpm.hmac(HMAC_KEY, b"data")?, hmac(&KEY, b"data"));
            swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "0x81000100"])?;
        }
        seen.push(parent.key);
        assert_nothing_loaded(&swtpm)?;
    }
    Ok(())
}

#[test]
fn persistent_storage_root_key_is_used_if_it_has_the_shape_wanted() -> Result<()> {
    let swtpm = a_tpm();
    let made = [ParentKind::SrkP256, ParentKind::P256]
        .map(|kind| open(&swtpm).parent(kind).unwrap().unwrap());
    swtpm.tpm2(&[
        "createprimary",
        "-C",
        "o",
        "-G",
        "ecc",
        "-c",
        "srk.ctx",
        "-a",
        SRK_ATTRIBUTES,
    ])?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "srk.ctx", "0x81000001"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    let mut tpm = open(&swtpm);
    // tpm2-tools leave `unique` empty, so theirs is another key.
    let persistent = tpm.parent(ParentKind::SrkP256)?.unwrap();
    assert_ne!(persistent, made[0]);
    assert_eq!(tpm.parent(ParentKind::P256)?.unwrap(), made[1], "an import parent is made");
    assert!(tpm.parent(ParentKind::SrkRsa2048)?.is_some());
    let wrapped = wrap(&KEY, &tpm.endorsement_key(EkKind::P256)?.unwrap(), &persistent);
    let opened = tpm.open_hmac_key(EkKind::P256, ParentKind::SrkP256, &wrapped)?;
    tpm.keep_hmac_key(ParentKind::SrkP256, HMAC_KEY, &opened, None)?;
    assert_nothing_loaded(&swtpm)
}

#[test]
fn wrong_owner_password_is_named_at_the_import() -> Result<()> {
    let mut swtpm = a_tpm();
    let wrapped = wrapped_for(&swtpm, &KEY)?;
    swtpm.set_passwords("owner-secret", "")?;
    let error = import(&mut open(&swtpm), &wrapped, None).unwrap_err();
    assert!(matches!(error, TpmError::WrongPassword { hierarchy: "owner", .. }), "{error}");
    assert_nothing_loaded(&swtpm)
}

#[test]
fn persistent_storage_root_key_with_a_password_is_passed_over() -> Result<()> {
    let swtpm = a_tpm();
    swtpm.tpm2(&[
        "createprimary",
        "-C",
        "o",
        "-G",
        "ecc",
        "-c",
        "srk.ctx",
        "-a",
        SRK_ATTRIBUTES,
        "-p",
        "secret",
    ])?;
    swtpm.tpm2(&["evictcontrol", "-C", "o", "-c", "srk.ctx", "0x81000001"])?;
    swtpm.tpm2(&["flushcontext", "-t"])?;
    let mut tpm = open(&swtpm);
    let made = tpm.parent(ParentKind::SrkP256)?.unwrap();
    let wrapped = wrap(&KEY, &tpm.endorsement_key(EkKind::P256)?.unwrap(), &made);
    tpm.open_hmac_key(EkKind::P256, ParentKind::SrkP256, &wrapped)?;
    assert_nothing_loaded(&swtpm)
}

pub(crate) fn import(
    tpm: &mut Tpm2,
    key: &WrappedKey,
    replaced: Option<&[u8]>,
) -> Result<(), TpmError> {
    let opened = tpm.open_hmac_key(EkKind::P256, ParentKind::P256, key)?;
    tpm.keep_hmac_key(ParentKind::P256, HMAC_KEY, &opened, replaced)
}

/// A key that is wrapped as it should be, but under the Name of another public area.
fn rewrapped(swtpm: &Swtpm, key: &[u8; 32], public: &[u8]) -> Result<WrappedKey> {
    let mut tpm = open(swtpm);
    let ek = tpm.endorsement_key(EkKind::P256)?.unwrap();
    Ok(wrap_as(key, public.to_vec(), &ek, &tpm.parent(ParentKind::P256)?.unwrap()))
}

fn wrapped_for(swtpm: &Swtpm, key: &[u8; 32]) -> Result<WrappedKey> {
    let mut tpm = open(swtpm);
    let ek = tpm.endorsement_key(EkKind::P256)?.unwrap();
    Ok(wrap(key, &ek, &tpm.parent(ParentKind::P256)?.unwrap()))
}

const SRK_ATTRIBUTES: &str =
    "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";
