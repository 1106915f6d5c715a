//! Tests of statuses: every error has its form, and no input makes it too large.

use super::*;
use crate::pb;
use proptest::prelude::*;
use std::io;
use tonic_types::ErrorDetail;

fn status(error: Error) -> (Status, ErrorDetails) {
    let reason = error.reason();
    let status = Status::from(error);
    let details = status.check_error_details().unwrap();
    let infos = status
        .get_error_details_vec()
        .iter()
        .filter(|detail| matches!(detail, ErrorDetail::ErrorInfo(_)))
        .count();
    assert_eq!(infos, 1);
    let info = details.error_info().unwrap();
    assert_eq!((info.domain.as_str(), info.reason.as_str()), ("casebook", reason.as_str()));
    (status, details)
}

fn cause() -> crate::error::Cause {
    std::sync::Arc::new(io::Error::other("password=hunter2"))
}

#[test]
fn every_error_has_its_code() {
    let reason = Reason::ReadOnly;
    let table = [
        (Error::invalid("a", "is bad"), Code::InvalidArgument),
        (Error::not_found("decision", "d1"), Code::NotFound),
        (Error::Taken { kind: "decision", id: "d1".into(), fields: vec![] }, Code::AlreadyExists),
        (Error::Occupied { kind: "model", fields: &["name", "version"] }, Code::AlreadyExists),
        (
            Error::Stale { kind: "decision", id: "d".into(), current_etag: "\"1\"".into() },
            Code::Aborted,
        ),
        (
            Error::Refused { reason, message: "no".into(), metadata: vec![] },
            Code::FailedPrecondition,
        ),
        (
            Error::Unauthenticated { reason: Reason::TokenMissing, message: "no" },
            Code::Unauthenticated,
        ),
        (
            Error::Forbidden { reason: Reason::RoleMissing, message: "no".into() },
            Code::PermissionDenied,
        ),
        (
            Error::Exhausted {
                reason: Reason::Overloaded,
                message: "no".into(),
                retry_after: None,
            },
            Code::ResourceExhausted,
        ),
        (Error::Conflict(cause()), Code::Aborted),
        (Error::unavailable(cause()), Code::Unavailable),
        (Error::ShuttingDown, Code::Unavailable),
        (Error::CommitUnknown(cause()), Code::Unknown),
        (Error::DeadlineExceeded(""), Code::DeadlineExceeded),
        (Error::internal(cause()), Code::Internal),
    ];
    for (error, code) in table {
        let text = format!("{error:?}");
        let (status, _) = status(error);
        assert_eq!(status.code(), code, "{text}");
        assert!(!status.message().contains("hunter2"), "{status:?}");
    }
}

#[test]
fn a_fault_is_masked_and_has_an_incident() {
    let (status, details) = status(Error::internal(cause()));
    let id = &details.error_info().unwrap().metadata["incident_id"];
    assert_eq!(status.message(), format!("internal error, incident {id}"));
    assert!(!String::from_utf8_lossy(status.details()).contains("hunter2"));
}

#[test]
fn details_say_what_a_program_needs() {
    let (_, details) = status(Error::invalid("decision.id", "is missing"));
    let violation = &details.bad_request().unwrap().field_violations[0];
    assert_eq!(
        (violation.field.as_str(), violation.description.as_str()),
        ("decision.id", "is missing")
    );

    let (_, details) = status(Error::not_found("decision", "d1"));
    let resource = details.resource_info().unwrap();
    assert_eq!(
        (resource.resource_type.as_str(), resource.resource_name.as_str()),
        ("decision", "d1")
    );

    let fields = vec!["rationale".to_owned(), "labels".to_owned()];
    let (_, details) = status(Error::Taken { kind: "decision", id: "d1".into(), fields });
    assert_eq!(details.error_info().unwrap().metadata["fields"], "rationale,labels");

    let (_, details) = status(Error::Occupied { kind: "model", fields: &["name", "version"] });
    let info = details.error_info().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.metadata["fields"].as_str()),
        ("EXISTS", "name,version")
    );
    assert_eq!(details.resource_info().unwrap().resource_type, "model");

    let stale = Error::Stale { kind: "decision", id: "d1".into(), current_etag: "\"a-2\"".into() };
    let (_, details) = status(stale);
    assert_eq!(details.error_info().unwrap().metadata["current_etag"], "\"a-2\"");
    assert!(details.resource_info().is_some());

    let metadata = vec![("index", "3".to_owned())];
    let reason = Reason::PreconditionFailed;
    let (_, details) = status(Error::Refused { reason, message: "no".into(), metadata });
    assert_eq!(details.error_info().unwrap().metadata["index"], "3");
    assert_eq!(details.precondition_failure().unwrap().violations[0].r#type, "PRECONDITION_FAILED");

    let retry_after = Some(Duration::from_millis(1500));
    let exhausted =
        Error::Exhausted { reason: Reason::PoolTimeout, message: "no".into(), retry_after };
    let (status_, details) = status(exhausted);
    assert_eq!(details.retry_info().unwrap().retry_delay, retry_after);
    assert_eq!(status_.metadata().get(PUSHBACK).unwrap(), "1500");

    let (_, details) = status(Error::unavailable(cause()));
    assert_eq!(details.error_info().unwrap().metadata["backend"], "postgres");
    assert!(details.retry_info().is_some());
    let (_, details) = status(Error::Conflict(cause()));
    assert!(details.retry_info().is_some());
}

