//! The register of reasons: each is in the protocol, and a test makes it.

use casebook::{Reason, pb};

/// The test that produces each reason through the client.
const PRODUCED: &[(Reason, &str)] = &[
    (Reason::FieldInvalid, "errors::each_wrong_field_is_refused_by_name_and_reason"),
    (Reason::NulByte, "errors::a_nul_byte_is_refused_wherever_text_stands"),
    (Reason::JsonTooLarge, "errors::each_wrong_field_is_refused_by_name_and_reason"),
    (Reason::NumberNotExact, "errors::each_wrong_field_is_refused_by_name_and_reason"),
    (Reason::FilterInvalid, "errors::filters_and_orders_that_make_no_sense_say_where"),
    (Reason::UnknownField, "decision::masks_name_only_what_can_change"),
    (Reason::FieldImmutable, "decision::masks_name_only_what_can_change"),
    (Reason::PageTokenMismatch, "errors::page_tokens_are_held_to_tenant_request_time_and_key"),
    (Reason::BadRevision, "errors::revisions_are_of_this_tenant_and_not_of_the_future"),
    (Reason::RevisionExpired, "audit_archive::what_is_archived_is_read_truthfully"),
    (Reason::RequestIdReused, "decision::a_repeated_request_gives_the_first_answer"),
    (Reason::DuplicateInBatch, "batch::batches_hold_1_to_1000_different_items"),
    (Reason::Exists, "decision::every_field_of_a_decision_comes_back_as_given"),
    (Reason::ExistsDifferent, "write::an_id_that_is_taken_is_settled_as_the_caller_asks"),
    (Reason::NotFound, "decision::every_field_of_a_decision_comes_back_as_given"),
    (Reason::EtagMismatch, "decision::a_stale_etag_is_refused_with_the_current_one"),
    (Reason::PreconditionFailed, "write::preconditions_hold_when_the_write_commits"),
    (
        Reason::RetentionFloor,
        "audit_archive::what_cannot_be_archived_is_refused_and_nothing_happens",
    ),
    (Reason::InUse, "model_checkpoint::one_of_a_model_is_active"),
    (Reason::ReadOnly, "tenant::a_tenants_state_takes_effect_at_once"),
    (Reason::TokenMissing, "tenant::a_credential_that_is_not_valid_is_refused_with_one_text"),
    (Reason::TokenInvalid, "tenant::a_credential_that_is_not_valid_is_refused_with_one_text"),
    (Reason::RoleMissing, "tenant::each_role_opens_the_methods_that_it_should_and_no_others"),
    (Reason::TenantMismatch, "tenant::only_the_system_names_other_tenants"),
    (Reason::MessageTooLarge, "errors::a_message_over_the_limit_is_refused_before_it_is_read"),
    (
        Reason::ReferenceMissing,
        "precedent::a_precedents_decision_must_exist_only_where_the_tenant_says_so",
    ),
    (Reason::SearchInvalid, "search::a_search_for_nothing_is_refused_and_any_text_is_not"),
    (Reason::Internal, "errors::a_fault_of_ours_is_masked_and_has_an_incident_id"),
    (Reason::DeadlineExceeded, "errors::a_call_that_takes_too_long_says_so_and_writes_nothing"),
    (
        Reason::NotConfigured,
        "audit_archive::what_cannot_be_archived_is_refused_and_nothing_happens",
    ),
    (Reason::Unimplemented, "errors::a_method_that_is_not_there_is_unimplemented"),
    (Reason::DimensionMismatch, "embedding::a_vector_that_is_none_of_the_spaces_is_refused"),
    (Reason::VectorInvalid, "embedding::a_vector_that_is_none_of_the_spaces_is_refused"),
    (Reason::ZeroVector, "embedding::a_vector_that_is_none_of_the_spaces_is_refused"),
    (Reason::ModelMismatch, "embedding::a_vector_that_is_none_of_the_spaces_is_refused"),
    (Reason::NotIndexable, "vector_index::an_index_that_cannot_be_is_refused"),
    (Reason::OperationActive, "upkeep::an_index_is_built_anew_under_load"),
    (Reason::VectorDamaged, "sync::what_is_lost_comes_back_and_what_is_damaged_is_sent_anew"),
    (
        Reason::HeaderRequired,
        "blob_bad::an_upload_that_is_not_what_it_says_is_refused_and_leaves_nothing",
    ),
    (
        Reason::DigestMismatch,
        "blob_bad::an_upload_that_is_not_what_it_says_is_refused_and_leaves_nothing",
    ),
    (
        Reason::SizeMismatch,
        "blob_bad::an_upload_that_is_not_what_it_says_is_refused_and_leaves_nothing",
    ),
    (
        Reason::BlobTooLarge,
        "blob_bad::an_upload_that_is_not_what_it_says_is_refused_and_leaves_nothing",
    ),
    (Reason::WrongOffset, "blob_suite::ranges_are_the_bytes_they_name"),
    (Reason::BlobCorrupt, "blob_store::damaged_bytes_are_told_marked_and_healed_by_the_right_ones"),
    (Reason::Referenced, "blob_store::a_blob_that_something_refers_to_stays"),
    (Reason::UploadExpired, "blob_session::an_upload_that_expires_says_so_and_its_bytes_go"),
    (
        Reason::UploadIncomplete,
        "blob_session::what_does_not_fit_an_upload_is_refused_and_the_rest_stays",
    ),
    (
        Reason::ChecksumMismatch,
        "blob_session::what_does_not_fit_an_upload_is_refused_and_the_rest_stays",
    ),
    (Reason::UploadCompleted, "blob_session::uploads_go_on"),
    (Reason::TooManyUploads, "blob_session::uploads_that_cannot_be_are_not_begun"),
    (Reason::NotSignable, "blob_url::a_store_without_signatures_and_what_makes_no_url_are_refused"),
    (Reason::BlobEncrypted, "blob_s3_url::what_is_encrypted_has_no_url"),
    (Reason::OnHold, "legal_hold::what_is_held_stays_until_it_is_released"),
];

