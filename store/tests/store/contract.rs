//! What the contract promises, on both stores.

use std::thread;
use std::time::{Duration as StdDuration, Instant};

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{
    Allowances, Assurance, CertificateFacts, Groups, Reprovision, RevocationReason, Role,
    SealedOnRecord, SharedKeyOnRecord, unchecked,
};
use assay_server::directory::Directory;
use assay_store::{
    Act, AnchorRow, AuditEntry, CertificateStatus, Change, Counts, EnrolError, Enrolled, Entry,
    IdInQuestion, IdentityRole, InForce, MadeBefore, NewEnrolment, Pruned, Question, Recorded,
    Removed, Renewed, Replaced, Replacement, Retention, RevokedCertificates, StoreError, Tags,
    Trusted, Waiting, Which, Whom, record_each,
};
use assay_store::{ConfigurationChanges, DueConfiguration};
use assay_wire::{DeviceId, EkId, Flow, Identity, Rights, Scope};
use time::{Duration, OffsetDateTime};

use crate::acts::*;
use crate::fixture::{Any, Fixture, on_both};

on_both! {
    a_configuration_of_a_device_goes_before_the_scopes_and_its_revision_never_goes_back,
    what_changed_last_is_told_and_a_document_that_is_not_there_is_not_removed,
    revisions_of_configurations_follow_the_clock_and_never_go_back,
    a_backend_has_the_rights_on_record_and_a_change_of_them_is_noticed,
    a_renewed_identity_has_several_certificates_until_the_old_ones_are_revoked,
    a_revoked_identity_is_let_in_no_more_and_is_not_renewed,
    an_identity_is_let_in_under_its_own_name_and_role_alone,
    a_certificate_of_an_identity_has_the_name_that_it_was_made_for,
    devices_and_certificates_come_in_pages_by_id_and_by_serial_number,
    the_newest_certificates_of_an_ek_come_first_and_no_others,
    devices_and_certificates_are_counted_by_status,
    a_batch_is_recorded_entry_by_entry_and_each_whole_or_not_at_all,
    entry_that_cannot_be_recorded_takes_no_other_with_it,
    a_certificate_nobody_issued_is_unknown,
    a_certificate_that_was_not_confirmed_in_time_is_revoked,
    a_change_of_anchors_changes_their_version,
    groups_are_replaced_as_a_whole_unless_somebody_changed_them,
    plan_that_asked_the_groups_is_stale_once_they_changed,
    a_group_has_as_many_places_as_it_may_and_a_device_keeps_its_own,
    a_place_that_nobody_uses_is_free_after_a_day,
    an_ek_that_waits_has_one_row_with_what_it_asked_for_last,
    of_too_many_eks_that_wait_those_not_heard_of_for_longest_make_way,
    approved_eks_are_enrolled_and_wait_no_more,
    what_a_certificate_said_is_kept_with_an_enrolment_and_only_there,
    replaced_ek_is_out_and_the_next_one_has_its_device_id,
    an_ek_that_cannot_have_the_id_replaces_nothing,
    approval_that_cannot_be_is_as_if_there_had_been_none,
    eks_turned_away_are_disabled_and_wait_no_more,
    a_confirmed_certificate_supersedes_and_registers,
    a_newer_certificate_supersedes_the_older,
    a_registered_ek_keeps_its_id_when_it_is_enrolled,
    a_renewed_certificate_ends_nothing_until_it_comes_into_force,
    a_renewed_certificate_takes_the_place_of_what_waits_for_its_ek_and_ik,
    a_certificate_for_another_ik_takes_the_place_of_what_waits_except_for_the_ik_in_force,
    a_certificate_for_another_ik_ends_the_old_one_and_its_renewals_when_it_comes_into_force,
    a_certificate_is_in_force_since_its_confirmation,
    a_certificate_is_in_force_from_no_time_before_an_earlier_one_of_its_ek,
    certificate_that_comes_into_force_ends_what_waited_for_another_ik,
    a_removed_devices_id_is_free_and_its_certificates_are_not_good,
    a_retired_generation_never_returns,
    a_secret_is_needed_by_what_was_made_before_it_was_replaced,
    an_active_certificate_that_has_expired_is_not_given_again,
    an_ek_is_enrolled_once_and_an_id_is_granted_once,
    an_ek_that_the_ca_does_not_know_can_be_disabled_and_is_trusted_no_more_for_it,
    an_offer_does_not_change_the_generation,
    an_offer_without_the_vendors_certificate_does_not_make_it_unseen,
    an_unconfirmed_certificate_supersedes_nothing_and_registers_nobody,
    another_certificate_with_the_serial_number_of_a_good_one_is_unknown,
    another_eks_certificate_under_the_same_device_id_changes_nothing,
    batch_in_which_devices_meet_is_recorded_as_if_one_came_after_another,
    certificate_in_force_is_found_without_knowing_its_ik,
    certificate_is_confirmed_once,
    certificates_in_force_are_counted_by_the_key_that_signed_them,
    certificate_to_confirm_is_found_until_its_time_is_over,
    certificates_of_a_device_are_counted_for_a_day,
    certificates_that_are_counted_are_not_forgotten,
    certificates_that_nobody_confirmed_are_counted_for_a_day,
    database_is_found_writable,
    decisions_are_in_the_order_in_which_they_were_made,
    device_that_does_not_exist_is_let_in_until_its_certificate_is_revoked_and_then_forgotten,
    disabling_reaches_enrolled_and_registered_eks,
    generations_taken_into_use_are_counted_for_a_day,
    it_is_on_record_since_when_a_shared_key_is_used,
    key_that_was_never_offered_is_never_used,
    many_are_enrolled_or_none,
    numbers_of_revocation_lists_stand_for_states_one_after_the_other,
    of_two_renewals_at_once_one_is_recorded,
    of_two_eks_racing_for_a_device_id_one_wins,
    of_two_eks_with_a_shared_key_for_one_device_id_one_is_registered,
    offer_that_is_made_again_waits_as_long_again,
    offer_that_nobody_used_is_forgotten_unless_something_must_be_remembered,
    only_an_enrolment_has_a_policy,
    other_eks_are_looked_for_among_all_that_an_operator_sees,
    plan_is_stale_once_anything_that_it_was_made_by_changed,
    plan_that_verified_an_ek_is_stale_once_a_vendor_is_no_longer_trusted,
    plan_that_contradicts_its_own_basis_is_refused,
    pruning_is_done_bit_by_bit,
    retention_says_how_long_certificates_that_were_in_force_are_kept,
    revocation_is_heard_of_within_a_second,
    revocation_lists_are_numbered_once,
    scope_is_the_devices_once_there_are_any,
    sealed_certificates_wait_for_their_own_ek_and_ik_until_they_are_confirmed,
    tags_are_kept_and_change_with_the_list_that_has_them,
    the_audit_forgets_the_oldest_beyond_its_limit,
    the_first_use_of_a_shared_key_registers_its_device_and_retires_older_ones,
    the_revocation_list_gives_reasons_and_forgets_what_expired,
    the_same_ek_under_a_second_device_id_changes_nothing,
    what_a_plain_srk_was_offered_is_remembered_and_retired_with_what_follows_it,
    what_an_enrolment_says_is_kept_and_what_it_leaves_open_is_not_changed,
    what_expired_is_on_no_list_though_its_device_is_disabled,
    what_is_disabled_stays_so_when_it_is_removed_or_enrolled,
    what_was_never_confirmed_is_forgotten_when_it_has_expired,
    what_was_once_in_force_stays_on_record_for_a_month_when_it_has_ended_and_expired,
    what_was_only_offered_to_an_ek_goes_when_it_is_removed,
    whatever_revokes_is_counted_and_only_that,
    endless_requests_push_out_no_decision_that_changed_what_a_device_has,
    a_client_that_waits_for_changes_waits_no_longer_than_asked,
}

fn a_newer_certificate_supersedes_the_older(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    assert_eq!(status(&mut store, 1), CertificateStatus::Active);
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    assert_eq!(status(&mut store, 1), CertificateStatus::Superseded);
    assert_eq!(status(&mut store, 2), CertificateStatus::Active);
    assert_eq!(store.devices().unwrap().len(), 1);
}

/// Somebody who stole the issuing key can make such a certificate.
fn another_certificate_with_the_serial_number_of_a_good_one_is_unknown(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    let mut worth = |device: &str, der: &[u8]| {
        store.certificate_status(&id(device), &[1; 16], &sha256(der)).unwrap()
    };
    assert_eq!(worth("pump-17", &[1]), CertificateStatus::Active);
    assert_eq!(worth("pump-17", &[2]), CertificateStatus::Unknown);
    assert_eq!(worth("pump-18", &[1]), CertificateStatus::Unknown);
}

fn a_certificate_nobody_issued_is_unknown(fixture: &Fixture) {
    let mut store = fixture.store();
    assert_eq!(status(&mut store, 9), CertificateStatus::Unknown);
}

fn another_eks_certificate_under_the_same_device_id_changes_nothing(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    assert!(add(&mut store, &certificate(2, "pump-17", ek(2))).is_err());
    assert_eq!(status(&mut store, 1), CertificateStatus::Active);
    assert_eq!(store.devices().unwrap()[0].ek_id, ek(1));
}

fn the_same_ek_under_a_second_device_id_changes_nothing(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    assert!(add(&mut store, &certificate(2, "pump-18", ek(1))).is_err());
    assert_eq!(store.devices().unwrap().len(), 1);
    assert_eq!(store.certificates().unwrap().len(), 1);
}

fn an_ek_is_enrolled_once_and_an_id_is_granted_once(fixture: &Fixture) {
    let mut store = fixture.store();
    enroll(&mut store, ek(1), Some("pump-17")).unwrap();
    assert_eq!(enroll(&mut store, ek(1), Some("pump-17")).unwrap(), Enrolled::Unchanged);
    assert_eq!(store.enrolments().unwrap().len(), 1);
    assert!(
        matches!(enroll(&mut store, ek(2), Some("pump-17")), Err(EnrolError::DeviceIdTaken(_, holder)) if holder == ek(1))
    );
    enroll(&mut store, ek(2), None).unwrap();
    enroll(&mut store, ek(3), None).unwrap();
    assert_eq!(store.ek_of_device(&id("pump-17")).unwrap(), Some(ek(1)));
}

fn a_registered_ek_keeps_its_id_when_it_is_enrolled(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    assert!(matches!(
        enroll(&mut store, ek(1), Some("pump-18")),
        Err(EnrolError::Registered(_, _))
    ));
    assert!(matches!(
        enroll(&mut store, ek(2), Some("pump-17")),
        Err(EnrolError::DeviceIdTaken(_, _))
    ));
    enroll(&mut store, ek(1), Some("pump-17")).unwrap();
}

fn many_are_enrolled_or_none(fixture: &Fixture) {
    let mut store = fixture.store();
    enroll(&mut store, ek(1), Some("pump-1")).unwrap();
    let new = [
        enrolment(ek(1), Some("pump-1")),
        enrolment(ek(2), Some("pump-2")),
        enrolment(ek(3), Some("pump-1")),
        enrolment(ek(4), None),
        enrolment(ek(5), Some("pump-2")),
    ];
    for results in [store.rehearse_enroll(&new).unwrap(), store.enroll(&new).unwrap()] {
        let failed: Vec<_> = (0..5).filter(|n| results[*n].is_err()).collect();
        assert_eq!(failed, [2, 4], "each where it stands");
        assert!(
            matches!(results[0], Ok(Enrolled::Unchanged))
                && matches!(results[1], Ok(Enrolled::Added))
        );
        assert_eq!(store.enrolments().unwrap().len(), 1);
    }
    assert!(store.rehearse_enroll(&new[..2]).unwrap().iter().all(Result::is_ok));
    assert_eq!(store.enrolments().unwrap().len(), 1, "a rehearsal leaves nothing");
    assert!(store.enroll(&new[..2]).unwrap().iter().all(Result::is_ok));
    assert_eq!(store.enrolments().unwrap().len(), 2);
}

fn what_an_enrolment_says_is_kept_and_what_it_leaves_open_is_not_changed(fixture: &Fixture) {
    let mut store = fixture.store();
    let full = NewEnrolment {
        reprovision: Some(Reprovision::Never),
        legacy_dps_ek: Some(true),
        plain_srk: Some(true),
        disabled: Some(true),
        ..enrolment(ek(1), Some("pump-1"))
    };
    store.enroll(std::slice::from_ref(&full)).unwrap().remove(0).unwrap();
    let row = store.enrolment(&ek(1)).unwrap().unwrap();
    assert_eq!((row.reprovision, row.disabled), (Some(Reprovision::Never), true));
    assert!(row.legacy_dps_ek && row.plain_srk);
    let records = records(&mut store, ek(1), now());
    let granted = records.enrolment.unwrap();
    assert!(records.disabled && granted.legacy_dps_ek && granted.plain_srk);
    assert_eq!(enroll(&mut store, ek(1), None).unwrap(), Enrolled::Unchanged);

    let mut refused = |new: NewEnrolment| store.enroll(&[new]).unwrap().remove(0).unwrap_err();
    let error = refused(NewEnrolment { device_id: Some(id("pump-2")), ..full.clone() });
    assert!(matches!(error, EnrolError::EnrolledAs { found: Some(_), .. }), "{error}");
    let error = refused(NewEnrolment { reprovision: Some(Reprovision::Reissue), ..full.clone() });
    assert!(matches!(error, EnrolError::Reprovision { found: Reprovision::Never, .. }), "{error}");
    let error = refused(NewEnrolment { legacy_dps_ek: Some(false), ..full.clone() });
    assert!(matches!(error, EnrolError::LegacyDpsEk { found: true, .. }), "{error}");
    let error = refused(NewEnrolment { plain_srk: Some(false), ..full.clone() });
    assert!(matches!(error, EnrolError::PlainSrk { found: true, .. }), "{error}");
    let error = refused(NewEnrolment { disabled: Some(false), ..full });
    assert!(matches!(error, EnrolError::Disabled { found: true, .. }), "{error}");
}

