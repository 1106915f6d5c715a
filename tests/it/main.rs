//! Everything that is promised, through a real client, a real server and a real PostgreSQL.

#[macro_use]
mod help;

mod audit;
mod batch;
mod critic_output;
mod batching;
mod decision;
mod listing;
mod r#override;
mod policy_rule;
mod removal;
mod fault;
mod process;
mod readme;
mod tenant;
mod world;
mod write;
