//! The command line: what may be typed, what it means, and the manual. It reads arguments and nothing else.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Arg, ArgAction, ArgMatches, Command as Clap, builder::PossibleValue, value_parser};

use crate::config::{DefaultValue, Group, Kind, SETTINGS, Setting, is_tenant_id};

mod manual;
#[cfg(test)]
mod tests;
mod transfer;

pub use transfer::{Export, From as ImportFrom, Import, Target};

/// What the process answers the shell.
pub mod exit {
    pub const OK: u8 = 0;
    /// A check said no, or something went wrong on the way.
    pub const FAILED: u8 = 1;
    /// The command line or the configuration is wrong. clap uses it too.
    pub const USAGE: u8 = 2;
    /// The server or PostgreSQL cannot be reached.
    pub const UNREACHABLE: u8 = 3;
}

/// The command line, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    pub config_file: Option<PathBuf>,
    pub env_file: Option<PathBuf>,
    /// Pairs of a setting's name and its text, for [`crate::config::Config::load`].
    pub flags: Vec<(String, String)>,
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Serve,
    Migrate(Migrate),
    Token(Token),
    Tenant(Tenant),
    Audit(Audit),
    Export(Export),
    Import(Import),
    Demo(Demo),
    Health(Health),
    Key(KeyCommand),
    Config(ConfigCommand),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migrate {
    Up,
    Down { steps: u32 },
    Status,
    Plan,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Create {
        tenant: String,
        roles: Vec<Role>,
        name: Option<String>,
        /// `None` never expires.
        expires_in: Option<Duration>,
    },
    List {
        tenant: String,
    },
    Revoke {
        tenant: String,
        id: String,
    },
}

/// What a token may do, as in `casebook.v1.Role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Reader,
    Writer,
    Auditor,
    Admin,
}

impl Role {
    pub const ALL: &[Role] = &[Role::Reader, Role::Writer, Role::Auditor, Role::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }
}