fn tags_are_kept_and_change_with_the_list_that_has_them(fixture: &Fixture) {
    let mut store = fixture.store();
    let tagged = |site: &str| {
        let tags = Tags::from([("site".to_owned(), site.to_owned())]);
        NewEnrolment { tags, ..enrolment(ek(1), None) }
    };
    let mut enroll = |new: NewEnrolment| store.enroll(&[new]).unwrap().remove(0).unwrap();
    assert_eq!(enroll(tagged("north")), Enrolled::Added);
    assert_eq!(enroll(tagged("north")), Enrolled::Unchanged);
    assert_eq!(enroll(tagged("south")), Enrolled::Retagged);
    assert_eq!(
        enroll(enrolment(ek(1), None)),
        Enrolled::Unchanged,
        "what says nothing changes nothing"
    );
    assert_eq!(store.enrolment(&ek(1)).unwrap().unwrap().tags, tagged("south").tags);
}

fn only_an_enrolment_has_a_policy(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    assert!(!store.update_enrolment(&ek(1), Some(Reprovision::Never), Some(true)).unwrap());
    enroll(&mut store, ek(1), None).unwrap();
    let mut changed = |reprovision, plain_srk| {
        assert!(store.update_enrolment(&ek(1), reprovision, plain_srk).unwrap());
        let row = store.enrolment(&ek(1)).unwrap().unwrap();
        (row.reprovision.unwrap(), row.plain_srk)
    };
    assert_eq!(changed(Some(Reprovision::Never), None), (Reprovision::Never, false));
    assert_eq!(changed(None, Some(true)), (Reprovision::Never, true));
    assert_eq!(changed(Some(Reprovision::Reuse), Some(false)), (Reprovision::Reuse, false));
}

fn sealed_certificates_wait_for_their_own_ek_and_ik_until_they_are_confirmed(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &sealed(1, "pump-17", ek(1))).unwrap();
    let found = waiting(&mut store, ek(1), 1);
    assert_eq!((found.len(), found[0].serial, found[0].sha256), (1, [1; 16], sha256(&[1])));
    assert!(waiting(&mut store, ek(2), 1).is_empty());
    assert!(waiting(&mut store, ek(1), 9).is_empty());
    assert!(confirm(&mut store, 1, now()));
    assert!(waiting(&mut store, ek(1), 1).is_empty());
}

fn an_unconfirmed_certificate_supersedes_nothing_and_registers_nobody(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    let seen = store.changes().unwrap().connections;
    add(&mut store, &sealed(2, "pump-1", ek(1))).unwrap();
    add(&mut store, &sealed(3, "pump-2", ek(2))).unwrap();
    assert_eq!(
        (status(&mut store, 1), status(&mut store, 2)),
        (CertificateStatus::Active, CertificateStatus::Unconfirmed(ek(1)))
    );
    assert_eq!(store.devices().unwrap().len(), 1);
    assert!(store.enrolment(&ek(2)).unwrap().is_none());
    assert_eq!(store.changes().unwrap().connections, seen);
}

fn a_confirmed_certificate_supersedes_and_registers(fixture: &Fixture) {
    let mut store = fixture.store();
    let earlier = now() - Duration::hours(1);
    let first = CertificateFacts { issued_at: earlier, ..certificate(1, "pump-1", ek(1)) };
    add(&mut store, &first).unwrap();
    add(&mut store, &sealed(2, "pump-1", ek(1))).unwrap();
    add(&mut store, &sealed(3, "pump-2", ek(2))).unwrap();
    let later = now() + Duration::minutes(1);
    for serial in [2, 3] {
        assert!(confirm(&mut store, serial, later));
        assert_eq!(status(&mut store, serial), CertificateStatus::Active);
    }
    assert_eq!(status(&mut store, 1), CertificateStatus::Superseded);
    let devices = store.devices().unwrap();
    assert_eq!(
        devices.iter().map(|device| device.serial.as_ref().unwrap()[0]).collect::<Vec<_>>(),
        [2, 3]
    );
    assert_eq!(revoked(&mut store), [(1, RevocationReason::Superseded)]);
}

fn a_certificate_that_was_not_confirmed_in_time_is_revoked(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &sealed(1, "pump-1", ek(1))).unwrap();
    let deadline = now() + Duration::minutes(10);
    let before = deadline - Duration::seconds(1);
    let revoke = |store: &mut Any, now| store.prune(&Retention::default(), now).unwrap().overdue;
    assert_eq!(revoke(&mut store, before), 0);
    let seen = store.changes().unwrap();
    assert_eq!(revoke(&mut store, deadline), 1);
    let changes = store.changes().unwrap();
    assert!(changes.list > seen.list);
    assert_eq!(changes.connections, seen.connections, "nobody can be connected with it");
    assert_eq!(revoke(&mut store, deadline), 0);
    assert_eq!(status(&mut store, 1), CertificateStatus::Revoked);
    assert_eq!(revoked(&mut store), [(1, RevocationReason::CessationOfOperation)]);
    assert!(!confirm(&mut store, 1, before));
    assert_eq!(status(&mut store, 1), CertificateStatus::Revoked, "it does not come back");
}

fn certificates_of_a_device_are_counted_for_a_day(fixture: &Fixture) {
    let mut store = fixture.store();
    for serial in 1..=3 {
        add(&mut store, &certificate(serial, "pump-1", ek(1))).unwrap();
    }
    add(&mut store, &certificate(9, "pump-2", ek(2))).unwrap();
    let mut count = |at| records(&mut store, ek(1), at).registration.unwrap().recent_certificates;
    assert_eq!(count(now()), 3);
    assert_eq!(count(now() + Duration::DAY), 0);
}

fn certificates_that_nobody_confirmed_are_counted_for_a_day(fixture: &Fixture) {
    let mut store = fixture.store();
    let count = |store: &mut Any, at| records(store, ek(1), at).recent_unconfirmed;
    for serial in 1..=3 {
        add(&mut store, &sealed(serial, "pump-1", ek(1))).unwrap();
    }
    add(&mut store, &sealed(9, "pump-2", ek(2))).unwrap();
    assert_eq!(count(&mut store, now()), 3);
    assert!(confirm(&mut store, 1, now()));
    assert_eq!(count(&mut store, now()), 2, "one was confirmed");
    prune(&mut store, now() + Duration::hours(1));
    assert_eq!(count(&mut store, now() + Duration::hours(1)), 2, "revoked ones count");
    assert_eq!(count(&mut store, now() + Duration::days(1)), 0);
}

/// They may expire before the period of the quota ends.
fn certificates_that_are_counted_are_not_forgotten(fixture: &Fixture) {
    let mut store = fixture.store();
    let hour = now() + Duration::HOUR;
    for serial in 1..=3 {
        let facts = CertificateFacts { not_after: hour, ..certificate(serial, "pump-1", ek(1)) };
        add(&mut store, &facts).unwrap();
        let facts = CertificateFacts { not_after: hour, ..sealed(9 + serial, "pump-2", ek(2)) };
        add(&mut store, &facts).unwrap();
    }
    let retention = Retention::default().with_ended(0).unwrap();
    let mut left = |at| {
        while store.prune(&retention, at).unwrap().more {}
        let registration = records(&mut store, ek(1), at).registration.unwrap();
        let unconfirmed = records(&mut store, ek(2), at).recent_unconfirmed;
        (registration.recent_certificates, unconfirmed, store.certificates().unwrap().len())
    };
    assert_eq!(left(now() + Duration::HOUR * 23), (3, 3, 6));
    assert_eq!(left(hour + Duration::DAY), (0, 0, 1), "what is in force stays");
}

fn the_revocation_list_gives_reasons_and_forgets_what_expired(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-1", ek(1))).unwrap();
    add(&mut store, &certificate(3, "pump-2", ek(2))).unwrap();
    add(&mut store, &certificate(4, "pump-3", ek(3))).unwrap();
    add(&mut store, &certificate(5, "pump-4", ek(4))).unwrap();
    store.set_disabled(&ek(2), true, now()).unwrap();
    store.remove(&ek(3), now()).unwrap();
    let (superseded, removed) =
        ((1, RevocationReason::Superseded), (4, RevocationReason::CessationOfOperation));
    assert_eq!(revoked(&mut store), [superseded, (3, RevocationReason::CertificateHold), removed]);
    store.set_disabled(&ek(2), false, now()).unwrap();
    assert_eq!(revoked(&mut store), [superseded, removed]);
    let expired = now() + Duration::days(90);
    assert_eq!(store.revoked(expired).unwrap(), RevokedCertificates::default());
}

fn numbers_of_revocation_lists_stand_for_states_one_after_the_other(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    add(&mut store, &sealed(2, "pump-18", ek(2))).unwrap();
    let list = |store: &mut Any, at| {
        let (RevokedCertificates { once_in_force, never_in_force }, number) =
            store.revocation_list(at).unwrap();
        (once_in_force.len(), never_in_force.len(), number)
    };
    assert_eq!(list(&mut store, now()), (0, 0, 1));
    add(&mut store, &certificate(3, "pump-17", ek(1))).unwrap();
    assert_eq!(list(&mut store, now()), (1, 0, 2));
    assert_eq!(
        list(&mut store, now() + Duration::HOUR),
        (1, 1, 3),
        "what is overdue is revoked first"
    );
}

fn what_was_only_offered_to_an_ek_goes_when_it_is_removed(fixture: &Fixture) {
    let mut store = fixture.store();
    assert_eq!(store.remove(&ek(1), now()).unwrap(), None);
    add(&mut store, &sealed(1, "pump-1", ek(1))).unwrap();
    offer(&mut store, ek(2), "pump-2", 1);
    assert_eq!(
        store.remove(&ek(1), now()).unwrap(),
        Some(Removed { certificates: 1, shared_key: false })
    );
    assert_eq!(status(&mut store, 1), CertificateStatus::Revoked);
    assert_eq!(
        store.remove(&ek(2), now()).unwrap(),
        Some(Removed { certificates: 0, shared_key: true })
    );
    assert_eq!(
        shared_key(&mut store, ek(2)),
        Some(SharedKeyOnRecord { generation: 3, is_used: false, plain_srk_generation: 0 })
    );
}

fn what_was_never_confirmed_is_forgotten_when_it_has_expired(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    add(&mut store, &sealed(3, "pump-18", ek(2))).unwrap();
    let mut left = |at| {
        prune(&mut store, at);
        store.certificates().unwrap().len()
    };
    assert_eq!(left(now() + Duration::HOUR), 3);
    assert_eq!(left(now() + Duration::days(91)), 2);
}

fn device_that_does_not_exist_is_let_in_until_its_certificate_is_revoked_and_then_forgotten(
    fixture: &Fixture,
) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("ca");
    Directory::create(&path, "Test", &[]).unwrap();
    let directory = Directory::open(&path).unwrap();
    let now = OffsetDateTime::now_utc();
    let [device] = directory.throw_away_devices([now]).unwrap();
    let der = &device.credentials.chain[0][..];
    let mut store = fixture.store();
    store.add_throw_away(&device.id, der, now).unwrap();

    let serial = store.certificates().unwrap()[0].serial.clone();
    let status =
        |store: &mut Any| store.certificate_status(&device.id, &serial, &sha256(der)).unwrap();
    assert_eq!(status(&mut store), CertificateStatus::Active);
    assert!(store.devices().unwrap().is_empty());
    assert_eq!(store.audit(9).unwrap()[0].action, "check");

    let before = store.changes().unwrap().connections;
    store.revoke_throw_away(&[der], now).unwrap();
    assert_eq!(status(&mut store), CertificateStatus::Revoked);
    assert!(store.changes().unwrap().connections > before, "who is connected with it is not cut");
    let revoked = store.revoked(now).unwrap();
    assert_eq!((revoked.once_in_force.len(), revoked.never_in_force.len()), (0, 1));
    prune(&mut store, now + Duration::days(2));
    assert_eq!(status(&mut store), CertificateStatus::Unknown);
}

