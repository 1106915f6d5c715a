//! The nouns that are transferred, in an order in which what is referred to comes first. A noun is one line; the rest
//! is found in the protocol's descriptors.

use super::message::pool;
use super::wire::Method;
use super::{Result, TransferError};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::Value as Json;

/// What a create can do where the id is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// FAIL, RETURN_IF_EQUAL and REPLACE.
    Any,
    /// Its content never changes: FAIL and RETURN_IF_EQUAL.
    Fixed,
    /// Only FAIL says what this import needs, so the importer looks before it writes.
    Look,
}

/// What must be called after a create to bring back a field that no create sets.
#[derive(Clone, Copy, Debug)]
pub struct After {
    /// Done where this field of the resource is set; where it is a list, once for each of its values.
    pub field: &'static str,
    pub method: &'static str,
    /// Fields of the resource, and of the request that take them.
    pub copy: &'static [(&'static str, &'static str)],
}

pub struct Noun {
    /// Also the name of its message's table, and of its ResourceKind.
    pub kind: &'static str,
    service: &'static str,
    list: &'static str,
    create: &'static str,
    /// A field of the resource that the create request has beside it.
    pub parent: Option<&'static str>,
    /// The kind of what it must be listed by, one after another, where it cannot be listed as a whole.
    pub listed_by: Option<&'static str>,
    /// The fields that are asked for; none for those that come anyway.
    pub mask: &'static [&'static str],
    pub taken: Taken,
    /// Lines with the same value here go one after the other, because the server numbers or chains them.
    pub chain: Option<&'static str>,
    /// The field that names the one of its kind in whose place it stands. Writing it again means replacing that one.
    pub supersedes: Option<&'static str>,
    /// The order of the file.
    pub order: &'static str,
    /// Fields beside `meta` and `etag` that only the server sets.
    pub owned: &'static [&'static str],
    pub after: Option<After>,
}

use Taken::{Any, Fixed, Look};

const fn noun(
    kind: &'static str,
    [service, list, create]: [&'static str; 3],
    taken: Taken,
    owned: &'static [&'static str],
) -> Noun {
    Noun {
        kind,
        service,
        list,
        create,
        parent: None,
        listed_by: None,
        mask: &[],
        taken,
        chain: None,
        supersedes: None,
        order: "create_time",
        owned,
        after: None,
    }
}

