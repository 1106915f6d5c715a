//! Where blobs are, as a URL: S3, Google Cloud Storage, Azure Blob Storage, a local folder or memory.

use super::{settings::Setting, values::Value};
use std::{fmt, path::PathBuf};

/// A place for blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobUrl {
    /// `memory:`, which ends with the server.
    Memory,
    /// `file:///path`.
    File(PathBuf),
    /// `s3://bucket/prefix`. The prefix has no slash at either end and may be empty.
    S3 { bucket: String, prefix: String },
    /// `gs://bucket/prefix`.
    Gcs { bucket: String, prefix: String },
    /// `az://container/prefix`.
    Azure { container: String, prefix: String },
}

impl BlobUrl {
    /// The cargo feature that a build must have for it, if it needs one.
    pub fn needs(&self) -> Option<&'static str> {
        match self {
            Self::Gcs { .. } if !cfg!(feature = "gcs") => Some("gcs"),
            Self::Azure { .. } if !cfg!(feature = "azure") => Some("azure"),
            _ => None,
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        if text == "memory:" {
            return Some(Self::Memory);
        }
        let (scheme, rest) = text.split_once("://")?;
        if scheme == "file" {
            let is_path = rest.starts_with('/') && !rest.contains('\0');
            return is_path.then(|| Self::File(rest.into()));
        }
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let is_name = |text: &str| {
            let sound = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            !text.is_empty()
                && text.len() <= 255
                && text != "."
                && text != ".."
                && text.bytes().all(sound)
        };
        if !is_name(name) || !prefix.split('/').all(|part| prefix.is_empty() || is_name(part)) {
            return None;
        }
        let (name, prefix) = (name.to_owned(), prefix.to_owned());
        match scheme {
            "s3" => Some(Self::S3 { bucket: name, prefix }),
            "gs" => Some(Self::Gcs { bucket: name, prefix }),
            "az" => Some(Self::Azure { container: name, prefix }),
            _ => None,
        }
    }
}

impl fmt::Display for BlobUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, name, prefix) = match self {
            Self::Memory => return f.write_str("memory:"),
            Self::File(path) => return write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } => ("s3", bucket, prefix),
            Self::Gcs { bucket, prefix } => ("gs", bucket, prefix),
            Self::Azure { container, prefix } => ("az", container, prefix),
        };
        write!(f, "{scheme}://{name}")?;
        if prefix.is_empty() { Ok(()) } else { write!(f, "/{prefix}") }
    }
}

impl Value for Option<BlobUrl> {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        BlobUrl::parse(text).map(Some).ok_or_else(|| setting.kind.allowed())
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_place_or_nothing() {
        for text in ["memory:", "file:///var/blobs", "s3://b", "s3://b/x/y", "gs://b/x", "az://c"] {
            assert_eq!(BlobUrl::parse(text).unwrap().to_string(), text);
        }
        let slash = BlobUrl::parse("s3://b/x/").unwrap();
        assert_eq!(slash, BlobUrl::S3 { bucket: "b".into(), prefix: "x".into() });
        for text in
            ["", "memory", "file://x", "s3://", "s3:///x", "s3://b//x/../y", "s3://a?b", "http://b"]
        {
            assert_eq!(BlobUrl::parse(text), None, "{text}");
        }
    }
}