fn a_configuration_of_a_device_goes_before_the_scopes_and_its_revision_never_goes_back(
    fixture: &Fixture,
) {
    let mut store = fixture.store();
    let (one, two) = (id("pump-1"), id("pump-2"));
    assert_eq!(store.configuration(&one).unwrap(), None);
    assert_eq!(store.newest_configuration().unwrap(), 0);
    let due = |store: &mut Any, device| {
        let DueConfiguration { revision, document } = store.configuration(device).unwrap().unwrap();
        (revision, document.map(|document| String::from_utf8(document).unwrap()))
    };
    let mut set = |target: Option<&DeviceId>, document: Option<&str>| {
        store.set_configuration(target, document.map(str::as_bytes), now()).unwrap().unwrap()
    };
    let first = set(None, Some("all"));
    assert_eq!(first, microseconds(now()));
    let own = set(Some(&one), Some("own"));
    let third = set(None, Some("all again"));
    assert!(first < own && own < third);
    assert_eq!(due(&mut store, &one), (own, Some("own".into())));
    assert_eq!(due(&mut store, &two), (third, Some("all again".into())));

    let mut remove = |target| store.set_configuration(target, None, now()).unwrap().unwrap();
    let fourth = remove(Some(&one));
    assert!(fourth > third);
    assert_eq!(due(&mut store, &one), (fourth, Some("all again".into())));
    let mut remove = |target| store.set_configuration(target, None, now()).unwrap().unwrap();
    let fifth = remove(None);
    assert_eq!(fifth, first + 4);
    assert_eq!(due(&mut store, &one), (fifth, None));
    assert_eq!(store.newest_configuration().unwrap(), fifth);
    let rows = store.configurations().unwrap();
    let found: Vec<_> = rows.iter().map(|row| (&row.device_id, row.revision)).collect();
    assert_eq!(found, [(&None, fifth), (&Some(one), fourth)]);
    assert!(rows.iter().all(|row| row.document.is_none() && row.set_at == now()));
}

fn what_changed_last_is_told_and_a_document_that_is_not_there_is_not_removed(fixture: &Fixture) {
    let mut store = fixture.store();
    assert_eq!(store.configuration_changes().unwrap(), ConfigurationChanges::default());
    assert_eq!(store.set_configuration(None, None, now()).unwrap(), None);
    assert_eq!(store.set_configuration(Some(&id("pump-1")), None, now()).unwrap(), None);
    assert_eq!(store.newest_configuration().unwrap(), 0);

    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    for n in 1..=40 {
        let target = id(&format!("pump-{n}"));
        store.set_configuration(Some(&target), Some(b"{}"), now()).unwrap();
    }
    let ConfigurationChanges { news, devices } = store.configuration_changes().unwrap();
    let before = microseconds(now()) - 1;
    assert_eq!((devices, news.devices.len(), news.newest()), (1, 32, before + 40));
    // It does not name pump-8, so that one has to ask.
    let newest_for = |pump| news.newest_for(&id(pump));
    assert_eq!((newest_for("pump-9"), newest_for("pump-8")), (before + 9, before + 8));
    store.set_configuration(None, Some(b"{}"), now()).unwrap();
    assert_eq!(store.configuration_changes().unwrap().news.for_all, before + 41);
}

/// A device that was given a forged revision takes none below it.
fn revisions_of_configurations_follow_the_clock_and_never_go_back(fixture: &Fixture) {
    let mut store = fixture.store();
    let mut set = |at| store.set_configuration(None, Some(b"{}"), at).unwrap().unwrap();
    let first = set(now());
    let later = now() + Duration::DAY + Duration::MICROSECOND;
    assert_eq!(set(later), microseconds(now()) + 86_400_000_001);
    // A clock that went back.
    assert_eq!(set(now()), microseconds(later) + 1);
    assert_eq!(first, microseconds(now()));
}

fn microseconds(time: OffsetDateTime) -> u64 {
    u64::try_from(time.unix_timestamp_nanos() / 1_000).unwrap()
}

fn a_backend_has_the_rights_on_record_and_a_change_of_them_is_noticed(fixture: &Fixture) {
    let mut store = fixture.store();
    let first = Rights::new(["device/+/command/#"], ["device/#", "fleet/+/event"]).unwrap();
    let sink = identity("sink", IdentityRole::Backend, first.clone());
    assert!(store.add_identity(&sink, now()).unwrap());
    let sha256 = store.identities().unwrap()[0].certificates[0].sha256;
    let rights = |store: &mut Any| store.identity_status(&backend("sink"), &sha256).unwrap();
    assert_eq!(rights(&mut store), (CertificateStatus::Active, first.clone()));
    assert_eq!(store.identities().unwrap()[0].rights, first);

    let before = store.changes().unwrap();
    assert!(store.set_rights("sink", &first).unwrap());
    assert_eq!(store.changes().unwrap(), before, "nothing changed");
    let second = Rights::new([], ["device/pump-1/telemetry"]).unwrap();
    assert!(store.set_rights("sink", &second).unwrap());
    assert_eq!(rights(&mut store), (CertificateStatus::Active, second));
    let after = store.changes().unwrap();
    assert!(after.connections > before.connections, "who is connected is not looked at again");
    assert_eq!(after.list, before.list);

    let anna = identity("anna", IdentityRole::Operator, Rights::default());
    assert!(store.add_identity(&anna, now()).unwrap());
    for name in ["anna", "nobody"] {
        assert!(!store.set_rights(name, &first).unwrap(), "{name} is no backend");
    }
}

fn an_identity_is_let_in_under_its_own_name_and_role_alone(fixture: &Fixture) {
    let mut store = fixture.store();
    for (name, role) in [
        ("sink", IdentityRole::Backend),
        ("anna", IdentityRole::Operator),
        ("north", IdentityRole::Worker),
        ("server", IdentityRole::Broker),
    ] {
        assert!(store.add_identity(&identity(name, role, Rights::default()), now()).unwrap());
        let again = identity(name, IdentityRole::Operator, Rights::default());
        assert!(!store.add_identity(&again, now()).unwrap(), "{name} is taken");
    }
    let rows = store.identities().unwrap();
    let names: Vec<_> = rows.iter().map(|row| (&*row.name, row.certificates.len())).collect();
    assert_eq!(names, [("sink", 1), ("anna", 1), ("north", 1), ("server", 1)]);
    let device = Identity::Device { scope: scope(), device_id: id("sink") };
    let shown = [backend("sink"), Identity::Operator, Identity::Worker, backend("anna"), device];
    for (number, row) in rows.iter().enumerate() {
        for (other, identity) in shown.iter().enumerate() {
            let (status, _) = store.identity_status(identity, &row.certificates[0].sha256).unwrap();
            let expected = match number == other && number < 3 {
                true => CertificateStatus::Active,
                false => CertificateStatus::Unknown,
            };
            assert_eq!(status, expected, "{} as {identity}", row.name);
        }
    }
}

fn a_renewed_identity_has_several_certificates_until_the_old_ones_are_revoked(fixture: &Fixture) {
    let mut store = fixture.store();
    let anna = identity("anna", IdentityRole::Operator, Rights::default());
    store.add_identity(&anna, now()).unwrap();
    let other = identity("other", IdentityRole::Operator, Rights::default());
    store.add_identity(&other, now()).unwrap();
    for _ in 0..2 {
        let renewed = store.renew_identity("anna", &identity_certificate(), now()).unwrap();
        assert_eq!(renewed, Renewed::Done);
    }
    let nobody = store.renew_identity("nobody", &identity_certificate(), now()).unwrap();
    assert_eq!(nobody, Renewed::Unknown);
    let row = store.identities().unwrap().remove(0);
    let digests: Vec<_> = row.certificates.iter().map(|row| row.sha256).collect();
    assert_eq!((digests.len(), row.newest().unwrap().sha256), (3, digests[2]));
    let status = |store: &mut Any, n: usize| {
        store.identity_status(&Identity::Operator, &digests[n]).unwrap().0
    };
    assert!((0..3).all(|n| status(&mut store, n) == CertificateStatus::Active));

    let only = store.revoke_identity("anna", Which::Only(&digests[1]), now()).unwrap();
    assert_eq!((only, status(&mut store, 1)), (Some(1), CertificateStatus::Revoked));
    let before = store.changes().unwrap().connections;
    assert_eq!(
        store.revoke_identity("anna", Which::EveryBut(&digests[2]), now()).unwrap(),
        Some(1)
    );
    assert!(store.changes().unwrap().connections > before, "who is connected is not cut");
    assert_eq!(status(&mut store, 0), CertificateStatus::Revoked);
    assert_eq!(status(&mut store, 1), CertificateStatus::Revoked);
    assert_eq!(status(&mut store, 2), CertificateStatus::Active);
    assert_eq!(
        store.revoke_identity("anna", Which::EveryBut(&digests[2]), now()).unwrap(),
        Some(0)
    );
    assert_eq!(store.revoked_identities(now() - Duration::days(3000)).unwrap().len(), 2);
    let others = store.identities().unwrap().remove(1);
    assert!(others.newest().is_some(), "nothing became of another one");
}

fn a_revoked_identity_is_let_in_no_more_and_is_not_renewed(fixture: &Fixture) {
    let mut store = fixture.store();
    let sink = identity("sink", IdentityRole::Backend, Rights::new([], ["device/#"]).unwrap());
    store.add_identity(&sink, now()).unwrap();
    let sha256 = store.identities().unwrap()[0].certificates[0].sha256;
    assert_eq!(store.revoke_identity("nobody", Which::Every, now()).unwrap(), None);
    assert_eq!(store.revoke_identity("sink", Which::Every, now()).unwrap(), Some(1));
    assert_eq!(store.revoke_identity("sink", Which::Every, now()).unwrap(), Some(0));
    let (status, rights) = store.identity_status(&backend("sink"), &sha256).unwrap();
    assert_eq!((status, rights.is_empty()), (CertificateStatus::Revoked, true));
    let renewed = store.renew_identity("sink", &identity_certificate(), now()).unwrap();
    assert_eq!(renewed, Renewed::Revoked);
    let row = store.identities().unwrap().remove(0);
    assert!(row.certificates.len() == 1 && row.newest().is_none());
}

fn backend(name: &str) -> Identity {
    Identity::Backend { name: name.parse().unwrap() }
}

fn what_expired_is_on_no_list_though_its_device_is_disabled(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    store.set_disabled(&ek(1), true, now()).unwrap();
    let mut count = |at| store.revoked(at).unwrap().once_in_force.len();
    assert_eq!(count(now()), 1);
    assert_eq!(count(now() + Duration::days(91)), 0);
}

fn an_active_certificate_that_has_expired_is_not_given_again(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    let ik_id = sha256(&[1]);
    let mut again = |ik_id, at| {
        let question = question(ek(1), "pump-17", ik_id, at);
        store.snapshot(&question).unwrap().active.map(|active| active.der)
    };
    assert_eq!(again(ik_id, now()), Some(vec![1]));
    assert_eq!(again([9; 32], now()), None, "it is for another IK");
    assert_eq!(again(ik_id, now() + Duration::days(91)), None);
}

fn what_was_once_in_force_stays_on_record_for_a_month_when_it_has_ended_and_expired(
    fixture: &Fixture,
) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    add(&mut store, &certificate(3, "pump-18", ek(2))).unwrap();
    store.remove(&ek(2), now()).unwrap();
    let expiry = now() + Duration::days(90);
    prune(&mut store, expiry + Duration::days(29));
    assert_eq!(
        (status(&mut store, 1), status(&mut store, 3)),
        (CertificateStatus::Superseded, CertificateStatus::Revoked)
    );
    prune(&mut store, expiry + Duration::days(31));
    assert_eq!(
        (status(&mut store, 1), status(&mut store, 3)),
        (CertificateStatus::Unknown, CertificateStatus::Unknown)
    );
    assert_eq!(
        status(&mut store, 2),
        CertificateStatus::Active,
        "a device has it until it has another"
    );
}

fn revocation_lists_are_numbered_once(fixture: &Fixture) {
    let mut store = fixture.store();
    let mut next = || store.next_revocation_list().unwrap();
    assert_eq!([next(), next(), next()], [1, 2, 3]);
}

fn a_removed_devices_id_is_free_and_its_certificates_are_not_good(fixture: &Fixture) {
    let mut store = fixture.store();
    enroll(&mut store, ek(1), Some("pump-1")).unwrap();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    add(&mut store, &sealed(2, "pump-1", ek(1))).unwrap();
    let seen = store.changes().unwrap().connections;
    assert_eq!(
        store.remove(&ek(1), now()).unwrap(),
        Some(Removed { certificates: 2, shared_key: false })
    );
    assert!(store.changes().unwrap().connections > seen);
    assert_eq!(store.remove(&ek(1), now()).unwrap(), None);
    assert_eq!(
        (status(&mut store, 1), status(&mut store, 2)),
        (CertificateStatus::Revoked, CertificateStatus::Revoked)
    );
    assert_eq!(store.ek_of_device(&id("pump-1")).unwrap(), None);
    assert!(store.devices().unwrap().is_empty() && store.enrolments().unwrap().is_empty());
    enroll(&mut store, ek(2), Some("pump-1")).unwrap();
    add(&mut store, &certificate(3, "pump-1", ek(2))).unwrap();
}

fn an_offer_does_not_change_the_generation(fixture: &Fixture) {
    let mut store = fixture.store();
    offer(&mut store, ek(1), "pump-1", 1);
    assert_eq!(
        shared_key(&mut store, ek(1)),
        Some(SharedKeyOnRecord { generation: 1, is_used: false, plain_srk_generation: 0 })
    );
    assert!(store.devices().unwrap().is_empty(), "nobody is registered by an offer");
    accept(&mut store, ek(1), "pump-1", 1).unwrap();
    let seen = store.changes().unwrap().connections;
    offer(&mut store, ek(1), "pump-1", 2);
    assert_eq!(
        shared_key(&mut store, ek(1)),
        Some(SharedKeyOnRecord { generation: 1, is_used: true, plain_srk_generation: 0 })
    );
    assert_eq!(store.changes().unwrap().connections, seen);
}

