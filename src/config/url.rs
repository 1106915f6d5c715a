//! A PostgreSQL URL: checked, comparable, and shown without its password.

use std::{fmt, str::FromStr};

use tokio_postgres::config::{ChannelBinding, Host, SslMode};

const PORT: u16 = 5432;

/// Parameters that name files or modes of a TLS library. Only to say so: their values are never read.
const TLS_PARAMETERS: &[&str] = &["sslrootcert", "sslcert", "sslkey", "sslcrl", "sslnegotiation"];

#[derive(Clone)]
pub(super) struct DatabaseUrl {
    text: String,
    parsed: tokio_postgres::Config,
}

impl DatabaseUrl {
    /// `Err` completes the sentence "<setting> ..." and never quotes the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.trim().split_once("://") else {
            return Err("must be a postgres:// URL".into());
        };
        // postgresql+psycopg2:// is how SQLAlchemy names its driver.
        match scheme.split_once('+').map_or(scheme, |(scheme, _driver)| scheme) {
            "postgres" | "postgresql" => {}
            "sqlite" => {
                return Err(
                    "must be a postgres:// URL: Casebook does not run on SQLite; leave it \
                            unset and an embedded PostgreSQL is started in data_dir"
                        .into(),
                );
            }
            _ => return Err("must be a postgres:// URL".into()),
        }
        let text = format!("postgresql://{}", without_plain_tls(rest)?);
        match tokio_postgres::Config::from_str(&text) {
            Ok(parsed) if parsed.get_hosts().is_empty() => {
                Err("must name a host, as in postgres://user:password@host:5432/database".into())
            }
            // A percent-encoded parameter name gets past the first look.
            Ok(parsed) if parsed.get_ssl_mode() == SslMode::Require => Err(wants_tls("sslmode")),
            Ok(parsed) if parsed.get_channel_binding() == ChannelBinding::Require => {
                Err(wants_tls("channel_binding"))
            }
            Ok(parsed) => Ok(Self { text, parsed }),
            Err(cause) => Err(describe(&cause)),
        }
    }

    /// The URL to connect with.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether both name the same database, role and password. How they are spelt and what they say about
    /// time-outs does not matter.
    pub fn is_same(&self, other: &Self) -> bool {
        self.place() == other.place() && self.is_same_password(other)
    }

    pub fn is_same_password(&self, other: &Self) -> bool {
        self.parsed.get_password() == other.parsed.get_password()
    }

    /// Whether the connection stays on this machine.
    pub fn is_local(&self) -> bool {
        self.parsed.get_hosts().iter().all(|host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => {
                name == "localhost"
                    || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        })
    }

    fn place(&self) -> impl PartialEq + '_ {
        let database = self.parsed.get_dbname().or(self.parsed.get_user());
        (self.hosts(), self.parsed.get_user(), database, self.parsed.get_options())
    }

    fn hosts(&self) -> Vec<(String, u16)> {
        let ports = self.parsed.get_ports();
        let port = |index| *ports.get(index).or(ports.first()).unwrap_or(&PORT);
        let hosts = self.parsed.get_hosts().iter().enumerate();
        hosts
            .map(|(index, host)| match host {
                Host::Tcp(name) => (name.clone(), port(index)),
                Host::Unix(path) => (encode(&path.to_string_lossy()), port(index)),
            })
            .collect()
    }
}

/// Without the password and without parameters, because either may hold one.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        if let Some(user) = self.parsed.get_user() {
            f.write_str(&encode(user))?;
            if self.parsed.get_password().is_some() {
                f.write_str(":***")?;
            }
            f.write_str("@")?;
        }
        for (index, (host, port)) in self.hosts().into_iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let bracketed = if host.contains(':') { format!("[{host}]") } else { host };
            write!(f, "{comma}{bracketed}:{port}")?;
        }
        match self.parsed.get_dbname() {
            Some(name) => write!(f, "/{}", encode(name)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// What may stand in a URL as it is; the rest is percent-encoded.
pub(super) fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Drops the TLS parameters that a connection without TLS fulfils and refuses the others: this build speaks
/// to PostgreSQL in the clear, and must not do so when asked not to.
fn without_plain_tls(rest: &str) -> Result<String, String> {
    // Split where the driver does: credentials end at the first `@`, parameters begin at the next `?`.
    let after_credentials = rest.find('@').map_or(0, |at| at + 1);
    let place = rest.get(after_credentials..).unwrap_or_default();
    let (place, query) = match place.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (place, None),
    };
    if place.contains('@') {
        return Err(UNENCODED.into());
    }
    let Some(query) = query else { return Ok(rest.to_owned()) };
    let mut kept = Vec::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match (name, value) {
            // asyncpg says `ssl` where libpq says `sslmode`.
            ("sslmode" | "ssl" | "channel_binding", "disable" | "allow" | "prefer" | "false") => {}
            ("sslmode" | "ssl" | "channel_binding", _) => return Err(wants_tls(name)),
            _ if TLS_PARAMETERS.contains(&name) => return Err(wants_tls(name)),
            _ => kept.push(pair),
        }
    }
    let (base, _) = rest.split_at(after_credentials + place.len());
    let query = kept.join("&");
    Ok(if query.is_empty() { base.to_owned() } else { format!("{base}?{query}") })
}

const UNENCODED: &str = "is not a URL that PostgreSQL understands: it should look like \
    postgres://user:password@host:5432/database, with @ : / ? # % in a password percent-encoded";

fn wants_tls(parameter: &str) -> String {
    format!(
        "asks for TLS by its parameter {parameter}, but this build has no TLS to PostgreSQL and never \
         falls back to plain text unasked: connect through a local proxy that speaks TLS, or say \
         sslmode=disable if the network between is trusted"
    )
}

/// The driver's reason, if it names nothing but a parameter of its own; other reasons may quote a password.
fn describe(cause: &tokio_postgres::Error) -> String {
    let reason = std::error::Error::source(cause).map(ToString::to_string).unwrap_or_default();
    match reason.strip_prefix("invalid value for option ") {
        Some(option) => format!(
            "has an invalid {option}; if that is part of the password, percent-encode @ : / ? # % there"
        ),
        None if reason.starts_with("unknown option") => {
            "has a parameter that the PostgreSQL driver does not know".into()
        }
        None => UNENCODED.into(),
    }
}
