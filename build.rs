//! Turns `proto/` into Rust without protoc, keeps the descriptor set for reflection, and embeds the down migrations.

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
    fs::write(out.join("down_migrations.rs"), down_migrations()?)?;
    fs::write(out.join("descriptor_set.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(files)?;
    Ok(())
}

/// `DOWN: &[(version, sql)]` from `migrations/down/V<version>__<name>.sql`. Each way up must have a way down.
fn down_migrations() -> Result<String, Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("migrations");
    let mut list = String::new();
    for entry in fs::read_dir(&root)? {
        let name = entry?.file_name().into_string().map_err(|name| format!("{name:?} is not UTF-8"))?;
        let Some(rest) = name.strip_prefix('V').filter(|rest| rest.ends_with(".sql")) else { continue };
        let version: i32 = rest.split("__").next().unwrap_or_default().parse()?;
        let down = root.join("down").join(&name);
        if !down.exists() {
            return Err(format!("migrations/{name} has no migrations/down/{name}").into());
        }
        list.push_str(&format!("({version}, include_str!({down:?})),"));
    }
    Ok(format!("pub const DOWN: &[(i32, &str)] = &[{list}];"))
}
