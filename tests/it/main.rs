//! Everything that is promised, through a real client, a real server and a real PostgreSQL.

// What clippy.toml allows in #[test] functions, for the helpers outside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod help;

mod admin;
mod architecture;
mod audit;
mod batch;
mod batching;
mod critic_output;
mod decision;
mod embedded;
mod errors;
mod fault;
mod health;
mod listing;
mod migration;
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
mod schema;
mod search;
#[allow(dead_code, reason = "as above")]
mod shutdown;
mod statistics;
mod tenancy;
mod tenant;
mod world;
mod write;