/// Those that need a fault, which fault.rs makes.
const IN_FAULT: &[Reason] = &[
    Reason::SchemaOutdated,
    Reason::PoolTimeout,
    Reason::Overloaded,
    Reason::SerializationFailure,
    Reason::BackendUnavailable,
    Reason::CommitUnknown,
    Reason::ShuttingDown,
];

#[test]
fn every_reason_is_in_the_protocol_and_made_by_a_test() {
    let in_protocol: Vec<_> = (1..=i32::from(u8::MAX))
        .filter_map(|number| pb::ErrorReason::try_from(number).ok())
        .map(|reason| reason.as_str_name().strip_prefix("ERROR_REASON_").unwrap())
        .collect();
    let mut ours: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let mut theirs = in_protocol.clone();
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs);

    let sources = [
        ("audit_archive", include_str!("audit_archive.rs")),
        ("batch", include_str!("batch.rs")),
        ("blob_bad", include_str!("blob/bad.rs")),
        ("blob_s3_url", include_str!("blob/s3/url.rs")),
        ("blob_session", include_str!("blob/session.rs")),
        ("blob_url", include_str!("blob/url.rs")),
        ("blob_store", include_str!("blob/store.rs")),
        ("blob_suite", include_str!("blob/suite.rs")),
        ("claim", include_str!("claim.rs")),
        ("decision", include_str!("decision.rs")),
        ("errors", include_str!("errors.rs")),
        ("legal_hold", include_str!("legal_hold.rs")),
        ("precedent", include_str!("precedent.rs")),
        ("search", include_str!("search.rs")),
        ("sync", include_str!("sync.rs")),
        ("model_checkpoint", include_str!("model_checkpoint.rs")),
        ("tenant", include_str!("tenant.rs")),
        ("write", include_str!("write.rs")),
        ("embedding", include_str!("embedding.rs")),
        ("vector_index", include_str!("vector_index.rs")),
        ("upkeep", include_str!("vector_index/upkeep.rs")),
    ];
    for reason in Reason::ALL {
        let produced = PRODUCED.iter().find(|(made, _)| made == reason);
        let Some((_, test)) = produced else {
            assert!(IN_FAULT.contains(reason), "no test makes {}", reason.as_str());
            continue;
        };
        let (file, name) = test.split_once("::").unwrap();
        let (_, source) = sources.iter().find(|(found, _)| *found == file).unwrap();
        let (_, body) = source.split_once(&format!("async fn {name}(")).expect(test);
        let body = body.split("#[tokio::test]").next().unwrap();
        assert!(body.contains(&format!("\"{}\"", reason.as_str())), "{test}: {}", reason.as_str());
    }
}