#[test]
fn many_violations_are_counted() {
    let violations = (0..1000)
        .map(|i| Violation { field: format!("requests[{i}].id"), description: "is missing".into() })
        .collect();
    let (_, details) = status(Error::Invalid { reason: Reason::FieldInvalid, violations });
    assert_eq!(details.bad_request().unwrap().field_violations.len(), VIOLATIONS_MAX);
    assert_eq!(details.error_info().unwrap().metadata["violations_omitted"], "980");
}

#[test]
fn reasons_are_the_protocol_s() {
    for reason in Reason::ALL {
        let name = format!("ERROR_REASON_{}", reason.as_str());
        assert!(pb::ErrorReason::from_str_name(&name).is_some(), "{name}");
    }
}

fn wild() -> impl Strategy<Value = String> {
    ("[a-zé漢\u{1F600}\n%]{0,40}", 1..400_usize).prop_map(|(text, times)| text.repeat(times))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_input_makes_a_status_too_large(
        a in wild(), b in wild(), texts in prop::collection::vec((wild(), wild()), 0..40)
    ) {
        let violations: Vec<_> = texts
            .iter()
            .map(|(field, description)| Violation { field: field.clone(), description: description.clone() })
            .collect();
        let metadata = texts.iter().map(|(_, value)| ("key", value.clone())).chain(
            ["a", "b", "c", "d", "e", "f", "g", "h", "i"].map(|key| (key, a.clone()))
        ).collect();
        let fields = texts.into_iter().map(|(field, _)| field).collect();
        let errors = [
            Error::Invalid { reason: Reason::FieldInvalid, violations },
            Error::not_found("decision", a.clone()),
            Error::Taken { kind: "decision", id: a.clone(), fields },
            Error::Stale { kind: "decision", id: a.clone(), current_etag: b.clone() },
            Error::Refused { reason: Reason::ReadOnly, message: b.clone(), metadata },
            Error::Forbidden { reason: Reason::RoleMissing, message: b.clone() },
            Error::Exhausted { reason: Reason::Overloaded, message: b, retry_after: Some(Duration::MAX) },
            Error::internal(a.clone()),
        ];
        for error in errors {
            let (status, _) = status(error);
            prop_assert!(status.message().len() <= MESSAGE_BYTES_MAX);
            prop_assert!(status.details().len() <= DETAILS_BYTES_MAX, "{}", status.details().len());
        }
        let status = unimplemented(&a);
        prop_assert!(status.details().len() <= DETAILS_BYTES_MAX);
    }
}

fn completing(code: Code, message: &str) -> (Status, ErrorDetails) {
    let mut headers = Status::new(code, message).into_http::<()>().into_parts().0.headers;
    complete(&mut headers);
    let status = Status::from_header_map(&headers).unwrap();
    let details = status.check_error_details().unwrap();
    (status, details)
}

#[test]
fn bare_statuses_are_completed() {
    let size = "Error, decoded message length too large: found 9 bytes, the limit is: 4 bytes";
    let malformed = "failed to decode Protobuf message: invalid tag value: 0";
    let gone = "h2 protocol error: error reading a body from connection";
    let table = [
        (Code::Unknown, gone, Code::Cancelled, Reason::DeadlineExceeded),
        (Code::Internal, gone, Code::Cancelled, Reason::DeadlineExceeded),
        (Code::OutOfRange, size, Code::ResourceExhausted, Reason::MessageTooLarge),
        (Code::Internal, malformed, Code::InvalidArgument, Reason::FieldInvalid),
        (Code::Internal, "Missing request message.", Code::InvalidArgument, Reason::FieldInvalid),
        (Code::Internal, "a bug at secret.rs", Code::Internal, Reason::Internal),
        (Code::Unknown, "a bug at secret.rs", Code::Internal, Reason::Internal),
        (Code::Unimplemented, "", Code::Unimplemented, Reason::Unimplemented),
        (Code::NotFound, "symbol", Code::NotFound, Reason::NotFound),
    ];
    for (code, message, expected, reason) in table {
        let (status, details) = completing(code, message);
        assert_eq!(status.code(), expected, "{message}");
        assert_eq!(details.error_info().unwrap().reason, reason.as_str(), "{message}");
        assert!(!status.message().contains("secret.rs"));
        assert!(!status.message().is_empty());
    }
}

#[test]
fn whole_statuses_and_successes_stay() {
    let mut headers =
        Status::from(Error::invalid("a", "is bad")).into_http::<()>().into_parts().0.headers;
    let before = headers.clone();
    complete(&mut headers);
    assert_eq!(headers, before);
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", HeaderValue::from_static("0"));
    let before = headers.clone();
    complete(&mut headers);
    assert_eq!(headers, before);
    assert_eq!(code_of(&headers), Some(Code::Ok));
    assert_eq!(code_of(&HeaderMap::new()), None);
}

#[test]
fn text_is_cut_between_characters() {
    assert_eq!(shortened("aé", 2), "a");
    assert_eq!(shortened("aé", 3), "aé");
    assert_eq!(shortened("", 0), "");
    assert_eq!(shortened("漢字", 4), "漢");
}