fn the_first_use_of_a_shared_key_registers_its_device_and_retires_older_ones(fixture: &Fixture) {
    let mut store = fixture.store();
    offer(&mut store, ek(1), "pump-1", 1);
    accept(&mut store, ek(1), "pump-1", 1).unwrap();
    assert_eq!(store.devices().unwrap()[0].shared_key, Some(1));
    offer(&mut store, ek(1), "pump-1", 2);
    let seen = store.changes().unwrap().connections;
    accept(&mut store, ek(1), "pump-1", 2).unwrap();
    assert_eq!(store.devices().unwrap()[0].shared_key, Some(2));
    assert!(
        store.changes().unwrap().connections > seen,
        "connections with the older key are to be cut"
    );
}

fn of_two_eks_with_a_shared_key_for_one_device_id_one_is_registered(fixture: &Fixture) {
    let mut store = fixture.store();
    offer(&mut store, ek(1), "pump-1", 1);
    offer(&mut store, ek(2), "pump-1", 1);
    let holders = store.shared_key_holders(&id("pump-1")).unwrap();
    assert_eq!(holders.iter().map(|holder| holder.ek_id).collect::<Vec<_>>(), [ek(1), ek(2)]);
    accept(&mut store, ek(2), "pump-1", 1).unwrap();
    assert!(accept(&mut store, ek(1), "pump-1", 1).is_err());
    assert_eq!(
        shared_key(&mut store, ek(1)),
        Some(SharedKeyOnRecord { generation: 1, is_used: false, plain_srk_generation: 0 })
    );
    assert_eq!(store.devices().unwrap()[0].ek_id, ek(2));
}

fn a_secret_is_needed_by_what_was_made_before_it_was_replaced(fixture: &Fixture) {
    let mut store = fixture.store();
    let needed = |store: &mut Any, time, now| store.made_before(time, now).unwrap();
    let (replaced, until) = (now() + Duration::SECOND, now() + Duration::minutes(10));
    assert_eq!(needed(&mut store, replaced, now()), MadeBefore::default());
    add(&mut store, &sealed(1, "pump-1", ek(1))).unwrap();
    add(&mut store, &sealed(2, "pump-2", ek(2))).unwrap();
    add(&mut store, &certificate(3, "pump-3", ek(3))).unwrap();
    // Offered and used; offered again later; offered, but not used.
    for (n, device) in [(4, "pump-4"), (5, "pump-5")] {
        offer(&mut store, ek(n), device, 1);
        accept(&mut store, ek(n), device, 1).unwrap();
    }
    offer_at(&mut store, ParentKind::Import, (ek(5), "pump-5", 2), replaced);
    offer(&mut store, ek(6), "pump-6", 1);
    let all = MadeBefore {
        waiting: 2,
        last_until: Some(until.unix_timestamp()),
        in_force: 1,
        shared_keys: 1,
    };
    assert_eq!(needed(&mut store, replaced, now()), all);
    assert_eq!(needed(&mut store, now(), now()), MadeBefore::default(), "made after that");
    assert!(confirm(&mut store, 1, now()));
    assert_eq!(needed(&mut store, replaced, now()), MadeBefore { waiting: 1, in_force: 2, ..all });
    let late = MadeBefore { in_force: 2, shared_keys: 1, ..MadeBefore::default() };
    assert_eq!(needed(&mut store, replaced, until), late, "too late to confirm");
}

fn a_retired_generation_never_returns(fixture: &Fixture) {
    let mut store = fixture.store();
    let retire = |store: &mut Any| store.retire_shared_key(&ek(1)).unwrap();
    assert!(!retire(&mut store), "there is none");
    offer(&mut store, ek(1), "pump-1", 1);
    accept(&mut store, ek(1), "pump-1", 1).unwrap();
    // The device was also offered the next generation.
    offer(&mut store, ek(1), "pump-1", 2);
    let seen = store.changes().unwrap().connections;
    assert!(retire(&mut store));
    assert_eq!(
        shared_key(&mut store, ek(1)),
        Some(SharedKeyOnRecord { generation: 3, is_used: false, plain_srk_generation: 0 })
    );
    assert!(store.changes().unwrap().connections > seen);

    accept(&mut store, ek(1), "pump-1", 3).unwrap();
    assert_eq!(
        store.remove(&ek(1), now()).unwrap(),
        Some(Removed { certificates: 0, shared_key: true })
    );
    enroll(&mut store, ek(1), Some("pump-1")).unwrap();
    offer(&mut store, ek(1), "pump-1", 1);
    assert_eq!(
        shared_key(&mut store, ek(1)),
        Some(SharedKeyOnRecord { generation: 5, is_used: false, plain_srk_generation: 0 })
    );
}

fn what_a_plain_srk_was_offered_is_remembered_and_retired_with_what_follows_it(fixture: &Fixture) {
    let mut store = fixture.store();
    let retire = |store: &mut Any| store.retire_shared_key(&ek(1)).unwrap();
    offer_to(&mut store, ParentKind::PlainSrk, ek(1), "pump-1", 1);
    let on_record = |store: &mut Any| {
        let key = shared_key(store, ek(1)).unwrap();
        (key.generation, key.plain_srk_generation, key.is_of_plain_srk())
    };
    assert_eq!(on_record(&mut store), (1, 1, true));
    offer(&mut store, ek(1), "pump-1", 2);
    assert_eq!(on_record(&mut store), (1, 1, true));
    accept(&mut store, ek(1), "pump-1", 2).unwrap();
    assert_eq!(on_record(&mut store), (2, 1, false));
    offer_to(&mut store, ParentKind::PlainSrk, ek(1), "pump-1", 3);
    assert_eq!(on_record(&mut store), (2, 3, true), "3 is accepted from now on");
    offer_to(&mut store, ParentKind::PlainSrk, ek(1), "pump-1", 2);
    assert_eq!(on_record(&mut store), (2, 3, true));
    // Generation 4 is offered to an import parent, so retiring must go beyond it.
    offer(&mut store, ek(1), "pump-1", 4);
    assert!(retire(&mut store));
    assert_eq!(on_record(&mut store), (5, 3, false));
}

fn an_ek_that_the_ca_does_not_know_can_be_disabled_and_is_trusted_no_more_for_it(
    fixture: &Fixture,
) {
    let mut store = fixture.store();
    assert!(store.set_disabled(&ek(1), true, now()).unwrap());
    assert!(!store.set_disabled(&ek(1), true, now()).unwrap());
    let records = |store: &mut Any| records(store, ek(1), now());
    assert!(records(&mut store).disabled && records(&mut store).enrolment.is_none());
    let row = store.enrolment(&ek(1)).unwrap().unwrap();
    assert!(row.disabled && !row.registered && row.recognised.is_none());
    assert_eq!(store.remove(&ek(1), now()).unwrap(), None);
    assert!(store.set_disabled(&ek(1), false, now()).unwrap());
    assert!(!records(&mut store).disabled && records(&mut store).enrolment.is_none());
    assert!(store.enrolments().unwrap().is_empty());
}

fn what_is_disabled_stays_so_when_it_is_removed_or_enrolled(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    store.set_disabled(&ek(1), true, now()).unwrap();
    store.remove(&ek(1), now()).unwrap().unwrap();
    enroll(&mut store, ek(1), None).unwrap();
    assert!(records(&mut store, ek(1), now()).disabled);
}

fn other_eks_are_looked_for_among_all_that_an_operator_sees(fixture: &Fixture) {
    let mut store = fixture.store();
    let other_ek = |store: &mut Any, other_eks: &[EkId]| {
        let device = IdInQuestion::Due { derived: id("derived"), other_eks: other_eks.to_vec() };
        let question = Question { device, ..question(ek(9), "derived", [0; 32], now()) };
        store.snapshot(&question).unwrap().records.other_ek
    };
    assert_eq!(other_ek(&mut store, &[ek(1), ek(2), ek(3)]), None);
    enroll(&mut store, ek(1), None).unwrap();
    add(&mut store, &certificate(1, "pump-17", ek(2))).unwrap();
    store.set_disabled(&ek(3), true, now()).unwrap();
    for known in [1, 2, 3] {
        assert_eq!(other_ek(&mut store, &[ek(4), ek(known)]), Some(ek(known)));
    }
    assert_eq!(other_ek(&mut store, &[ek(4)]), None);
}

fn disabling_reaches_enrolled_and_registered_eks(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    enroll(&mut store, ek(2), None).unwrap();
    assert!(store.set_disabled(&ek(1), true, now()).unwrap());
    assert!(store.set_disabled(&ek(2), true, now()).unwrap());
    assert_eq!(status(&mut store, 1), CertificateStatus::Disabled);
    assert!(store.enrolments().unwrap().iter().all(|row| row.disabled));
    store.set_disabled(&ek(1), false, now()).unwrap();
    assert_eq!(status(&mut store, 1), CertificateStatus::Active);
}

fn whatever_revokes_is_counted_and_only_that(fixture: &Fixture) {
    let mut store = fixture.store();
    let counts = |store: &mut Any| store.changes().unwrap();
    let mut seen = counts(&mut store);
    // Whether connections must be looked at, and whether the list changes.
    let mut counted = |store: &mut Any| {
        let before = std::mem::replace(&mut seen, counts(store));
        (seen.connections > before.connections, seen.list > before.list)
    };
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    enroll(&mut store, ek(2), None).unwrap();
    assert_eq!(counted(&mut store), (false, false), "nothing is revoked yet");
    store.set_disabled(&ek(1), true, now()).unwrap();
    assert_eq!(counted(&mut store), (true, true), "a device was disabled");
    store.set_disabled(&ek(2), true, now()).unwrap();
    assert_eq!(counted(&mut store), (true, true), "an enrolled EK was disabled");
    store.set_disabled(&ek(2), true, now()).unwrap();
    assert_eq!(counted(&mut store), (false, false), "it was disabled before");
    store.set_disabled(&ek(1), false, now()).unwrap();
    assert_eq!(counted(&mut store), (false, true), "a device was enabled");
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    assert_eq!(counted(&mut store), (true, true), "a certificate was superseded");
    offer(&mut store, ek(3), "pump-3", 1);
    accept(&mut store, ek(3), "pump-3", 1).unwrap();
    assert_eq!(counted(&mut store), (false, false), "a first shared key retires none");
    accept(&mut store, ek(3), "pump-3", 2).unwrap();
    assert_eq!(counted(&mut store), (true, false), "a shared key was retired");
    store.remove(&ek(3), now()).unwrap();
    assert_eq!(counted(&mut store), (true, false), "a device without a certificate was removed");
}

fn generations_taken_into_use_are_counted_for_a_day(fixture: &Fixture) {
    let mut store = fixture.store();
    let recent = |store: &mut Any, at| records(store, ek(1), at).recent_generations;
    offer(&mut store, ek(1), "pump-1", 1);
    for generation in 1..=3 {
        accept(&mut store, ek(1), "pump-1", generation).unwrap();
    }
    assert_eq!(recent(&mut store, now()), 3);
    assert_eq!(recent(&mut store, now() + Duration::DAY - Duration::SECOND), 3);
    assert_eq!(recent(&mut store, now() + Duration::DAY), 0);
}

fn it_is_on_record_since_when_a_shared_key_is_used(fixture: &Fixture) {
    let mut store = fixture.store();
    let since = |store: &mut Any| records(store, ek(1), now()).key_used_since;
    assert_eq!(since(&mut store), None);
    offer(&mut store, ek(1), "pump-1", 1);
    assert_eq!(since(&mut store), None, "nobody has used it");
    accept(&mut store, ek(1), "pump-1", 1).unwrap();
    assert_eq!(since(&mut store), Some(now()));
    let much_later = now() + Duration::days(80);
    offer_at(&mut store, ParentKind::Import, (ek(1), "pump-1", 2), much_later);
    assert_eq!(since(&mut store), Some(now()), "an offer changes nothing");
    accept_at(&mut store, ek(1), "pump-1", 2, much_later).unwrap();
    assert_eq!(since(&mut store), Some(much_later));
    // The next one within a day counts as taken into use with it.
    let soon = much_later + Duration::hours(23);
    accept_at(&mut store, ek(1), "pump-1", 3, soon).unwrap();
    assert_eq!(since(&mut store), Some(much_later));
}

fn groups_are_replaced_as_a_whole_unless_somebody_changed_them(fixture: &Fixture) {
    let (mut store, mut other) = (fixture.store(), fixture.store());
    let (none, empty) = store.groups().unwrap();
    assert_eq!(empty, Groups::default());
    let both = Groups::of_new_ca();
    assert!(store.set_groups(none, &both).unwrap());
    let (first, found) = other.groups().unwrap();
    assert_eq!(found, both);
    let (one, _) = both.without(&"vendors".parse().unwrap()).unwrap();
    assert!(store.set_groups(first, &one).unwrap());
    assert!(!other.set_groups(first, &both).unwrap(), "it did not see the change");
    let (second, found) = other.groups().unwrap();
    assert!(found == one && second != first && first != none);
}

