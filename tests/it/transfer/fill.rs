//! What the round trip of a transfer carries.

use crate::claim::{claim, consensus, verification};
use crate::help::{add, critic, labels, overrule, reference, rule};
use crate::world::{As, create, decision, object};
use casebook::pb;
use casebook::pb::vector_index::Method;

/// Embeddings of every form of storage, more than a page, and one that stays behind with its space.
async fn fill_vectors(who: &As) {
    let (mut spaces, mut vectors) = (who.spaces(), who.vectors());
    for (id, metric, storage) in [
        ("thin", pb::DistanceMetric::L2, pb::VectorStorage::Float16),
        ("empty", pb::DistanceMetric::Dot, pb::VectorStorage::Float32),
        ("gone", pb::DistanceMetric::Cosine, pb::VectorStorage::Float32),
    ] {
        ok!(spaces.create_vector_space(pb::CreateVectorSpaceRequest {
            vector_space_id: id.into(),
            vector_space: Some(pb::VectorSpace {
                embedding_model: "small".into(),
                dimensions: 3,
                metric: metric.into(),
                storage: storage.into(),
                ..Default::default()
            }),
            options: None,
        }));
    }
    let floats = |values: Vec<f32>| {
        let list = pb::FloatList { values };
        Some(pb::Vector { data: Some(pb::vector::Data::Floats(list)) })
    };
    let thin = |n: usize| pb::Embedding {
        id: format!("e/{n}"),
        vector: floats(vec![n as f32, 1.0, 0.1]),
        ..Default::default()
    };
    let wide = |n: usize| pb::Embedding {
        id: format!("w-{n}"),
        subject: Some(reference(pb::ResourceKind::Chunk, &format!("e-{n}"), 0)),
        decision_id: "d-1".into(),
        owner_id: "u-1".into(),
        vector: floats((0..1536).map(|k| ((n * 1536 + k) as f32).sin()).collect()),
        context: "A loan that was refused.".into(),
        tags: vec!["loan".into()],
        similarity_threshold: Some(0.8),
        source: Some(object(&[("field", "text")])),
        metadata: Some(object(&[("page", "3")])),
        ..Default::default()
    };
    let of = |space: &str, embeddings: Vec<pb::Embedding>| pb::BatchUpsertEmbeddingsRequest {
        vector_space_id: space.into(),
        embeddings,
        options: None,
    };
    ok!(vectors.batch_upsert_embeddings(of("thin", (0..1000).map(thin).collect())));
    ok!(vectors.batch_upsert_embeddings(of("x", (0..10).map(wide).collect())));
    ok!(vectors.batch_upsert_embeddings(of("gone", vec![thin(1)])));
    ok!(vectors.upsert_embedding(pb::UpsertEmbeddingRequest {
        vector_space_id: "thin".into(),
        embedding: Some(thin(2000)),
        options: None,
    }));
    // Deleted embeddings stay behind, too.
    ok!(vectors.delete_embedding(pb::DeleteEmbeddingRequest {
        vector_space_id: "thin".into(),
        embedding_id: "e/2000".into(),
        ..Default::default()
    }));
    ok!(spaces.delete_vector_space(pb::DeleteVectorSpaceRequest {
        vector_space_id: "gone".into(),
        ..Default::default()
    }));
}