pub const NOUNS: &[Noun] = &[
    noun("policy_rule", ["PolicyService", "ListPolicyRules", "CreatePolicyRule"], Any, &[]),
    noun(
        "document",
        ["DocumentService", "ListDocuments", "BatchCreateDocuments"],
        Any,
        &["total_chunks"],
    ),
    Noun {
        chain: Some("document_id"),
        order: "document_id, analysis_version",
        ..noun("analysis", ["DocumentService", "ListAnalyses", "CreateAnalysis"], Fixed, &[])
    },
    Noun {
        parent: Some("document_id"),
        order: "document_id, chunk_index",
        ..noun("chunk", ["DocumentService", "ListChunks", "BatchCreateChunks"], Any, &[])
    },
    noun("claim", ["ClaimService", "ListClaims", "BatchCreateClaims"], Any, &[]),
    noun(
        "verification",
        ["ClaimService", "ListVerifications", "BatchCreateVerifications"],
        Fixed,
        &[],
    ),
    noun(
        "decision",
        ["DecisionService", "ListDecisions", "BatchCreateDecisions"],
        Fixed,
        &["state", "case_hash"],
    ),
    Noun {
        parent: Some("decision_id"),
        ..noun(
            "critic_output",
            ["DecisionService", "ListCriticOutputs", "AddCriticOutputs"],
            Look,
            &[],
        )
    },
    Noun {
        parent: Some("decision_id"),
        chain: Some("decision_id"),
        ..noun("override", ["DecisionService", "ListOverrides", "CreateOverride"], Look, &[])
    },
    Noun {
        chain: Some("claim_id"),
        supersedes: Some("supersedes_id"),
        ..noun(
            "consensus",
            ["ClaimService", "ListConsensuses", "CreateConsensus"],
            Look,
            &["current", "supersedes_id", "superseded_by_id"],
        )
    },
    noun(
        "evidence_bundle",
        ["EvidenceService", "ListEvidenceBundles", "CreateEvidenceBundle"],
        Fixed,
        &["object_key", "size_bytes"],
    ),
    noun(
        "precedent",
        ["PrecedentService", "ListPrecedents", "BatchCreatePrecedents"],
        Any,
        &["case_hash"],
    ),
    noun(
        "precedent_reference",
        ["PrecedentService", "ListPrecedentReferences", "LinkPrecedents"],
        Fixed,
        &[],
    ),
    Noun {
        after: Some(After {
            field: "active",
            method: "ActivateModelCheckpoint",
            copy: &[("id", "model_checkpoint_id")],
        }),
        ..noun(
            "model_checkpoint",
            ["ModelService", "ListModelCheckpoints", "CreateModelCheckpoint"],
            Fixed,
            &["active"],
        )
    },
    Noun {
        after: Some(After {
            field: "aliases",
            method: "SetVectorSpaceAlias",
            copy: &[("aliases", "alias"), ("id", "vector_space_id")],
        }),
        ..noun(
            "vector_space",
            ["VectorSpaceService", "ListVectorSpaces", "CreateVectorSpace"],
            Fixed,
            &["aliases"],
        )
    },
    Noun {
        parent: Some("vector_space_id"),
        listed_by: Some("vector_space"),
        mask: &["*"],
        ..noun(
            "embedding",
            ["VectorService", "ListEmbeddings", "BatchUpsertEmbeddings"],
            Any,
            &["dimensions", "vector_digest"],
        )
    },
    noun(
        "training_example",
        ["ModelService", "ListTrainingExamples", "BatchCreateTrainingExamples"],
        Fixed,
        &["used_in_training", "training_batch_id"],
    ),
    noun(
        "metrics_snapshot",
        ["TelemetryService", "ListMetricsSnapshots", "RecordMetricsSnapshot"],
        Fixed,
        &[],
    ),
    noun(
        "retention_policy",
        ["RetentionService", "ListRetentionPolicies", "CreateRetentionPolicy"],
        Fixed,
        &[],
    ),
    Noun {
        after: Some(After {
            field: "release_time",
            method: "ReleaseLegalHold",
            copy: &[("id", "legal_hold_id"), ("release_reason", "reason")],
        }),
        ..noun(
            "legal_hold",
            ["RetentionService", "ListLegalHolds", "CreateLegalHold"],
            Fixed,
            &["release_time", "released_by", "release_reason"],
        )
    },
];

/// Kinds of the protocol that are not transferred, and why.
pub const LEFT_OUT: &[(&str, &str)] = &[
    (
        "service_health",
        "it tells who is alive now, and a heartbeat that is repeated later would be a lie",
    ),
    ("operation", "it is work of the server that it was begun on"),
    ("blob", "its bytes are in a store of this deployment"),
    ("attachment", "its blob is not transferred"),
    ("object", "it stands for blobs of this deployment"),
    ("object_version", "it stands for a blob of this deployment"),
    ("search_receipt", "the revision that it was made at is one of this deployment"),
    ("tenant", "it belongs to the tenant \"system\""),
    ("api_token", "its secret cannot be read, and a credential should not be in a file"),
];

/// The kinds that are transferred.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    NOUNS.iter().map(|noun| noun.kind)
}

/// Those that are not, and why.
pub fn left_out() -> &'static [(&'static str, &'static str)] {
    LEFT_OUT
}

/// How a create request holds what it creates.
#[derive(Clone, Debug)]
pub enum Form {
    /// `requests`, each as of a call of its own, with the resource in `item`.
    Requests { requests: FieldDescriptor, item: FieldDescriptor },
    /// The resources themselves.
    Items { items: FieldDescriptor },
    /// One resource.
    One { item: FieldDescriptor },
}

/// A noun with what the protocol says about it.
pub struct Shape {
    pub noun: &'static Noun,
    pub resource: MessageDescriptor,
    pub list: Method,
    /// The resources in the answer of `list`.
    pub listed: FieldDescriptor,
    pub create: Method,
    pub form: Form,
    /// The created in the answer of `create`, if it has them.
    pub created: Option<FieldDescriptor>,
    pub after: Option<Method>,
}

