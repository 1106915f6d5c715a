//! The types that settings have, and how each is read from text.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use base64::{Engine, engine::general_purpose};

use super::settings::{Kind, Setting};
use crate::store::envelope::KeyRing;

/// Text that must not reach a log or a terminal: `Debug` hides it and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// 256 bits of key.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// The bytes themselves. Never log them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Listen {
    /// Whether only programs on this machine can connect.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// The address at which a client on this machine reaches the server.
    pub fn client_address(&self) -> String {
        match self {
            Self::Tcp(address) if address.ip().is_unspecified() => {
                let loopback = match address.ip() {
                    IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
                };
                format!("http://{}", SocketAddr::new(loopback, address.port()))
            }
            Self::Tcp(address) => format!("http://{address}"),
            Self::Unix(path) => format!("unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Callers present an API token.
    Token,
    /// Whoever can connect may do everything.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Pretty,
    Json,
}

/// A value that can be read from a setting's text. `Err` completes the sentence "<setting> must be ...".
pub(super) trait Value: Sized {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String>;

    /// The value when nothing gives one. Only optional settings have it.
    fn absent() -> Option<Self> {
        None
    }

    /// The value as a number, for the list of limits.
    fn number(&self) -> Option<i64> {
        None
    }
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
                let Kind::Number { min, max } = setting.kind else {
                    return Err("a number".into());
                };
                // TOML writes 4_194_304, so the environment may too.
                let digits = text.trim().replace('_', "");
                digits
                    .parse::<u64>()
                    .ok()
                    .filter(|number| (min..=max).contains(number))
                    .and_then(|number| Self::try_from(number).ok())
                    .ok_or_else(|| setting.kind.allowed())
            }

            fn number(&self) -> Option<i64> {
                i64::try_from(*self).ok()
            }
        }
    )*};
}

numbers!(u32, u64, usize);

impl Value for bool {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        boolean(text).ok_or_else(|| setting.kind.allowed())
    }
}

/// The spellings that environments use for yes and no.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

impl Value for String {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        let fits = match setting.kind {
            Kind::Tenant => is_tenant_id(text),
            Kind::Filter => tracing_subscriber::EnvFilter::try_new(text).is_ok(),
            _ => !text.is_empty(),
        };
        if fits { Ok(text.into()) } else { Err(setting.kind.allowed()) }
    }
}

impl Value for Option<String> {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        let fits = match setting.kind {
            Kind::Endpoint => ["http://", "https://"]
                .iter()
                .any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty())),
            _ => !text.is_empty(),
        };
        if fits { Ok(Some(text.into())) } else { Err(setting.kind.allowed()) }
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// The form of a tenant's id.
pub fn is_tenant_id(text: &str) -> bool {
    text.len() <= 63
        && text.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl Value for PathBuf {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') {
            return Err(setting.kind.allowed());
        }
        Ok(text.into())
    }
}

impl Value for Option<PathBuf> {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(None);
        }
        PathBuf::parse(setting, text).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl Value for Option<Secret> {
    fn parse(_: &Setting, text: &str) -> Result<Self, String> {
        Ok(Some(Secret::new(text)))
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl Value for Option<Key> {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        // Both alphabets, because `openssl rand -base64 32` and most languages' token helpers differ.
        let bare = text.trim().trim_end_matches('=');
        general_purpose::STANDARD_NO_PAD
            .decode(bare)
            .or_else(|_| general_purpose::URL_SAFE_NO_PAD.decode(bare))
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .map(|bytes| Some(Key(bytes)))
            .ok_or_else(|| setting.kind.allowed())
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl Value for Option<KeyRing> {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        // What is wrong with it says which key, and nothing of the key.
        let because = |why| format!("{}; this one {why}", setting.kind.allowed());
        KeyRing::parse(text).map(Some).map_err(because)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// Longest path that a Unix socket's address holds on Linux, less its final NUL.
const SOCKET_PATH_MAX_BYTES: usize = 107;

impl Value for Listen {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // unix:///path is how gRPC clients spell it.
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') || path.len() > SOCKET_PATH_MAX_BYTES {
                return Err(format!(
                    "unix: and an absolute path of at most {SOCKET_PATH_MAX_BYTES} bytes"
                ));
            }
            return Ok(Self::Unix(path.into()));
        }
        address(text).map(Self::Tcp).ok_or_else(|| setting.kind.allowed())
    }
}

impl Value for Option<SocketAddr> {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        if text.is_empty() || text == "off" {
            return Ok(None);
        }
        address(text).map(Some).ok_or_else(|| setting.kind.allowed())
    }
}

/// No other name than `localhost` is looked up: a listen address must not depend on DNS.
fn address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse().ok()?)),
        None => text.parse().ok(),
    }
}

impl Value for Auth {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        match text {
            "token" => Ok(Self::Token),
            "none" => Ok(Self::None),
            _ => Err(setting.kind.allowed()),
        }
    }
}

impl Value for LogFormat {
    fn parse(setting: &Setting, text: &str) -> Result<Self, String> {
        match text {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err(setting.kind.allowed()),
        }
    }
}