/// Something of every noun that is transferred.
pub async fn fill(who: &As) {
    let mut decisions = who.decisions();
    ok!(who.policies().create_policy_rule(rule("p/1", "Nobody is refused for a missing paper")));
    for part in 0..3 {
        let requests = (0..400).map(|n| {
            let mut made = decision("DENY", 0.25);
            made.labels = labels(&[("part", "a"), ("é", "ü")]);
            made.verdict_scores =
                [("ALLOW".to_owned(), 0.1), ("DENY".to_owned(), 1.0 / 3.0)].into();
            made.metadata = Some(
                prost_types::Struct {
                    fields: [(
                        "none".to_owned(),
                        prost_types::Value { kind: Some(prost_types::value::Kind::NullValue(0)) },
                    )]
                    .into(),
                }
                .into(),
            );
            made.decide_time = Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 1000 });
            made.processing_time = Some(prost_types::Duration { seconds: 0, nanos: 1_000 });
            create(&format!("d-{}", part * 400 + n), made)
        });
        ok!(decisions.batch_create_decisions(pb::BatchCreateDecisionsRequest {
            requests: requests.collect(),
            options: None,
        }));
    }
    for n in 0..5 {
        let outputs = vec![
            critic(&format!("c-{n}-1"), "fairness", "DENY", 0.5),
            critic(&format!("c-{n}-2"), "law", "ALLOW", 0.75),
        ];
        ok!(decisions.add_critic_outputs(add(&format!("d-{n}"), outputs)));
    }
    ok!(decisions.create_override(overrule("o-1", "d-7", "ALLOW")));
    ok!(decisions.create_override(overrule("o-2", "d-7", "REVIEW")));
    for id in ["b-1", "b-2"] {
        ok!(who.evidence().create_evidence_bundle(crate::evidence::other(id, "d-7", id)));
    }
    let mut claims = who.claims();
    for id in ["k", "l"] {
        ok!(claims.create_claim(pb::CreateClaimRequest {
            claim_id: id.into(),
            claim: Some(claim("the earth is round")),
            verifications: vec![pb::Verification {
                id: format!("v-{id}"),
                ..verification("", "empirical", 0.5)
            }],
            ..Default::default()
        }));
    }
    for (n, kind) in ["majority", "unanimous", "majority"].into_iter().enumerate() {
        ok!(claims.create_consensus(pb::CreateConsensusRequest {
            consensus_id: format!("n-{}", 9 - n),
            consensus: Some(consensus("k", kind)),
            options: Some(pb::WriteOptions {
                on_conflict: pb::OnConflict::Replace.into(),
                ..Default::default()
            }),
        }));
    }
    let mut documents = pb::document_service_client::DocumentServiceClient::new(who.wire());
    for id in ["e", "f"] {
        ok!(documents.create_document(pb::CreateDocumentRequest {
            document_id: id.into(),
            document: Some(pb::Document {
                filename: "f.txt".into(),
                source_path: "/f.txt".into(),
                size_bytes: Some(5 << 40),
                ..Default::default()
            }),
            ..Default::default()
        }));
        for n in [2, 1] {
            let analysis = pb::Analysis { document_id: id.into(), ..Default::default() };
            ok!(documents.create_analysis(pb::CreateAnalysisRequest {
                analysis_id: format!("{id}-{n}"),
                analysis: Some(analysis),
                options: None,
            }));
        }
        let chunk = |n| pb::Chunk {
            id: format!("{id}-{n}"),
            chunk_index: n,
            text: "some text".into(),
            ..Default::default()
        };
        ok!(documents.batch_create_chunks(pb::BatchCreateChunksRequest {
            document_id: id.into(),
            chunks: (0..3).map(chunk).collect(),
            ..Default::default()
        }));
    }
    let mut spaces = who.spaces();
    // Of two that wish for an index none is built: one shall have none, the other has too few embeddings.
    for (id, method) in [("w", Method::None), ("x", Method::Ivfflat)] {
        ok!(spaces.create_vector_space(pb::CreateVectorSpaceRequest {
            vector_space_id: id.into(),
            vector_space: Some(pb::VectorSpace {
                embedding_model: "ada".into(),
                index: Some(pb::VectorIndex { method: method.into(), ..Default::default() }),
                index_mode: pb::VectorIndexMode::Auto.into(),
                labels: labels(&[("team", "a")]),
                ..Default::default()
            }),
            options: None,
        }));
    }
    for alias in ["live", "best"] {
        ok!(spaces.set_vector_space_alias(pb::SetVectorSpaceAliasRequest {
            alias: alias.into(),
            vector_space_id: "x".into(),
            options: None,
        }));
    }
    fill_vectors(who).await;
    let mut retention = pb::retention_service_client::RetentionServiceClient::new(who.wire());
    for id in ["h-1", "h-2"] {
        ok!(retention.create_legal_hold(pb::CreateLegalHoldRequest {
            legal_hold_id: id.into(),
            legal_hold: Some(pb::LegalHold {
                reason: "a lawsuit".into(),
                refs: vec![reference(pb::ResourceKind::Decision, "d-9", 0)],
                ..Default::default()
            }),
            options: None,
        }));
    }
    ok!(retention.release_legal_hold(pb::ReleaseLegalHoldRequest {
        legal_hold_id: "h-1".into(),
        reason: "it was settled".into(),
        options: None,
    }));
    ok!(retention.create_retention_policy(pb::CreateRetentionPolicyRequest {
        retention_policy_id: "r".into(),
        retention_policy: Some(pb::RetentionPolicy {
            retention_class: "short".into(),
            keep_at_least: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
            ..Default::default()
        }),
        options: None,
    }));
    let mut precedents = who.precedents();
    for (id, superseded_by_id) in [("x", "y"), ("y", ""), ("z", "")] {
        let status = match superseded_by_id {
            "" => pb::PrecedentStatus::Active,
            _ => pb::PrecedentStatus::Superseded,
        };
        let precedent = pb::Precedent {
            decision_id: "d-1".into(),
            input: Some(object(&[("income", "900")])),
            tags: vec!["loan".into(), "critical".into()],
            // Before the epoch, and at it.
            occur_time: Some(prost_types::Timestamp {
                seconds: if id == "z" { 0 } else { -1 },
                nanos: 0,
            }),
            status: status.into(),
            superseded_by_id: superseded_by_id.into(),
            ..crate::precedent::small()
        };
        ok!(precedents.create_precedent(crate::precedent::record(id, precedent)));
    }
    let edge = |n: i32, to: &str| pb::PrecedentReference {
        id: format!("xr-{n}"),
        from_precedent_id: "x".into(),
        to_precedent_id: to.into(),
        reference_type: "semantic".into(),
        similarity: Some(1.0 / 3.0),
        ..Default::default()
    };
    ok!(precedents.link_precedents(pb::LinkPrecedentsRequest {
        // What is recorded later may be referred to, too.
        precedent_references: vec![edge(1, "z"), edge(2, "later")],
        options: None,
    }));
    let mut models = who.models();
    for n in 1..=3 {
        ok!(models.create_model_checkpoint(pb::CreateModelCheckpointRequest {
            model_checkpoint_id: format!("m-{n}"),
            model_checkpoint: Some(pb::ModelCheckpoint {
                model_name: "screening".into(),
                framework: "empirical".into(),
                model_version: format!("v{n}"),
                checkpoint_path: format!("s3://models/v{n}"),
                metrics: Some(object(&[("f1", "0.93")])),
                ..Default::default()
            }),
            options: None,
        }));
        ok!(models.create_training_example(pb::CreateTrainingExampleRequest {
            training_example_id: format!("t-{n}"),
            training_example: Some(pb::TrainingExample {
                framework: "empirical".into(),
                claim_id: "k".into(),
                claim_text: "Water boils.".into(),
                validity: n == 2,
                confidence: Some(0.1),
                ..Default::default()
            }),
            options: None,
        }));
    }
    ok!(models.activate_model_checkpoint(pb::ActivateModelCheckpointRequest {
        model_checkpoint_id: "m-2".into(),
        ..Default::default()
    }));
    for (n, snapshot_time) in
        [None, Some(prost_types::Timestamp::default())].into_iter().enumerate()
    {
        ok!(who.telemetry().record_metrics_snapshot(pb::RecordMetricsSnapshotRequest {
            metrics_snapshot_id: format!("s-{n}"),
            metrics_snapshot: Some(pb::MetricsSnapshot {
                source: "scorer".into(),
                metrics: [("p99".to_owned(), 1.5e-9), ("count".to_owned(), 1e300)].into(),
                labels: labels(&[("zone", "eu")]),
                snapshot_time,
                ..Default::default()
            }),
            options: None,
        }));
    }
    // Deleted resources stay behind.
    ok!(decisions.create_decision(create("gone", decision("ALLOW", 1.0))));
    ok!(decisions.delete_decision(crate::help::delete("gone")));
}
