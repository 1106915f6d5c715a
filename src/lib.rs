//! Casebook: the system of record for decisions that machines make about people.

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