fn plan_that_asked_the_groups_is_stale_once_they_changed(fixture: &Fixture) {
    let mut store = fixture.store();
    let device = IdInQuestion::Due { derived: id("pump-1"), other_eks: Vec::new() };
    let question = Question { device, ..Question::about(ek(1), &id("pump-1"), now()) };
    for is_changed in [true, false] {
        let basis = basis(&mut *store, question.clone()).unwrap();
        if is_changed {
            let (version, groups) = store.groups().unwrap();
            assert!(store.set_groups(version, &groups).unwrap());
        } else {
            // That an operator is asked changes no plan.
            enter(&mut store, Act::Ask(stranger(1, 9))).unwrap();
        }
        let act = act(&sealed(1, "pump-1", ek(1)), vec![1]);
        let entry = Entry { act, basis: Some(basis), audit: None };
        let expected = if is_changed { Recorded::Stale } else { Recorded::Done };
        assert_eq!(record(&mut *store, entry).unwrap(), expected);
    }
}

fn a_group_has_as_many_places_as_it_may_and_a_device_keeps_its_own(fixture: &Fixture) {
    let mut store = fixture.store();
    let pumps = place("pumps", 2);
    for n in [1, 2, 1, 2] {
        assert!(store.take_place(&ek(n), &pumps, now()).unwrap(), "{n}");
    }
    assert!(!store.take_place(&ek(3), &pumps, now()).unwrap());
    assert!(store.take_place(&ek(3), &place("doors", 1), now()).unwrap());
    // Another group, another place.
    assert!(store.take_place(&ek(2), &place("valves", 1), now()).unwrap());
    assert!(store.take_place(&ek(4), &pumps, now()).unwrap());
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    offer(&mut store, ek(4), "pump-4", 1);
    let nobody_used_it = store.take_place(&ek(6), &pumps, now() + Duration::days(2)).unwrap();
    assert!(nobody_used_it, "an offer needs no TPM");
    store.remove(&ek(6), now()).unwrap();
    assert!(!store.has_place(&ek(4), &pumps).unwrap());
    assert!(store.take_place(&ek(4), &pumps, now()).unwrap());
    assert!(store.has_place(&ek(4), &pumps).unwrap() && !store.has_place(&ek(5), &pumps).unwrap());
    accept(&mut store, ek(4), "pump-4", 1).unwrap();
    let later = now() + Duration::days(99);
    assert!(!store.take_place(&ek(5), &pumps, later).unwrap(), "both are used");
    store.remove(&ek(1), later).unwrap();
    assert!(store.take_place(&ek(5), &pumps, later).unwrap());
    assert!(!store.take_place(&ek(1), &pumps, later).unwrap());
}

fn a_place_that_nobody_uses_is_free_after_a_day(fixture: &Fixture) {
    let mut store = fixture.store();
    let pumps = place("pumps", 1);
    assert!(store.take_place(&ek(1), &pumps, now()).unwrap());
    assert!(!store.take_place(&ek(2), &pumps, now() + Duration::DAY).unwrap());
    // Whoever asks again keeps it for as long again.
    assert!(store.take_place(&ek(1), &pumps, now() + Duration::hours(2)).unwrap());
    assert!(!store.take_place(&ek(2), &pumps, now() + Duration::hours(25)).unwrap());
    assert!(store.take_place(&ek(2), &pumps, now() + Duration::hours(27)).unwrap());
    assert!(!store.take_place(&ek(1), &pumps, now() + Duration::hours(27)).unwrap());
    // A name that a group gave is a row, and rows of strangers have a limit.
    enroll(&mut store, ek(2), Some("pump-1")).unwrap();
    assert!(!store.take_place(&ek(1), &pumps, now() + Duration::days(99)).unwrap());
    store.remove(&ek(2), now()).unwrap();
    assert!(store.take_place(&ek(1), &pumps, now() + Duration::days(99)).unwrap());
}

fn an_ek_that_waits_has_one_row_with_what_it_asked_for_last(fixture: &Fixture) {
    let mut store = fixture.store();
    let since = |store: &mut Any, n| {
        let device = IdInQuestion::Due { derived: id("x"), other_eks: Vec::new() };
        let question = Question { device, ..Question::about(ek(n), &id("x"), now()) };
        store.snapshot(&question).unwrap().waits_since
    };
    assert_eq!(since(&mut store, 1), None);
    let later = Waiting { flow: Flow::Sealed, device_id: None, ..stranger(1, 60) };
    let asks = [stranger(1, 0), stranger(2, 30), later.clone()];
    // In one batch.
    let entries: Vec<_> = asks
        .into_iter()
        .map(|waiting| Entry { act: Act::Ask(waiting), basis: None, audit: None })
        .collect();
    assert!(store.record(&scope(), &entries).is_ok());
    let rows = store.pending().unwrap();
    let eks: Vec<_> = rows.iter().map(|row| row.waiting.ek_id).collect();
    assert_eq!(eks.len(), 2, "{rows:?}");
    let row = rows.iter().find(|row| row.waiting.ek_id == ek(1)).unwrap();
    assert_eq!(row.waiting, Waiting { device_id: stranger(1, 0).device_id, ..later });
    // Whoever asks to be somebody else does not change what the operator looks at.
    let other = Waiting { device_id: Some(id("somebody")), ..stranger(1, 80) };
    enter(&mut store, Act::Ask(other.clone())).unwrap();
    let found =
        store.pending().unwrap().into_iter().find(|row| row.waiting.ek_id == ek(1)).unwrap();
    assert_eq!(found.waiting, Waiting { device_id: stranger(1, 0).device_id, ..other });
    enter(&mut store, Act::Ask(stranger(1, 90))).unwrap();
    let row = &store.pending().unwrap()[eks.iter().position(|it| *it == ek(1)).unwrap()];
    assert_eq!(row.waiting, stranger(1, 90));
    assert!(row.first_seen < stranger(1, 90).asked_at.unix_timestamp());
    assert_eq!(since(&mut store, 1).unwrap().unix_timestamp(), row.first_seen);

    // Whoever is on record otherwise does not wait.
    enroll(&mut store, ek(1), None).unwrap();
    store.set_disabled(&ek(2), true, now()).unwrap();
    enter(&mut store, Act::Ask(stranger(3, 0))).unwrap();
    add(&mut store, &certificate(3, "pump-3", ek(3))).unwrap();
    assert_eq!(store.pending().unwrap(), []);
}

fn what_a_certificate_said_is_kept_with_an_enrolment_and_only_there(fixture: &Fixture) {
    let mut store = fixture.store();
    let known = |store: &mut Any, n| {
        let row = store.enrolment(&ek(n)).unwrap();
        let (row, record) = (row?.facts, records(store, ek(n), now()).enrolment.unwrap().facts);
        assert_eq!(row, record);
        row
    };
    enroll(&mut store, ek(1), None).unwrap();
    assert_eq!(known(&mut store, 1), None);
    let learn = |n, model| Entry { act: Act::Learn(ek(n), facts(model)), basis: None, audit: None };
    // In one batch, the last counts; a stranger is nobody that is known.
    let entries = [learn(1, "Model 7"), learn(2, "Model 7"), learn(1, "Model 8")];
    assert!(store.record(&scope(), &entries).is_ok());
    assert_eq!(known(&mut store, 1), Some(facts("Model 8")));
    assert_eq!(known(&mut store, 2), None);
    // Whoever shows the certificate of another's EK does not hold up its device.
    let entry = plan(&mut *store, &certificate(1, "pump-1", ek(1))).unwrap();
    assert!(store.record(&scope(), &[learn(1, "Model 9")]).is_ok());
    assert_eq!(store.record(&scope(), &[entry]).unwrap(), [Recorded::Done]);
    store.remove(&ek(1), now()).unwrap();
    enroll(&mut store, ek(1), None).unwrap();
    assert_eq!(known(&mut store, 1), None);
}

fn replaced_ek_is_out_and_the_next_one_has_its_device_id(fixture: &Fixture) {
    let mut store = fixture.store();
    let tags = Tags::from([("site".to_owned(), "north".to_owned())]);
    let never = Some(Reprovision::Never);
    let first = NewEnrolment { tags, reprovision: never, ..enrolment(ek(1), Some("pump-1")) };
    store.enroll(&[first]).unwrap().remove(0).unwrap();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    enter(&mut store, Act::Ask(stranger(2, 0))).unwrap();
    let new = NewEnrolment { facts: Some(facts("Model 8")), ..enrolment(ek(2), None) };
    let replacement = Replacement { device_id: id("pump-1"), old: ek(1), new };
    let replaced = store.replace(&replacement).unwrap().unwrap();
    assert_eq!(replaced, Replaced::Done(Removed { certificates: 1, shared_key: false }));

    let old = store.enrolment(&ek(1)).unwrap().unwrap();
    assert!(old.disabled && !old.registered && old.device_id.is_none() && old.recognised.is_none());
    assert_eq!(store.certificates().unwrap()[0].status, "revoked");
    let row = store.enrolment(&ek(2)).unwrap().unwrap();
    assert_eq!((row.device_id, row.reprovision), (Some(id("pump-1")), never));
    assert_eq!((row.tags["site"].as_str(), row.facts), ("north", Some(facts("Model 8"))));
    assert!(!row.registered && !row.disabled);
    assert_eq!(store.pending().unwrap(), []);
    assert_eq!(store.replace(&replacement).unwrap().unwrap(), Replaced::NotHeld);

    add(&mut store, &certificate(2, "pump-1", ek(2))).unwrap();
    let held = store.history(&id("pump-1")).unwrap();
    let eks: Vec<_> = held.iter().map(|row| (row.ek_id, row.until.is_some())).collect();
    assert_eq!(eks, [(ek(1), true), (ek(2), false)]);
    // A device that is removed leaves its EK there, too.
    store.remove(&ek(2), now()).unwrap();
    let held = store.history(&id("pump-1")).unwrap();
    assert_eq!((held.len(), held[1].until), (2, Some(now().unix_timestamp())));
    assert_eq!(store.history(&id("pump-2")).unwrap(), []);
}

fn an_ek_that_cannot_have_the_id_replaces_nothing(fixture: &Fixture) {
    let mut store = fixture.store();
    enroll(&mut store, ek(1), Some("pump-1")).unwrap();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    enroll(&mut store, ek(2), Some("pump-2")).unwrap();
    add(&mut store, &certificate(3, "pump-3", ek(3))).unwrap();
    let replacement = |old, new| Replacement {
        device_id: id("pump-1"),
        old: ek(old),
        new: enrolment(ek(new), None),
    };
    let mut refused = |new| store.replace(&replacement(1, new)).unwrap().unwrap_err();
    assert!(matches!(refused(2), EnrolError::EnrolledAs { .. }));
    assert!(matches!(refused(3), EnrolError::Registered(..)));
    // Neither by itself nor in place of an EK that does not hold the id.
    for (old, new) in [(1, 1), (2, 4), (9, 4)] {
        let replaced = store.replace(&replacement(old, new)).unwrap().unwrap();
        assert_eq!(replaced, Replaced::NotHeld, "{old} {new}");
    }
    let row = store.enrolment(&ek(1)).unwrap().unwrap();
    assert!(row.registered && !row.disabled && row.device_id == Some(id("pump-1")));
    assert!(store.certificates().unwrap().iter().all(|row| row.status == "active"));
}

fn of_too_many_eks_that_wait_those_not_heard_of_for_longest_make_way(fixture: &Fixture) {
    let mut store = fixture.store();
    let numbered = |n: u32| {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        stranger_with(bytes.into(), n.into())
    };
    let entries: Vec<_> = (0..10_010)
        .map(|n| Entry { act: Act::Ask(numbered(n)), basis: None, audit: None })
        .collect();
    for batch in entries.chunks(1_000) {
        assert!(store.record(&scope(), batch).is_ok());
    }
    let rows = store.pending().unwrap();
    assert_eq!(rows.len(), 10_000);
    assert_eq!(rows[0].waiting, numbered(10));
}

fn approved_eks_are_enrolled_and_wait_no_more(fixture: &Fixture) {
    let mut store = fixture.store();
    for n in 1..=3 {
        enter(&mut store, Act::Ask(stranger(n, n.into()))).unwrap();
    }
    let known = Some(facts("Model 7"));
    let first = NewEnrolment { facts: known.clone(), ..enrolment(ek(1), Some("pump-1")) };
    let new = [first, enrolment(ek(2), None)];
    let results = store.approve(&new).unwrap();
    assert!(results.iter().all(|result| matches!(result, Ok(Enrolled::Added))), "{results:?}");
    assert_eq!(store.enrolment(&ek(1)).unwrap().unwrap().device_id, Some(id("pump-1")));
    assert_eq!(store.enrolment(&ek(1)).unwrap().unwrap().facts, known);
    assert!(store.is_enrolled(&ek(2)).unwrap());
    // Not even once they are removed.
    store.remove(&ek(1), now()).unwrap();
    let left: Vec<_> = store.pending().unwrap().iter().map(|row| row.waiting.ek_id).collect();
    assert_eq!(left, [ek(3)]);
}

fn approval_that_cannot_be_is_as_if_there_had_been_none(fixture: &Fixture) {
    let mut store = fixture.store();
    enroll(&mut store, ek(9), Some("pump-9")).unwrap();
    for n in [1, 2] {
        enter(&mut store, Act::Ask(stranger(n, 0))).unwrap();
    }
    let new = [enrolment(ek(1), None), enrolment(ek(2), Some("pump-9"))];
    let results = store.approve(&new).unwrap();
    assert!(matches!(results[1], Err(EnrolError::DeviceIdTaken(..))), "{results:?}");
    assert_eq!(store.pending().unwrap().len(), 2);
    assert!(!store.is_enrolled(&ek(1)).unwrap());
}

