//! Turns `proto/` into Rust without protoc, and keeps the descriptor set for reflection.

use prost::Message;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=migrations");
    let mut nouns = Vec::new();
    for entry in fs::read_dir("proto/casebook/v1")? {
        let name =
            entry?.file_name().into_string().map_err(|name| format!("{name:?} is not UTF-8"))?;
        nouns.push(format!("casebook/v1/{name}"));
    }
    nouns.sort();
    nouns.push("grpc/health/v1/health.proto".into());
    let files = protox::compile(nouns, ["proto"])?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptor_set.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
