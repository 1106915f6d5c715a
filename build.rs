//! Turns `proto/` into Rust without protoc, keeps the descriptor set for reflection, and embeds the migrations.

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
    fs::write(out.join("migrations.rs"), migrations()?)?;
    fs::write(out.join("descriptor_set.bin"), files.encode_to_vec())?;
    let mut prost = tonic_prost_build::Config::new();
    prost.enable_type_names();
    prost.extern_path(".google.protobuf.Struct", "crate::rpc::json_object::Object");
    let tonic = tonic_prost_build::configure().bytes(".").btree_map(".");
    tonic.compile_fds_with_config(files, prost)?;
    Ok(())
}

/// `MIGRATIONS: &[(version, name, up, down)]`, oldest first. Each way up must have a way down. (refinery's own macro
/// would take the files in `down/` for further ways up.)
fn migrations() -> Result<String, Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("migrations");
    let mut found = Vec::new();
    for entry in fs::read_dir(&root)? {
        let name =
            entry?.file_name().into_string().map_err(|name| format!("{name:?} is not UTF-8"))?;
        let Some(stem) = name.strip_suffix(".sql") else { continue };
        let version: i32 = stem
            .strip_prefix('V')
            .and_then(|rest| rest.split("__").next())
            .unwrap_or_default()
            .parse()?;
        let (up, down) = (root.join(&name), root.join("down").join(&name));
        if !down.exists() {
            return Err(format!("migrations/{name} has no migrations/down/{name}").into());
        }
        found.push((
            version,
            format!("({version}, {stem:?}, include_str!({up:?}), include_str!({down:?})),"),
        ));
    }
    found.sort();
    let list: String = found.into_iter().map(|(_, item)| item).collect();
    Ok(format!("pub const MIGRATIONS: &[(i32, &str, &str, &str)] = &[{list}];"))
}