fn eks_turned_away_are_disabled_and_wait_no_more(fixture: &Fixture) {
    let mut store = fixture.store();
    enter(&mut store, Act::Ask(stranger(1, 0))).unwrap();
    store.turn_away(&[ek(1)], now()).unwrap();
    assert!(records(&mut store, ek(1), now()).disabled);
    store.set_disabled(&ek(1), false, now()).unwrap();
    assert_eq!(store.pending().unwrap(), [], "it has to ask again");
}

fn a_change_of_anchors_changes_their_version(fixture: &Fixture) {
    let mut store = fixture.store();
    let anchor = vendor_root;
    let mut versions = vec![anchors_version(&mut store)];
    assert_eq!(store.add_anchor(&anchor(1)).unwrap(), Trusted::Added);
    versions.push(anchors_version(&mut store));
    assert_eq!(store.add_anchor(&anchor(1)).unwrap(), Trusted::Already);
    assert_eq!(anchors_version(&mut store), versions[1]);
    assert_eq!(store.add_anchor(&anchor(2)).unwrap(), Trusted::Added);
    versions.push(anchors_version(&mut store));
    enter(&mut store, Act::Ask(stranger(1, 0))).unwrap();
    assert!(store.remove_anchor(&[1; 32]).unwrap());
    assert_eq!(store.pending().unwrap(), [], "it may have waited because of that vendor");
    versions.push(anchors_version(&mut store));
    assert_eq!(store.add_anchor(&anchor(3)).unwrap(), Trusted::Added);
    versions.push(anchors_version(&mut store));
    let allowances = Allowances { ek_usage: true, tpm_attributes: false };
    let narrow = AnchorRow { role: Role::Anchor(allowances), ..anchor(3) };
    assert_eq!(store.add_anchor(&narrow).unwrap(), Trusted::Changed);
    versions.push(anchors_version(&mut store));
    assert_eq!(store.add_anchor(&narrow).unwrap(), Trusted::Already);
    assert_eq!(
        store.add_anchor(&anchor(3)).unwrap(),
        Trusted::Already,
        "what is more than it was stays"
    );
    assert_eq!(store.anchors().unwrap().last().unwrap().role, narrow.role);
    for (n, version) in versions.iter().enumerate() {
        assert!(!versions[..n].contains(version), "{n}");
    }
}

fn decisions_are_in_the_order_in_which_they_were_made(fixture: &Fixture) {
    let mut store = fixture.store();
    let at = |microseconds: i64, device: Option<&str>| AuditEntry {
        time: now() + Duration::microseconds(microseconds),
        change: if device.is_some() { Change::Made } else { Change::None },
        ..decision(microseconds as u32, device.map(|device| Whom::Proven(id(device))))
    };
    // Refusals are written later than the decisions about proven devices, and several at once.
    let written = [at(2, Some("a")), at(4, Some("b")), at(3, None), at(1, None)];
    audit(&mut store, written);
    let mut order =
        |count| store.audit(count).unwrap().iter().map(|row| row.duration_us).collect::<Vec<_>>();
    assert_eq!(order(9), [1, 2, 3, 4]);
    assert_eq!(order(2), [3, 4]);
}

fn a_batch_is_recorded_entry_by_entry_and_each_whole_or_not_at_all(fixture: &Fixture) {
    let mut store = fixture.store();
    let good = plan(&mut *store, &certificate(1, "pump-1", ek(1))).unwrap();
    let stale = plan(&mut *store, &certificate(2, "pump-2", ek(2))).unwrap();
    store.set_disabled(&ek(2), true, now()).unwrap();
    let again = plan(&mut *store, &certificate(3, "pump-1", ek(1))).unwrap();
    let entry = |planned: Entry, n, device| Entry {
        audit: Some(AuditEntry { change: Change::Made, ..decision(n, Some(device)) }),
        ..planned
    };
    let entries = [
        entry(good, 1, Whom::Proven(id("pump-1"))),
        entry(stale, 2, Whom::Proven(id("pump-2"))),
        // This one was planned before the first entry of the batch was recorded.
        entry(again, 3, Whom::Proven(id("pump-1"))),
        entry(Entry { act: Act::None, basis: None, audit: None }, 4, Whom::Due(id("pump-4"))),
    ];
    let (done, stale) = (Recorded::Done, Recorded::Stale);
    assert_eq!(store.record(&scope(), &entries).unwrap(), [done, stale, stale, done]);
    let audited: Vec<_> = store.audit(9).unwrap().iter().map(|row| row.duration_us).collect();
    assert_eq!(audited, [1, 4]);
    assert_eq!(store.certificates().unwrap().len(), 1);
    assert_eq!(store.record(&scope(), &entries[..1]).unwrap(), [stale], "it is recorded once");
}

fn plan_is_stale_once_anything_that_it_was_made_by_changed(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    offer(&mut store, ek(1), "pump-1", 1);
    let changes: [(_, fn(&mut Any)); 8] = [
        ("it was disabled", |store| assert!(store.set_disabled(&ek(1), true, now()).unwrap())),
        ("it was enabled", |store| assert!(store.set_disabled(&ek(1), false, now()).unwrap())),
        ("it was enrolled", |store| {
            assert_eq!(enroll(store, ek(1), None).unwrap(), Enrolled::Added)
        }),
        ("its policy changed", |store| {
            assert!(store.update_enrolment(&ek(1), Some(Reprovision::Never), None).unwrap());
        }),
        ("it has another certificate", |store| {
            add(store, &certificate(20, "pump-1", ek(1))).unwrap();
        }),
        ("a certificate waits", |store| add(store, &sealed(21, "pump-1", ek(1))).unwrap()),
        ("its key was retired", |store| assert!(store.retire_shared_key(&ek(1)).unwrap())),
        ("it was removed", |store| assert!(store.remove(&ek(1), now()).unwrap().is_some())),
    ];
    for (number, (what, change)) in (100..).zip(changes) {
        let entry = plan(&mut *store, &certificate(number, "pump-1", ek(1))).unwrap();
        change(&mut store);
        assert_eq!(record(&mut *store, entry).unwrap(), Recorded::Stale, "{what}");
        assert_eq!(status(&mut store, number), CertificateStatus::Unknown, "{what}");
    }
    // The device id went to another EK.
    let entry = plan(&mut *store, &certificate(120, "pump-1", ek(1))).unwrap();
    add(&mut store, &certificate(121, "pump-1", ek(2))).unwrap();
    assert_eq!(record(&mut *store, entry).unwrap(), Recorded::Stale);
}

fn plan_that_verified_an_ek_is_stale_once_a_vendor_is_no_longer_trusted(fixture: &Fixture) {
    let mut store = fixture.store();
    assert_eq!(store.add_anchor(&vendor_root(1)).unwrap(), Trusted::Added);
    let device = IdInQuestion::Due { derived: id("pump-1"), other_eks: Vec::new() };
    let question = Question { device, ..Question::about(ek(1), &id("pump-1"), now()) };
    let plan = |store: &mut Any, serial| Entry {
        act: act(&certificate(serial, "pump-1", ek(1)), vec![serial]),
        basis: Some(basis(&mut **store, question.clone()).unwrap()),
        audit: None,
    };
    let before = plan(&mut store, 1);
    assert!(store.remove_anchor(&[1; 32]).unwrap());
    assert_eq!(record(&mut *store, before).unwrap(), Recorded::Stale);
    let after = plan(&mut store, 2);
    assert_eq!(record(&mut *store, after).unwrap(), Recorded::Done);
}

fn batch_in_which_devices_meet_is_recorded_as_if_one_came_after_another(fixture: &Fixture) {
    let mut store = fixture.store();
    let entries: Vec<_> = (1..=40)
        .map(|n| {
            let device = format!("pump-{}", n % 10);
            plan(&mut *store, &certificate(n, &device, ek(n % 20))).unwrap()
        })
        .collect();
    let recorded = store.record(&scope(), &entries).unwrap();
    let done: Vec<_> =
        (1..=40).zip(&recorded).filter(|(_, is)| **is == Recorded::Done).map(|(n, _)| n).collect();
    assert_eq!(done, (1..=10).collect::<Vec<_>>(), "the first under each device id");
    assert_eq!(store.devices().unwrap().len(), 10);
}

fn plan_that_contradicts_its_own_basis_is_refused(fixture: &Fixture) {
    let mut store = fixture.store();
    let basis = plan(&mut *store, &certificate(1, "pump-1", ek(1))).unwrap().basis;
    for wrong in [certificate(1, "pump-1", ek(2)), certificate(1, "pump-2", ek(1))] {
        let entry = Entry { act: act(&wrong, vec![1]), basis: basis.clone(), audit: None };
        assert!(matches!(record(&mut *store, entry), Err(StoreError::Inconsistent(_))));
    }
    assert!(store.devices().unwrap().is_empty());
}

fn entry_that_cannot_be_recorded_takes_no_other_with_it(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    // It has the same serial number as one on record.
    let impossible = plan(&mut *store, &certificate(1, "pump-2", ek(2))).unwrap();
    let possible = plan(&mut *store, &certificate(3, "pump-3", ek(3))).unwrap();
    let alone = Entry { act: Act::None, basis: None, audit: Some(decision(7, None)) };
    let entries = [impossible, possible, alone];
    assert!(store.record(&scope(), &entries).is_err());
    let mut errors = Vec::new();
    let recorded = record_each(&mut *store, &scope(), &entries, |error| {
        errors.push(error.to_string());
    });
    assert_eq!(recorded, [None, Some(Recorded::Done), Some(Recorded::Done)]);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(status(&mut store, 3), CertificateStatus::Active);
    assert_eq!(store.audit(9).unwrap().len(), 1);
    // If an entry is not the reason for the error, the others are not tried.
    let other: Scope = "other".parse().unwrap();
    store.record_scope(&scope()).unwrap();
    let recorded = record_each(&mut *store, &other, &entries, |error| {
        errors.push(error.to_string());
    });
    assert_eq!((recorded, errors.len()), (vec![None; 3], 2));
}

fn certificate_is_confirmed_once(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &sealed(1, "pump-1", ek(1))).unwrap();
    let [first, second] = [0, 1].map(|_| plan_to_confirm(&mut store, 1, now()).unwrap());
    assert_eq!(record(&mut *store, first).unwrap(), Recorded::Done);
    assert_eq!(record(&mut *store, second).unwrap(), Recorded::Stale);
    for disabled in [false, true] {
        store.set_disabled(&ek(1), disabled, now()).unwrap();
        let (device_id, assurance) = (id("pump-1"), Assurance::VendorCertificate);
        let records = store.snapshot(&Question::about(ek(1), &device_id, now())).unwrap().records;
        assert_eq!(records.disabled, disabled);
        let found = store.sealed_certificate(&ek(1), &sha256(&[1]), now()).unwrap();
        let records = Box::new(records);
        let der = vec![1];
        assert_eq!(found, SealedOnRecord::Active { device_id, assurance, records, der });
    }
}

/// A certificate of these tests consists of its serial number alone.
fn certificates_in_force_are_counted_by_the_key_that_signed_them(fixture: &Fixture) {
    let mut store = fixture.store();
    let none = InForce { active: 0, waiting: 0, listed: 0, last_ends: None };
    let always = OffsetDateTime::UNIX_EPOCH..now() + Duration::days(1);
    assert_eq!(store.in_force(&[1], always.clone(), now()).unwrap(), none);
    let first = certificate(1, "pump-1", ek(1));
    add(&mut store, &first).unwrap();
    add(&mut store, &certificate(2, "pump-2", ek(2))).unwrap();
    let one =
        InForce { active: 1, last_ends: Some(first.not_after.unix_timestamp()), ..none.clone() };
    assert_eq!(store.in_force(&[1], always.clone(), now()).unwrap(), one);
    assert_eq!(store.in_force(&[3], always.clone(), now()).unwrap(), none);
    assert_eq!(store.in_force(&[1], always.clone(), first.not_after).unwrap(), none, "it ended");

    // Of one that waits, nobody sees who signed it.
    let waits = sealed(3, "pump-2", ek(2));
    add(&mut store, &waits).unwrap();
    let waiting = |store: &mut Any, at_work, at| store.in_force(&[9], at_work, at).unwrap().waiting;
    let (issued_at, second) = (waits.issued_at, Duration::SECOND);
    assert_eq!(waiting(&mut store, issued_at..issued_at + second, now()), 1);
    assert_eq!(waiting(&mut store, issued_at - second..issued_at, now()), 0);
    assert_eq!(waiting(&mut store, issued_at + second..always.end, now()), 0);
    assert_eq!(waiting(&mut store, always.clone(), waits.confirm_by.unwrap()), 0, "too late");
    assert_eq!(
        store.in_force(&[9], always.clone(), now()).unwrap().last_ends,
        Some(waits.not_after.unix_timestamp())
    );
    assert!(confirm(&mut store, 3, now()));
    assert_eq!(store.in_force(&[3], always.clone(), now()).unwrap().active, 1);

    // One that is superseded or revoked is no longer in force, but has to be on a list.
    add(&mut store, &certificate(4, "pump-1", ek(1))).unwrap();
    store.remove(&ek(2), now()).unwrap().unwrap();
    for serial in [1, 2] {
        let listed = InForce { listed: 1, last_ends: one.last_ends, ..none.clone() };
        assert_eq!(store.in_force(&[serial], always.clone(), now()).unwrap(), listed);
    }
}

