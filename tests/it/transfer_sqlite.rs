//! Import of a Collections database.

use crate::transfer::{lines, server};
use crate::world::{World, open_folder};
use casebook::pb;
use casebook::transfer::{Counts, FromSqlite, OnConflict, import_sqlite};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A database as Collections makes it.
fn collections(path: &Path) {
    let database = Connection::open(path).unwrap();
    database.execute_batch(r#"
        CREATE TABLE items (id VARCHAR PRIMARY KEY, user_id VARCHAR NOT NULL, filename VARCHAR NOT NULL,
          original_filename VARCHAR, file_path VARCHAR NOT NULL, file_size BIGINT, mime_type VARCHAR,
          created_at DATETIME, updated_at DATETIME);
        CREATE TABLE analyses (id VARCHAR PRIMARY KEY, item_id VARCHAR NOT NULL REFERENCES items (id),
          user_id VARCHAR NOT NULL, version INTEGER NOT NULL, category VARCHAR, summary VARCHAR, raw_response JSON,
          provider_used VARCHAR, model_used VARCHAR, trace_id VARCHAR, search_vector TEXT, created_at DATETIME);
        CREATE TABLE embeddings (id VARCHAR PRIMARY KEY, item_id VARCHAR NOT NULL, analysis_id VARCHAR NOT NULL,
          user_id VARCHAR NOT NULL, vector TEXT, embedding_model VARCHAR NOT NULL,
          embedding_dimensions INTEGER NOT NULL, embedding_source JSON, created_at DATETIME);
        CREATE TABLE alembic_version (version_num VARCHAR);
        INSERT INTO items VALUES
          ('i-1', 'u-1', 'a.png', 'A photo.png', '/data/a.png', 5000000000, 'image/png', '2024-05-06 07:08:09.123456', '2024-06-01 00:00:00'),
          ('i-2', 'u-1', 'b.png', NULL, '/data/b.png', NULL, NULL, '2024-05-07 07:08:09', NULL);
        INSERT INTO analyses VALUES
          ('a-2', 'i-1', 'u-1', 2, 'food', 'Soup', '{"dish": "soup", "score": 0.1}', 'anthropic', 'm-1', 't-2', NULL, '2024-05-06 08:00:00'),
          ('a-1', 'i-1', 'u-1', 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '2024-05-06 07:30:00'),
          ('a-3', 'i-2', 'u-1', 4, NULL, NULL, '["soup"]', NULL, NULL, NULL, NULL, '2024-05-08 00:00:00');
        INSERT INTO embeddings VALUES
          ('e-1', 'i-1', 'a-2', 'u-1', '[0.1, 0.2]', 'voyage-2', 1024, '{"of": "summary"}', '2024-05-06 08:00:01');
    "#).unwrap();
}

#[tokio::test]
async fn collections_become_documents_and_analyses() {
    let world = World::new().await;
    let folder = open_folder();
    let database: PathBuf = folder.path().join("collections.db");
    collections(&database);
    let report = import_sqlite(FromSqlite {
        server: server(&world.address, "default"),
        database,
        work: None,
        on_conflict: OnConflict::Fail,
        state: None,
        concurrency: 4,
    });
    let report = report.await.unwrap_or_else(|error| panic!("{error}"));
    let work = folder.path().join("collections.db.jsonl");
    let sent: Vec<Value> =
        lines(&work).into_iter().filter(|line| line["kind"].is_string()).collect();
    assert_eq!(
        sent,
        [
            json!({"kind": "document", "resource": {
                "id": "i-1", "filename": "a.png", "originalFilename": "A photo.png", "sourcePath": "/data/a.png",
                "sizeBytes": "5000000000", "mimeType": "image/png", "ownerId": "u-1",
                "metadata": {
                    "imported_create_time": "2024-05-06 07:08:09.123456",
                    "imported_update_time": "2024-06-01 00:00:00",
                    "imported_analyses": {
                        "a-1": {"version": "1", "create_time": "2024-05-06 07:30:00"},
                        "a-2": {"version": "2", "create_time": "2024-05-06 08:00:00"},
                    },
                },
            }}),
            json!({"kind": "document", "resource": {
                "id": "i-2", "filename": "b.png", "sourcePath": "/data/b.png", "ownerId": "u-1",
                "metadata": {
                    "imported_create_time": "2024-05-07 07:08:09",
                    "imported_analyses": {"a-3": {"version": "4", "create_time": "2024-05-08 00:00:00"}},
                },
            }}),
            json!({"kind": "analysis", "resource": {"id": "a-1", "documentId": "i-1", "analysisVersion": 1, "ownerId": "u-1"}}),
            json!({"kind": "analysis", "resource": {
                "id": "a-2", "documentId": "i-1", "analysisVersion": 2, "ownerId": "u-1", "category": "food", "summary": "Soup",
                "rawResponse": {"dish": "soup", "score": 0.1}, "providerUsed": "anthropic", "modelUsed": "m-1", "traceId": "t-2",
            }}),
            json!({"kind": "analysis", "resource": {
                "id": "a-3", "documentId": "i-2", "analysisVersion": 1, "ownerId": "u-1", "rawResponse": {"raw": ["soup"]},
            }}),
        ]
    );
    let left: Vec<String> = lines(&folder.path().join("collections.db.jsonl.left-out.jsonl"))
        .into_iter()
        .map(|line| {
            format!(
                "{} {}",
                line["kind"].as_str().unwrap_or("table"),
                line["id"].as_str().unwrap_or("")
            )
        })
        .collect();
    assert_eq!(left, ["table ", "analysis a-3", "analysis a-3", "embedding e-1"]);

    let mut documents =
        pb::document_service_client::DocumentServiceClient::new(world.anonymous().wire());
    let found = documents.list_documents(pb::ListDocumentsRequest::default()).await;
    let served = !matches!(found, Err(status) if status.code() == tonic::Code::Unimplemented);
    for (kind, count) in [("document", 2), ("analysis", 3)] {
        let expected = match served {
            true => Counts { created: count, ..Counts::default() },
            false => Counts { refused: count, ..Counts::default() },
        };
        assert_eq!(report.counts[kind], expected, "{kind}");
    }
    if let (false, Some(list)) = (served, &report.refused) {
        let all = lines(list);
        assert!(
            all.len() == 5 && all.iter().all(|line| line["refused"]["reason"] == "UNIMPLEMENTED")
        );
    }
    world.close().await;
}

#[tokio::test]
async fn what_is_no_such_database_is_refused() {
    let world = World::new().await;
    let folder = open_folder();
    let database = folder.path().join("x.db");
    for (content, why) in [
        (None, "cannot be read"),
        (Some("nonsense, but long enough to be looked at".repeat(40)), "cannot be read"),
        (Some(String::new()), "no table items"),
    ] {
        if let Some(content) = content {
            std::fs::write(&database, content).unwrap();
        }
        let work = Some(folder.path().join("x.jsonl"));
        let (server, database) = (server(&world.address, "default"), database.clone());
        let options = FromSqlite {
            server,
            database,
            work,
            on_conflict: OnConflict::Fail,
            state: None,
            concurrency: 1,
        };
        let error = import_sqlite(options).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    world.close().await;
}
