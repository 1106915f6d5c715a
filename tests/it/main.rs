//! Everything that is promised, through a real client, a real server and a real PostgreSQL.

// What clippy.toml allows in #[test] functions, for the helpers outside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod help;

mod admin;
mod analysis;
mod architecture;
mod audit;
mod audit_archive;
mod audit_event;
mod audit_export;
mod batch;
mod batching;
mod blob;
mod blob_key;
mod chunk;
mod claim;
mod critic_output;
mod decision;
mod demo;
mod document;
mod embedded;
mod embedding;
mod errors;
mod evidence;
mod fault;
mod feed;
mod filters;
mod health;
mod ingest;
mod legal_hold;
mod listing;
mod metrics_snapshot;
mod migration;
mod model_checkpoint;
mod object;
mod r#override;
mod pages;
mod plan;
mod policy_rule;
mod precedent;
mod precedent_reference;
mod process;
mod readme;
mod reasons;
mod removal;
mod retention_policy;
mod s3;
mod schema;
mod search;
mod search_receipt;
mod service_health;
#[allow(dead_code, reason = "as above")]
mod shutdown;
mod statistics;
mod sync;
mod systems;
mod tenancy;
mod tenant;
mod training_example;
mod transaction;
mod transfer;
#[cfg(feature = "sqlite")]
mod transfer_sqlite;
mod vector_index;
mod vector_space;
mod vectors;
mod world;
mod write;