fn a_certificate_of_an_identity_has_the_name_that_it_was_made_for(fixture: &Fixture) {
    let mut store = fixture.store();
    for name in ["anna", "bert"] {
        let new = identity(name, IdentityRole::Operator, Rights::default());
        assert!(store.add_identity(&new, now()).unwrap());
        assert_eq!(store.identity_named(new.certificate.sha256()).unwrap().as_deref(), Some(name));
    }
    assert_eq!(store.identity_named(&[7; 32]).unwrap(), None);
}

fn devices_and_certificates_come_in_pages_by_id_and_by_serial_number(fixture: &Fixture) {
    let mut store = fixture.store();
    // Neither in the order of issuance.
    for (serial, device) in [(0x43, "pump-2"), (0x41, "pump-3"), (0x42, "Pump-1")] {
        add(&mut store, &certificate(serial, device, ek(serial))).unwrap();
    }
    let mut devices = |from, count| {
        let rows = store.devices_from(from, count).unwrap();
        rows.into_iter().map(|row| row.device_id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(devices("", 2), ["Pump-1", "pump-2"]);
    assert_eq!(devices("pump-2", 2), ["pump-2", "pump-3"], "it begins with the one that is named");
    assert_eq!(devices("pump-20", 2), ["pump-3"], "which need not exist");
    assert!(devices("pump-4", 2).is_empty() && devices("", 0).is_empty());
    let mut certificates = |from: &[u8], count| {
        let rows = store.certificates_from(from, count).unwrap();
        rows.into_iter().map(|row| row.serial[0]).collect::<Vec<_>>()
    };
    assert_eq!(certificates(&[], 2), [0x41, 0x42]);
    assert_eq!(certificates(&[0x42; 16], 9), [0x42, 0x43]);
    assert_eq!(certificates(&[0x42, 0x43], 9), [0x43]);
    let [all, paged] = [store.devices().unwrap(), store.devices_from("", 9).unwrap()];
    let found = |id: &DeviceId| paged.iter().find(|row| row.device_id == *id).unwrap();
    for row in &all {
        assert_eq!(format!("{row:?}"), format!("{:?}", found(&row.device_id)));
    }
}

fn the_newest_certificates_of_an_ek_come_first_and_no_others(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(0x43, "pump-1", ek(1))).unwrap();
    add(&mut store, &certificate(0x44, "pump-2", ek(2))).unwrap();
    add(&mut store, &certificate(0x41, "pump-1", ek(1))).unwrap();
    add(&mut store, &certificate(0x42, "pump-1", ek(1))).unwrap();
    let mut certificates = |count| {
        let rows = store.certificates_of(&ek(1), count).unwrap();
        rows.into_iter().map(|row| (row.serial[0], row.status)).collect::<Vec<_>>()
    };
    let newest = [(0x42, "active".to_owned()), (0x41, "superseded".to_owned())];
    assert_eq!(certificates(2), newest);
    assert_eq!(certificates(9).len(), 3);
}

fn devices_and_certificates_are_counted_by_status(fixture: &Fixture) {
    let mut store = fixture.store();
    assert_eq!(store.counts().unwrap(), Counts::default());
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-1", ek(1))).unwrap();
    add(&mut store, &certificate(3, "pump-2", ek(2))).unwrap();
    add(&mut store, &sealed(4, "pump-3", ek(3))).unwrap();
    store.set_disabled(&ek(9), true, now()).unwrap();
    let counts = Counts { devices: 2, disabled: 1, active: 2, unconfirmed: 1, ended: 1 };
    assert_eq!(store.counts().unwrap(), counts);
}

fn certificate_in_force_is_found_without_knowing_its_ik(fixture: &Fixture) {
    let mut store = fixture.store();
    assert_eq!(store.snapshot(&renewing(ek(1))).unwrap().active, None);
    let facts = CertificateFacts { ik_id: [9; 32], ..certificate(1, "pump-1", ek(1)) };
    add(&mut store, &facts).unwrap();
    add(&mut store, &certificate(2, "pump-2", ek(2))).unwrap();
    // These wait for another IK and for another EK.
    add(&mut store, &sealed(3, "pump-1", ek(1))).unwrap();
    add(&mut store, &CertificateFacts { ik_id: [9; 32], ..sealed(4, "pump-2", ek(2)) }).unwrap();
    let found = store.snapshot(&renewing(ek(1))).unwrap();
    let active = found.active.unwrap();
    assert_eq!((active.serial, active.ik_id, active.der), ([1; 16], [9; 32], vec![1]));
    assert!(found.waiting.is_empty());
    add(&mut store, &CertificateFacts { ik_id: [9; 32], ..sealed(5, "pump-1", ek(1)) }).unwrap();
    let waiting = store.snapshot(&renewing(ek(1))).unwrap().waiting;
    assert_eq!(waiting.iter().map(|it| it.serial).collect::<Vec<_>>(), [[5; 16]]);
    let late = Question { now: facts.not_after, ..renewing(ek(1)) };
    assert_eq!(store.snapshot(&late).unwrap().active, None);
}

fn a_renewed_certificate_ends_nothing_until_it_comes_into_force(fixture: &Fixture) {
    let mut store = fixture.store();
    let old = certificate(1, "pump-1", ek(1));
    add(&mut store, &old).unwrap();
    let renewed = CertificateFacts { ik_id: old.ik_id, ..certificate(2, "pump-1", ek(1)) };
    let entry = plan_to_renew(&mut store, &renewed);
    assert_eq!(record(&mut *store, entry).unwrap(), Recorded::Done);
    assert_eq!(status(&mut store, 1), CertificateStatus::Active);
    assert_eq!(status(&mut store, 2), CertificateStatus::Unconfirmed(ek(1)));
    let found = store.snapshot(&renewing(ek(1))).unwrap();
    assert_eq!(found.active.unwrap().serial, [1; 16]);
    let [waiting] = &found.waiting[..] else { panic!("one waits") };
    assert_eq!((waiting.serial, waiting.confirm_by), ([2; 16], renewed.not_after));
    let before = renewed.not_after - Duration::SECOND;
    let found = store.sealed_certificate(&ek(1), &sha256(&[2]), before).unwrap();
    assert!(matches!(found, SealedOnRecord::Unconfirmed { .. }));

    let question = Question::about(ek(1), &id("pump-1"), now());
    let basis = Some(basis(&mut *store, question).unwrap());
    let adopted = unchecked::confirmed(waiting.clone(), &key(), now()).unwrap();
    let entry = Entry { act: Act::Activate(adopted), basis, audit: None };
    assert_eq!(record(&mut *store, entry).unwrap(), Recorded::Done);
    assert_eq!(status(&mut store, 1), CertificateStatus::Superseded);
    assert_eq!(status(&mut store, 2), CertificateStatus::Active);
    assert_eq!(store.snapshot(&renewing(ek(1))).unwrap().active.unwrap().der, [2]);
}

fn a_renewed_certificate_takes_the_place_of_what_waits_for_its_ek_and_ik(fixture: &Fixture) {
    let mut store = fixture.store();
    let old = certificate(1, "pump-1", ek(1));
    add(&mut store, &old).unwrap();
    let with =
        |serial, device, ek_id, ik_id| CertificateFacts { ik_id, ..sealed(serial, device, ek_id) };
    // The last two wait for another IK and for another EK.
    add(&mut store, &with(2, "pump-1", ek(1), old.ik_id)).unwrap();
    add(&mut store, &with(3, "pump-1", ek(1), [9; 32])).unwrap();
    add(&mut store, &with(4, "pump-2", ek(2), old.ik_id)).unwrap();
    for serial in [5, 6] {
        let before = store.changes().unwrap();
        let entry = plan_to_renew(&mut store, &with(serial, "pump-1", ek(1), old.ik_id));
        assert_eq!(record(&mut *store, entry).unwrap(), Recorded::Done);
        let after = store.changes().unwrap();
        assert_eq!(after.connections, before.connections);
        assert!(after.list > before.list);
    }
    for (serial, due) in [(2, "revoked"), (3, "unconfirmed"), (5, "revoked"), (6, "unconfirmed")] {
        let rows = store.certificates().unwrap();
        let row = rows.iter().find(|row| row.serial == [serial; 16]).unwrap();
        assert_eq!(row.status, due, "{serial}");
    }
    assert_eq!(status(&mut store, 1), CertificateStatus::Active);
    assert!(!waiting(&mut store, ek(2), 1).is_empty(), "another EK's");
}

fn a_certificate_for_another_ik_takes_the_place_of_what_waits_except_for_the_ik_in_force(
    fixture: &Fixture,
) {
    let mut store = fixture.store();
    let old = certificate(1, "pump-1", ek(1));
    add(&mut store, &old).unwrap();
    let with = |serial, ek_id, ik_id| CertificateFacts { ik_id, ..sealed(serial, "pump-1", ek_id) };
    add(&mut store, &with(2, ek(1), old.ik_id)).unwrap();
    add(&mut store, &with(3, ek(1), [9; 32])).unwrap();
    add(&mut store, &with(4, ek(2), [9; 32])).unwrap();
    for serial in [5, 6] {
        let entry = plan_to_rekey(&mut store, &with(serial, ek(1), [serial; 32]));
        assert_eq!(record(&mut *store, entry).unwrap(), Recorded::Done);
    }
    let due = [(1, "active"), (2, "unconfirmed"), (3, "revoked"), (4, "unconfirmed")];
    for (serial, due) in due.into_iter().chain([(5, "revoked"), (6, "unconfirmed")]) {
        let rows = store.certificates().unwrap();
        let row = rows.iter().find(|row| row.serial == [serial; 16]).unwrap();
        assert_eq!(row.status, due, "{serial}");
    }
    let found = store.snapshot(&rekeying(ek(1), [6; 32])).unwrap();
    assert_eq!(found.active, None, "it is for another IK");
    let waiting: Vec<_> = found.waiting.iter().map(|it| (it.serial[0], it.ik_id)).collect();
    assert_eq!(waiting, [(6, [6; 32]), (2, old.ik_id)]);
}

fn a_certificate_for_another_ik_ends_the_old_one_and_its_renewals_when_it_comes_into_force(
    fixture: &Fixture,
) {
    let mut store = fixture.store();
    let later = now() + Duration::HOUR;
    let old = certificate(1, "pump-1", ek(1));
    add(&mut store, &old).unwrap();
    let new = certificate(2, "pump-1", ek(1));
    let entry = plan_to_rekey(&mut store, &new);
    assert_eq!(record(&mut *store, entry).unwrap(), Recorded::Done);
    // Whoever has the old key renews it meanwhile.
    let renewed =
        CertificateFacts { ik_id: old.ik_id, issued_at: later, ..certificate(3, "pump-1", ek(1)) };
    let entry = plan_to_renew(&mut store, &renewed);
    assert_eq!(record(&mut *store, entry).unwrap(), Recorded::Done);
    assert_eq!(status(&mut store, 1), CertificateStatus::Active);
    assert_eq!(status(&mut store, 2), CertificateStatus::Unconfirmed(ek(1)));

    assert!(confirm(&mut store, 2, later + Duration::HOUR));
    assert_eq!(status(&mut store, 1), CertificateStatus::Superseded);
    assert_eq!(status(&mut store, 2), CertificateStatus::Active);
    assert_eq!(status(&mut store, 3), CertificateStatus::Revoked, "it would bring the key back");
    let revoked = store.revoked(later).unwrap();
    let is_listed = |serial| {
        let all = revoked.once_in_force.iter().chain(&revoked.never_in_force);
        all.into_iter().any(|it| it.serial == [serial; 16])
    };
    assert_eq!([1, 2, 3].map(is_listed), [true, false, true]);
}

fn a_certificate_is_in_force_since_its_confirmation(fixture: &Fixture) {
    let mut store = fixture.store();
    let later = now() + Duration::MINUTE;
    let in_force = |store: &mut Any, ek_id| {
        records(store, ek_id, later).registration.unwrap().certificate.unwrap().in_force_since
    };
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    assert_eq!(in_force(&mut store, ek(1)), now());
    add(&mut store, &sealed(2, "pump-2", ek(2))).unwrap();
    assert!(confirm(&mut store, 2, later));
    assert_eq!(in_force(&mut store, ek(2)), later);
}

/// Otherwise a claim that is as old as the first certificate could take the place of the second,
/// after a step back of the CA's clock.
fn a_certificate_is_in_force_from_no_time_before_an_earlier_one_of_its_ek(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    store.remove(&ek(1), now()).unwrap();
    let earlier = now() - Duration::MINUTE;
    let next = CertificateFacts { issued_at: earlier, ..certificate(2, "pump-1", ek(1)) };
    add(&mut store, &next).unwrap();
    // Anybody can have a certificate sealed, which must not make claims outdated.
    let unconfirmed =
        CertificateFacts { issued_at: now() + Duration::MINUTE, ..sealed(3, "pump-1", ek(1)) };
    add(&mut store, &unconfirmed).unwrap();
    let on_record = records(&mut store, ek(1), now()).registration.unwrap().certificate.unwrap();
    assert_eq!((on_record.issued_at, on_record.in_force_since), (earlier, now()));
}

fn certificate_that_comes_into_force_ends_what_waited_for_another_ik(fixture: &Fixture) {
    let mut store = fixture.store();
    let later = now() + Duration::SECOND;
    // The first comes into force by a ticket, the second by its confirmation.
    for (device, ek_id, serials, is_confirmed) in
        [("pump-1", ek(1), 10, false), ("pump-2", ek(2), 20, true)]
    {
        let with = |serial, ik, issued_at| CertificateFacts {
            ik_id: sha256(&[ik]),
            issued_at,
            ..sealed(serials + serial, device, ek_id)
        };
        let waiting = [
            (with(1, 7, now()), "revoked"),
            (with(2, 8, later), "revoked"),
            (with(3, 7, later + Duration::SECOND), "unconfirmed"),
            (with(4, serials, now()), "unconfirmed"),
            (CertificateFacts { ek_id: ek(3), ..with(5, 7, now()) }, "unconfirmed"),
        ];
        for (facts, _) in &waiting {
            add(&mut store, facts).unwrap();
        }
        let new = with(0, serials, later);
        let confirm_by = new.confirm_by.filter(|_| is_confirmed);
        add(&mut store, &CertificateFacts { confirm_by, ..new }).unwrap();
        assert!(!is_confirmed || confirm(&mut store, serials, later));
        let rows = store.certificates().unwrap();
        let listed = store.revoked(later).unwrap().never_in_force;
        for (facts, due) in waiting {
            let row = rows.iter().find(|row| row.serial == facts.serial).unwrap();
            assert_eq!(row.status, due, "{:?}", facts.serial);
            let is_listed = listed.iter().any(|revoked| revoked.serial == facts.serial);
            assert_eq!(is_listed, due == "revoked", "{:?}", facts.serial);
        }
    }
}

fn of_two_renewals_at_once_one_is_recorded(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    let [first, second] = [2, 3].map(|serial| {
        let ik_id = certificate(1, "pump-1", ek(1)).ik_id;
        let renewed = CertificateFacts { ik_id, ..certificate(serial, "pump-1", ek(1)) };
        plan_to_renew(&mut store, &renewed)
    });
    let recorded = store.record(&scope(), &[first, second]).unwrap();
    assert_eq!(recorded, [Recorded::Done, Recorded::Stale]);
    assert_eq!(status(&mut store, 3), CertificateStatus::Unknown);
}

fn certificate_to_confirm_is_found_until_its_time_is_over(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &sealed(1, "pump-1", ek(1))).unwrap();
    let expected = waiting(&mut store, ek(1), 1).remove(0);
    let known = store.snapshot(&Question::about(ek(1), &id("pump-1"), now())).unwrap().records;
    let mut found = |ek: EkId, at| store.sealed_certificate(&ek, &sha256(&[1]), at).unwrap();
    let unconfirmed = SealedOnRecord::waiting(expected, known);
    assert_eq!(found(ek(1), now()), unconfirmed);
    assert_eq!(found(ek(2), now()), SealedOnRecord::Ended);
    assert_eq!(found(ek(1), now() + Duration::minutes(10)), SealedOnRecord::Ended);
}