impl clap::ValueEnum for Role {
    fn value_variants<'a>() -> &'a [Self] {
        Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.as_str()).help(match self {
            Self::Reader => "Reads records",
            Self::Writer => "Reads and writes records",
            Self::Auditor => "Reads the audit log",
            Self::Admin => "All of these, and tokens; in the tenant \"system\" also tenants",
        }))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenant {
    Create { id: String },
    List,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audit {
    Archive {
        address: Option<String>,
        token: Option<String>,
        /// `None` is the token's, or the server's default.
        tenant: Option<String>,
        older_than: Duration,
    },
}

/// `address` and `token` go through [`crate::config::Client::load`], which knows their other sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demo {
    pub address: Option<String>,
    pub token: Option<String>,
    pub count: u32,
    pub concurrency: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub address: Option<String>,
    /// Empty asks for the server as a whole.
    pub service: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyCommand {
    Generate,
    Rotate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigCommand {
    Print { redacted: bool },
    List,
}

/// Reads the arguments, the program's name first. An `Err` is to be printed by `clap::Error::exit`, which also
/// serves `--help` and `--version`.
pub fn parse(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Invocation, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let mut leaf = &matches;
    let mut path = Vec::new();
    while let Some((name, deeper)) = leaf.subcommand() {
        path.push(name);
        leaf = deeper;
    }
    Ok(Invocation {
        config_file: leaf.get_one("config").cloned(),
        env_file: leaf.get_one("env-file").cloned(),
        flags: given_settings(leaf),
        command: read(&path, leaf).ok_or_else(|| {
            // Every leaf of the tree is read below; a test walks them.
            command().error(clap::error::ErrorKind::InvalidSubcommand, "unknown command")
        })?,
    })
}

fn read(path: &[&str], leaf: &ArgMatches) -> Option<Command> {
    let text = |name: &str| leaf.get_one::<String>(name).cloned();
    Some(match path {
        ["serve"] => Command::Serve,
        ["migrate", "up"] => Command::Migrate(Migrate::Up),
        ["migrate", "down"] => {
            Command::Migrate(Migrate::Down { steps: leaf.get_one("steps").copied()? })
        }
        ["migrate", "status"] => Command::Migrate(Migrate::Status),
        ["migrate", "plan"] => Command::Migrate(Migrate::Plan),
        ["token", "create"] => Command::Token(Token::Create {
            tenant: text("tenant")?,
            roles: leaf.get_many("role")?.copied().collect(),
            name: text("name"),
            expires_in: leaf.get_one("expires-in").copied(),
        }),
        ["token", "list"] => Command::Token(Token::List { tenant: text("tenant")? }),
        ["token", "revoke"] => {
            Command::Token(Token::Revoke { tenant: text("tenant")?, id: text("id")? })
        }
        ["tenant", "create"] => Command::Tenant(Tenant::Create { id: text("id")? }),
        ["tenant", "list"] => Command::Tenant(Tenant::List),
        ["audit", "archive"] => Command::Audit(Audit::Archive {
            address: text("address"),
            token: text("token"),
            tenant: text("tenant"),
            older_than: leaf.get_one("older-than").copied()?,
        }),
        ["export", "jsonl"] => Command::Export(transfer::read_export(leaf)),
        ["import", "jsonl"] => {
            Command::Import(transfer::read_import(leaf, transfer::read_jsonl(leaf))?)
        }
        #[cfg(feature = "sqlite")]
        ["import", "sqlite"] => {
            Command::Import(transfer::read_import(leaf, transfer::read_sqlite(leaf))?)
        }
        ["demo"] => Command::Demo(Demo {
            address: text("address"),
            token: text("token"),
            count: leaf.get_one("count").copied()?,
            concurrency: leaf.get_one("concurrency").copied()?,
        }),
        ["health"] => Command::Health(Health {
            address: text("address"),
            service: text("service").unwrap_or_default(),
        }),
        ["key", "generate"] => Command::Key(KeyCommand::Generate),
        ["key", "rotate"] => Command::Key(KeyCommand::Rotate),
        ["config", "print"] => {
            Command::Config(ConfigCommand::Print { redacted: leaf.get_flag("redacted") })
        }
        ["config", "list"] => Command::Config(ConfigCommand::List),
        _ => return None,
    })
}

fn given_settings(leaf: &ArgMatches) -> Vec<(String, String)> {
    SETTINGS
        .iter()
        .filter_map(|setting| {
            // A command has only the flags that matter to it, so the flag may be unknown here.
            let text = leaf.try_get_one::<String>(setting.name).ok()??;
            Some((setting.name.to_owned(), text.clone()))
        })
        .collect()
}

/// Widest line of the help, however wide the terminal is.
const HELP_WIDTH: usize = 100;

/// The whole tree, for parsing and for the tests and documentation that walk it.
pub fn command() -> Clap {
    Clap::new("casebook")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The system of record for decisions that machines make about people")
        .long_about(manual::ABOUT)
        .after_help(manual::ROOT)
        .max_term_width(HELP_WIDTH)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .global(true)
                .display_order(900)
                .value_parser(value_parser!(PathBuf))
                .help("The configuration file, TOML [env: CASEBOOK_CONFIG]"),
        )
        .arg(
            Arg::new("env-file")
                .long("env-file")
                .value_name("FILE")
                .global(true)
                .display_order(900)
                .value_parser(value_parser!(PathBuf))
                .help("A .env file, read below the process's own environment"),
        )
        .subcommand(
            Clap::new("serve")
                .about("Run the server")
                .long_about(manual::SERVE)
                .after_help(manual::SERVE_EXAMPLES)
                .args(SETTINGS.iter().map(setting_flag)),
        )
        .subcommand(migrate())
        .subcommand(token())
        .subcommand(tenant())
        .subcommand(audit())
        .subcommand(transfer::export())
        .subcommand(transfer::import())
        .subcommand(demo())
        .subcommand(health())
        .subcommand(key())
        .subcommand(config())
}

fn migrate() -> Clap {
    group("migrate", "Bring the database schema up to date, or back", manual::MIGRATE)
        .after_help(manual::MIGRATE_EXAMPLES)
        .args(database_flags())
        .subcommand(Clap::new("up").about("Apply every migration that is not applied yet"))
        .subcommand(
            Clap::new("down").about("Undo the latest migrations; what they added is lost").arg(
                Arg::new("steps")
                    .value_name("N")
                    .default_value("1")
                    .value_parser(value_parser!(u32).range(1..=10_000))
                    .help("How many migrations to undo"),
            ),
        )
        .subcommand(
            Clap::new("status")
                .about("Show the schema's version; exits with 1 if it is not up to date"),
        )
        .subcommand(Clap::new("plan").about("Print the SQL that `up` would run, and run nothing"))
}

fn token() -> Clap {
    let tenant = || tenant_id(Arg::new("tenant").long("tenant").required(true));
    group("token", "Create, list and revoke API tokens", manual::TOKEN)
        .after_help(manual::TOKEN_EXAMPLES)
        .args(database_flags())
        .subcommand(
            Clap::new("create")
                .about("Create a token and print its secret, once")
                .arg(tenant().help("The tenant that the token belongs to"))
                .arg(
                    Arg::new("role")
                        .long("role")
                        .value_name("ROLE")
                        .required(true)
                        .num_args(1..)
                        .value_delimiter(',')
                        .action(ArgAction::Append)
                        .value_parser(value_parser!(Role))
                        .help("What it may do; give several by repeating or with commas"),
                )
                .arg(Arg::new("name").long("name").value_name("NAME").help("What people call it"))
                .arg(
                    Arg::new("expires-in")
                        .long("expires-in")
                        .value_name("TIME")
                        .value_parser(time)
                        .help("How long it works, as in 90d, 12h or 30m [default: until revoked]"),
                ),
        )
        .subcommand(
            Clap::new("list")
                .about("List a tenant's tokens, without secrets")
                .arg(tenant().help("The tenant")),
        )
        .subcommand(
            Clap::new("revoke")
                .about("Make a token stop working")
                .arg(tenant().help("The tenant that the token belongs to"))
                .arg(
                    Arg::new("id")
                        .value_name("ID")
                        .required(true)
                        .help("The token's id, as `list` shows it"),
                ),
        )
}

fn tenant() -> Clap {
    group("tenant", "Create and list tenants", manual::TENANT)
        .after_help(manual::TENANT_EXAMPLES)
        .args(database_flags())
        .subcommand(Clap::new("create").about("Create a tenant").arg(
            tenant_id(Arg::new("id").required(true)).value_name("ID").help("Its id, for good"),
        ))
        .subcommand(Clap::new("list").about("List the tenants"))
}

fn audit() -> Clap {
    group("audit", "Archive the audit log of a running server", manual::AUDIT)
        .after_help(manual::AUDIT_EXAMPLES)
        .subcommand(
            Clap::new("archive")
                .about("Move old detail to the server's archive, keeping the hashes")
                .arg(address())
                .arg(token_flag())
                .arg(
                    tenant_id(Arg::new("tenant").long("tenant"))
                        .help("The tenant [default: the token's, or the server's default]"),
                )
                .arg(
                    Arg::new("older-than")
                        .long("older-than")
                        .value_name("TIME")
                        .required(true)
                        .value_parser(time)
                        .help("How old an entry must be, as in 365d or 52w"),
                ),
        )
}

fn token_flag() -> Arg {
    Arg::new("token")
        .long("token")
        .value_name("TOKEN")
        .help("The API token, or file:/path or env:NAME [env: CASEBOOK_TOKEN]")
}

fn demo() -> Clap {
    Clap::new("demo")
        .about("Fill a running server with made-up records and query them")
        .long_about(manual::DEMO)
        .after_help(manual::DEMO_EXAMPLES)
        .arg(address())
        .arg(token_flag())
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .default_value("2000")
                .value_parser(value_parser!(u32).range(1..=10_000_000))
                .help("How many decisions to write"),
        )
        .arg(
            Arg::new("concurrency")
                .long("concurrency")
                .value_name("N")
                .default_value("64")
                .value_parser(value_parser!(u32).range(1..=4096))
                .help("How many calls run at once"),
        )
}