impl Shape {
    pub fn of(noun: &'static Noun) -> Result<Self> {
        let wrong = |what: &str| TransferError::internal(format!("{}: {what}", noun.kind));
        let name = format!("casebook.v1.{}", camel(noun.kind));
        let resource = pool()?.get_message_by_name(&name).ok_or_else(|| wrong("no message"))?;
        let list = Method::find(noun.service, noun.list)?;
        let create = Method::find(noun.service, noun.create)?;
        let of = |message: &MessageDescriptor| holding(message, &resource);
        let listed = of(&list.output).ok_or_else(|| wrong("not in its listing"))?;
        let form = match (create.input.get_field_by_name("requests"), of(&create.input)) {
            (Some(requests), _) => {
                let item = match requests.kind() {
                    Kind::Message(request) => of(&request),
                    _ => None,
                };
                Form::Requests { item: item.ok_or_else(|| wrong("not in its request"))?, requests }
            }
            (None, Some(items)) if items.is_list() => Form::Items { items },
            (None, Some(item)) => Form::One { item },
            (None, None) => return Err(wrong("not in its request")),
        };
        let created = of(&create.output);
        let after = noun.after.map(|after| Method::find(noun.service, after.method)).transpose()?;
        Ok(Self { noun, resource, list, listed, create, form, created, after })
    }
}

impl Shape {
    /// The list request for resources of whatever parent.
    pub fn any_parent(&self) -> Json {
        self.of_parent("-")
    }

    /// The list request for the resources of one parent.
    pub fn of_parent(&self, id: &str) -> Json {
        let parents = self.list.input.fields().filter(|field| field.name().ends_with("_id"));
        let mut asked: serde_json::Map<String, Json> =
            parents.map(|field| (field.name().to_owned(), id.into())).collect();
        if !self.noun.mask.is_empty() {
            asked.insert("readMask".into(), self.noun.mask.join(",").into());
        }
        Json::Object(asked)
    }
}

/// The field of a message that holds such resources.
fn holding(message: &MessageDescriptor, resource: &MessageDescriptor) -> Option<FieldDescriptor> {
    message.fields().find(|field| matches!(field.kind(), Kind::Message(held) if held == *resource))
}

fn camel(kind: &str) -> String {
    let words = kind.split('_').filter_map(|word| {
        let mut letters = word.chars();
        Some(format!("{}{}", letters.next()?.to_ascii_uppercase(), letters.as_str()))
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_protocol_is_transferred_or_left_out_for_a_reason() {
        let kinds = pool().unwrap().get_enum_by_name("casebook.v1.ResourceKind").unwrap();
        let named = |value: prost_reflect::EnumValueDescriptor| {
            value.name().strip_prefix("RESOURCE_KIND_").unwrap().to_lowercase()
        };
        let mut known: Vec<String> = kinds.values().map(named).collect();
        known.retain(|kind| kind != "unspecified");
        known.sort();
        let out = LEFT_OUT.iter().map(|(kind, _)| *kind);
        let mut listed: Vec<String> = super::kinds().chain(out).map(str::to_owned).collect();
        listed.sort();
        assert_eq!(listed, known);
    }

    #[test]
    fn the_table_fits_the_protocol() {
        for noun in NOUNS {
            let shape = Shape::of(noun).unwrap_or_else(|error| panic!("{error}"));
            let field = |name: &str| shape.resource.get_field_by_name(name).is_some();
            for name in noun
                .owned
                .iter()
                .copied()
                .chain(noun.parent)
                .chain(noun.chain)
                .chain(noun.supersedes)
            {
                assert!(field(name), "{} has no {name}", noun.kind);
            }
            for name in ["id", "etag", "meta"] {
                assert!(field(name), "{} has no {name}", noun.kind);
            }
            let taken = |name: &str| shape.create.input.get_field_by_name(name).is_some();
            assert!(taken("options"), "{}", noun.kind);
            assert!(noun.parent.is_none_or(taken), "{}", noun.kind);
            let by = noun.listed_by;
            assert!(by.is_none_or(|kind| super::kinds().any(|known| known == kind)), "{by:?}");
            for name in ["page", "where", "consistency"] {
                assert!(shape.list.input.get_field_by_name(name).is_some(), "{}", noun.kind);
            }
            let (Some(after), Some(method)) = (noun.after, &shape.after) else { continue };
            assert!(field(after.field), "{} has no {}", noun.kind, after.field);
            for (from, to) in after.copy {
                assert!(field(from), "{} has no {from}", noun.kind);
                assert!(
                    method.input.get_field_by_name(to).is_some(),
                    "{} takes no {to}",
                    after.method
                );
            }
        }
    }
}