fn of_two_eks_racing_for_a_device_id_one_wins(fixture: &Fixture) {
    for round in 0..20 {
        let device = format!("pump-{round}");
        let device = &device;
        let begin = &std::sync::Barrier::new(2);
        let won = thread::scope(|scope| {
            let race = |n: u8| {
                scope.spawn(move || {
                    let mut store = fixture.store();
                    let certificate = certificate(2 * round + n, device, ek(2 * round + n));
                    let entry = plan(&mut *store, &certificate).unwrap();
                    begin.wait();
                    record(&mut *store, entry).unwrap() == Recorded::Done
                })
            };
            [race(0), race(1)].map(|racer| racer.join().unwrap())
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "round {round}");
    }
    let devices = fixture.store().devices().unwrap();
    assert_eq!(devices.len(), 20);
    assert!(devices.iter().all(|device| device.serial.is_some()));
}

fn scope_is_the_devices_once_there_are_any(fixture: &Fixture) {
    let mut store = fixture.store();
    let [a, b] = ["plant-a", "plant-b"].map(|scope| scope.parse::<Scope>().unwrap());
    let serves = |store: &mut Any, scope| store.record(scope, &[]).is_ok();
    store.record_scope(&a).unwrap();
    let parent = tempfile::tempdir().unwrap();
    Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
    let [check] =
        Directory::open(&parent.path().join("ca")).unwrap().throw_away_devices([now()]).unwrap();
    store.add_throw_away(&check.id, &check.credentials.chain[0], now()).unwrap();
    store.may_serve(&b).unwrap();
    store.record_scope(&b).unwrap();
    assert!(!serves(&mut store, &a) && serves(&mut store, &b), "who began to serve before notices");
    let entry = plan(&mut *store, &certificate(1, "pump-17", ek(1))).unwrap();
    assert_eq!(store.record(&b, &[entry]).unwrap(), [Recorded::Done]);
    assert!(matches!(store.may_serve(&a), Err(StoreError::Scope { .. })));
    assert!(matches!(store.record_scope(&a), Err(StoreError::Scope { was, .. }) if was == b));
    store.record_scope(&b).unwrap();
}

fn an_offer_without_the_vendors_certificate_does_not_make_it_unseen(fixture: &Fixture) {
    let mut store = fixture.store();
    for (assurance, expected) in [
        (Assurance::EnrolmentList, Assurance::EnrolmentList),
        (Assurance::VendorCertificate, Assurance::VendorCertificate),
        (Assurance::EnrolmentList, Assurance::VendorCertificate),
    ] {
        let parent = ParentKind::Import;
        let offer = unchecked::offered_key(ek(1), id("pump-1"), assurance, 1, parent);
        enter(&mut store, Act::Offer(offer)).unwrap();
        assert_eq!(store.shared_key_holders(&id("pump-1")).unwrap()[0].assurance, expected);
    }
}

fn key_that_was_never_offered_is_never_used(fixture: &Fixture) {
    let mut store = fixture.store();
    assert!(matches!(accept(&mut store, ek(1), "pump-1", 1), Err(StoreError::Inconsistent(_))));
    assert!(store.devices().unwrap().is_empty());
}

fn pruning_is_done_bit_by_bit(fixture: &Fixture) {
    let mut store = fixture.store();
    let entries: Vec<_> = (0..=501_u32)
        .map(|n| {
            let mut next = certificate(1, "pump-17", ek(1));
            next.serial[..4].copy_from_slice(&n.to_be_bytes());
            Entry { act: act(&next, vec![1]), basis: None, audit: None }
        })
        .collect();
    let recorded = store.record(&scope(), &entries).unwrap();
    assert!(recorded.iter().all(|recorded| *recorded == Recorded::Done));
    let at = now() + Duration::days(121);
    let mut prune = || store.prune(&Retention::default(), at).unwrap();
    let first = prune();
    assert_eq!((first.certificates, first.more), (500, true));
    let second = prune();
    assert_eq!((second.certificates, second.more), (1, false));
    assert_eq!(prune(), Pruned::default());
}

fn retention_says_how_long_certificates_that_were_in_force_are_kept(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    let at = now() + Duration::days(90) + Duration::days(7);
    let week = |days| Retention::default().with_ended(days).unwrap();
    assert_eq!(store.prune(&week(8), at).unwrap().certificates, 0);
    assert_eq!(store.prune(&week(7), at).unwrap().certificates, 1);
}

fn offer_that_nobody_used_is_forgotten_unless_something_must_be_remembered(fixture: &Fixture) {
    let mut store = fixture.store();
    offer(&mut store, ek(1), "pump-1", 1);
    offer(&mut store, ek(2), "pump-2", 1);
    accept(&mut store, ek(2), "pump-2", 1).unwrap();
    offer(&mut store, ek(3), "pump-3", 1);
    store.retire_shared_key(&ek(3)).unwrap();
    offer_to(&mut store, ParentKind::PlainSrk, ek(4), "pump-4", 1);
    let mut forgotten = |days| {
        let at = now() + Duration::days(days);
        store.prune(&Retention::default(), at).unwrap().offers
    };
    assert_eq!((forgotten(29), forgotten(30)), (0, 1));
    let known = [1, 2, 3, 4].map(|n| shared_key(&mut store, ek(n)).is_some());
    assert_eq!(known, [false, true, true, true]);
}

fn offer_that_is_made_again_waits_as_long_again(fixture: &Fixture) {
    let mut store = fixture.store();
    offer(&mut store, ek(1), "pump-1", 1);
    let later = now() + Duration::days(20);
    offer_at(&mut store, ParentKind::Import, (ek(1), "pump-1", 1), later);
    let at = now() + Duration::days(31);
    assert_eq!(store.prune(&Retention::default(), at).unwrap().offers, 0);
}

fn the_audit_forgets_the_oldest_beyond_its_limit(fixture: &Fixture) {
    let mut store = fixture.store();
    let retention = Retention::default().with_audit(1_000).unwrap();
    let certified =
        |n| AuditEntry { change: Change::Made, ..decision(n, Some(Whom::Proven(id("pump-17")))) };
    audit(&mut store, (0..1_003).map(certified));
    audit(&mut store, (0..7_000).map(|n| decision(n, Some(Whom::Due(id("pump-19"))))));
    tell_all(&mut store);
    let first = store.prune(&retention, now()).unwrap();
    assert_eq!((first.audit, first.more), (3 + 5_000, true));
    assert_eq!(store.prune(&retention, now()).unwrap().audit, 1_000);
    let rows = store.audit(u32::MAX).unwrap();
    let durations = |proven: bool| {
        let rows = rows.iter().filter(move |row| row.proven.is_some() == proven);
        rows.map(|row| row.duration_us)
    };
    assert!(durations(true).eq(3..1_003), "the newest stay, in order");
    assert!(durations(false).eq(6_000..7_000));
}

/// One host can cause 100,000 refusals in 18 s, and a client that has one ticket can repeat it for
/// 300 s.
fn endless_requests_push_out_no_decision_that_changed_what_a_device_has(fixture: &Fixture) {
    let mut store = fixture.store();
    let retention = Retention::default().with_audit(1_000).unwrap();
    let certified =
        AuditEntry { change: Change::Made, ..decision(1, Some(Whom::Proven(id("pump-17")))) };
    let repeated = decision(2, Some(Whom::Proven(id("pump-18"))));
    let others = (0..1_000).map(|n| decision(n, Some(Whom::Due(id("pump-19")))));
    audit(&mut store, [certified, repeated].into_iter().chain(others));
    store.prune(&retention, now()).unwrap();
    let rows = store.audit(u32::MAX).unwrap();
    assert!(rows.iter().filter_map(|row| row.proven.as_deref()).eq(["pump-17"]));
    assert_eq!(rows.iter().filter(|row| row.due.as_deref() == Some("pump-19")).count(), 1_000);
}

fn revocation_is_heard_of_within_a_second(fixture: &Fixture) {
    let mut store = fixture.store();
    let seen = store.changes().unwrap();
    let revoked = thread::scope(|scope| {
        let revoke = scope.spawn(|| {
            let mut other = fixture.store();
            thread::sleep(StdDuration::from_millis(300));
            other.set_disabled(&ek(1), true, now()).unwrap();
            Instant::now()
        });
        let changes = store.wait_for_changes(seen, StdDuration::from_secs(30)).unwrap();
        assert!(changes.connections > seen.connections && changes.list > seen.list);
        let heard = Instant::now();
        (revoke.join().unwrap(), heard)
    });
    let (committed, heard) = revoked;
    assert!(heard.saturating_duration_since(committed) < StdDuration::from_secs(1));
}

fn a_client_that_waits_for_changes_waits_no_longer_than_asked(fixture: &Fixture) {
    let mut store = fixture.store();
    let (seen, started) = (store.changes().unwrap(), Instant::now());
    let wanted = StdDuration::from_millis(700);
    assert_eq!(store.wait_for_changes(seen, wanted).unwrap(), seen);
    assert!((wanted..4 * wanted).contains(&started.elapsed()));
}

fn database_is_found_writable(fixture: &Fixture) {
    let mut store = fixture.store();
    let before = store.changes().unwrap();
    store.check_writable().unwrap();
    store.checkpoint().unwrap();
    assert_eq!(store.changes().unwrap(), before);
    assert_eq!(store.next_revocation_list().unwrap(), 1, "no number is lost");
}

fn enroll(store: &mut Any, ek_id: EkId, device_id: Option<&str>) -> Result<Enrolled, EnrolError> {
    store.enroll(&[enrolment(ek_id, device_id)]).unwrap().remove(0)
}

/// The status of a certificate that its own device shows.
fn status(store: &mut Any, serial: u8) -> CertificateStatus {
    let issued =
        store.certificates().unwrap().into_iter().find(|issued| issued.serial == [serial; 16]);
    let device = issued.map_or_else(|| id("pump-17"), |issued| issued.device_id);
    store.certificate_status(&device, &[serial; 16], &sha256(&[serial])).unwrap()
}

/// Prunes until there is nothing left to do.
fn prune(store: &mut Any, at: OffsetDateTime) {
    while store.prune(&Retention::default(), at).unwrap().more {}
}

/// What a revocation list would name.
fn revoked(store: &mut Any) -> Vec<(u8, RevocationReason)> {
    let RevokedCertificates { once_in_force, never_in_force } = store.revoked(now()).unwrap();
    once_in_force
        .into_iter()
        .chain(never_in_force)
        .map(|revoked| (revoked.serial[0], revoked.reason))
        .collect()
}
