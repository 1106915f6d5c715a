//! Casebook: the system of record for decisions that machines make about people.
//!
//! A call comes in through [`edge`], is checked and worded by [`rpc`], and becomes SQL in [`store`]. Nothing below
//! `store` knows the wire, nothing above it knows PostgreSQL, and all of them fail with [`Error`].
//!
//! | To find | Look in |
//! |---|---|
//! | who may call what | [`rpc::access`] |
//! | a noun on the wire: handlers, checks, conversions | `rpc/<noun>.rs`, helped by [`rpc::wire`] |
//! | a noun in the database: its row, statements, filters | `store/<noun>.rs`, declared by [`noun!`] |
//! | how writes are batched, numbered, logged and repeated | [`store::write`] |
//! | what most nouns do: create, modify | [`store::change`] |
//! | how gets are batched, and how lists page at one moment | [`store::read`], [`store::list`], [`store::snapshot`] |
//! | the log: audit trail, revisions, diffs | [`store::log`] |
//! | told events, export and archive of the log | [`store::event`], [`store::export`], [`store::archive`] |
//! | connections, retry, time-outs | [`store::postgres`], [`store::backend`] |
//! | the only `Error` to `Status` | [`rpc::status`] |
//! | settings, with default, unit and consequence | [`config`] |
//! | how it is put together, and how it ends | [`server`] |
//! | the private PostgreSQL | [`embedded`] |
//!
//! ARCHITECTURE.md says why; CONTRIBUTING.md says how to add a noun.

pub mod cli;
pub mod config;
pub mod demo;
pub mod edge;
pub mod embedded;
pub mod error;
pub mod rpc;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod transfer;

/// Messages and service traits generated from `proto/`.
pub mod pb {
    #![allow(clippy::all, clippy::pedantic)]
    tonic::include_proto!("casebook.v1");

    /// The standard health protocol.
    pub mod health {
        #![allow(clippy::all, clippy::pedantic)]
        tonic::include_proto!("grpc.health.v1");
    }

    /// Every message and service, for reflection and for the tests that walk them.
    pub const DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));
}

pub use error::{Error, Reason, Result};