fn health() -> Clap {
    Clap::new("health")
        .about("Ask a running server whether it is ready")
        .long_about(manual::HEALTH)
        .after_help(manual::HEALTH_EXAMPLES)
        .arg(address())
        .arg(
            Arg::new("service")
                .long("service")
                .value_name("NAME")
                .help("One service, as in casebook.v1.DecisionService [default: the whole server]"),
        )
}

fn key() -> Clap {
    group("key", "Make keys that encrypt blobs", manual::KEY)
        .after_help(manual::KEY_EXAMPLES)
        .subcommand(Clap::new("generate").about("Print a new key, as a line of blob_key_file"))
        .subcommand(
            Clap::new("rotate")
                .about("Wrap the keys of all blobs by the first key of blob_key_file")
                .args(database_flags())
                .args(key_flags()),
        )
}

fn config() -> Clap {
    group("config", "Show the configuration", manual::CONFIG)
        .after_help(manual::CONFIG_EXAMPLES)
        .subcommand(
            Clap::new("print")
                .about("Print every value in force and where it came from")
                .arg(
                    Arg::new("redacted")
                        .long("redacted")
                        .action(ArgAction::SetTrue)
                        .help("Leave out where the database is; passwords are never shown"),
                )
                .args(SETTINGS.iter().map(setting_flag)),
        )
        .subcommand(
            Clap::new("list").about("List every setting there is, with its names and default"),
        )
}

