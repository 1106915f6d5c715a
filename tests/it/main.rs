//! Everything that is promised, through a real client, a real server and a real PostgreSQL.

// What clippy.toml allows in #[test] functions, for the helpers outside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
#[allow(dead_code, reason = "what one day's tests leave unused, the next day's need")]
mod help;

mod admin;
mod architecture;
mod audit;
mod batch;
mod batching;
mod critic_output;
mod decision;
mod embedded;
mod fault;
mod errors;
mod fault;
mod health;
mod listing;
mod migration;
mod r#override;
mod pages;
mod plan;
mod policy_rule;
#[allow(dead_code, reason = "as above")]
mod process;
mod readme;
mod reasons;
mod removal;
mod statistics;
mod tenant;
mod removal;
mod tenant;
#[allow(dead_code, reason = "as above")]
mod shutdown;
mod tenancy;
mod plan;
mod removal;
mod schema;
mod tenant;
#[allow(dead_code, reason = "as above")]
mod world;
mod write;
