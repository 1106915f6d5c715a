//! Everything that is promised, through a real client, a real server and a real PostgreSQL.

#[macro_use]
mod help;

mod batch;
mod decision;
mod listing;
mod removal;
mod fault;
mod process;
mod world;