fn group(name: &'static str, about: &'static str, long_about: &'static str) -> Clap {
    Clap::new(name)
        .about(about)
        .long_about(long_about)
        .subcommand_required(true)
        .arg_required_else_help(true)
}

fn address() -> Arg {
    Arg::new("address").long("address").value_name("URL").help(
        "The server, as http://host:port or unix:/path [env: CASEBOOK_ADDRESS, else where \
         CASEBOOK_LISTEN says; default: http://127.0.0.1:50051]",
    )
}

fn tenant_id(arg: Arg) -> Arg {
    arg.value_name("TENANT").value_parser(|text: &str| {
        if is_tenant_id(text) {
            Ok(text.to_owned())
        } else {
            Err(format!("must be {}", Kind::Tenant.allowed()))
        }
    })
}

/// The flag of a setting. Its text is checked with all the others, by the configuration.
fn setting_flag(setting: &'static Setting) -> Arg {
    let default = match setting.default {
        DefaultValue::Text("") => "empty".into(),
        other => other.to_string(),
    };
    let unit = match setting.kind {
        Kind::Number { .. } => format!("{}, ", setting.unit),
        _ => String::new(),
    };
    let arg = Arg::new(setting.name)
        .long(setting.flag())
        .value_name(setting.kind.placeholder(setting.unit))
        .help(format!("{} [{unit}default: {default}]", setting.consequence))
        .help_heading(setting.group.title())
        .allow_negative_numbers(true)
        // -h shows what a first run may need; --help shows everything.
        .hide_short_help(matches!(setting.group, Group::Pools | Group::Limits));
    match setting.kind {
        Kind::Bool => arg.num_args(0..=1).default_missing_value("true"),
        Kind::Choice(words) => arg.value_name(words.join("|")),
        _ => arg,
    }
}

/// The flags of the commands that work on the database directly, before or after their subcommand.
fn database_flags() -> impl Iterator<Item = Arg> {
    const NAMES: &[&str] = &[
        "database_url",
        "owner_database_url",
        "data_dir",
        "postgres_bin",
        "log_format",
        "log_filter",
    ];
    flags(NAMES)
}

/// Where the keys of blobs are.
fn key_flags() -> impl Iterator<Item = Arg> {
    flags(&["blob_key_file", "blob_key"])
}

fn flags(names: &'static [&str]) -> impl Iterator<Item = Arg> {
    SETTINGS
        .iter()
        .filter(|setting| names.contains(&setting.name))
        .map(|setting| setting_flag(setting).help_heading("Settings").global(true))
}

/// "90d", "12h", "30m", "45s" or "2w".
fn time(text: &str) -> Result<Duration, String> {
    const LONGEST_SECONDS: u64 = 3650 * 86_400;
    let allowed = || "a number and s, m, h, d or w, as in 90d, up to 3650d".to_owned();
    let unit = text.chars().last().ok_or_else(allowed)?;
    let seconds_per_unit = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return Err(allowed()),
    };
    text.strip_suffix(unit)
        .and_then(|number| number.parse::<u64>().ok())
        .and_then(|number| number.checked_mul(seconds_per_unit))
        .filter(|seconds| (1..=LONGEST_SECONDS).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(allowed)
}
