//! `export` and `import`: what may be typed.

use super::{address, group, manual, tenant_id, token_flag};
use crate::transfer::{OnConflict, kinds};
use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, ArgMatches, Command as Clap, value_parser};
use std::path::PathBuf;

/// The server, and as whom to call it. `address` and `token` go through [`crate::config::Client::load`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub address: Option<String>,
    pub token: Option<String>,
    /// `None` is the token's, or the server's default.
    pub tenant: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub target: Target,
    /// `None` is standard output.
    pub output: Option<PathBuf>,
    /// Empty means every kind.
    pub kinds: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub target: Target,
    pub input: PathBuf,
    pub from: From,
    pub on_conflict: OnConflict,
    pub state: Option<PathBuf>,
    pub concurrency: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    Jsonl {
        unsealed: bool,
    },
    #[cfg(feature = "sqlite")]
    Sqlite {
        work: Option<PathBuf>,
    },
}

impl clap::ValueEnum for OnConflict {
    fn value_variants<'a>() -> &'a [Self] {
        Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.as_str()).help(match self {
            Self::Fail => "Refuses the line",
            Self::Skip => "Leaves what is there: equal content is unchanged, other content is kept",
            Self::Replace => {
                "Writes a new version, where the kind can change, else refuses the line"
            }
        }))
    }
}

pub(super) fn export() -> Clap {
    group("export", "Write a tenant's records to a file", manual::EXPORT)
        .after_help(manual::EXPORT_EXAMPLES)
        .subcommand(
            Clap::new("jsonl")
                .about("Write every record of a tenant as a line of JSON, all at one revision")
                .args(target())
                .arg(
                    path("output").long("output").help(
                        "The file, which is there when it is whole [default: standard output]",
                    ),
                )
                .arg(
                    Arg::new("kind")
                        .long("kind")
                        .value_name("KIND")
                        .value_delimiter(',')
                        .action(ArgAction::Append)
                        .value_parser(kinds().collect::<Vec<_>>())
                        .help("Only these; give several by repeating or with commas"),
                ),
        )
}

pub(super) fn import() -> Clap {
    let group = group("import", "Write the records of a file to a tenant", manual::IMPORT)
        .after_help(manual::IMPORT_EXAMPLES)
        .subcommand(
            of_file(Clap::new("jsonl"))
                .about("Import what `casebook export jsonl` has written")
                .arg(
                    Arg::new("unsealed")
                        .long("unsealed")
                        .action(ArgAction::SetTrue)
                        .help("Take a file without header and trailer, or what is left of one"),
                ),
        );
    #[cfg(feature = "sqlite")]
    let group = group.subcommand(
        of_file(Clap::new("sqlite"))
            .about("Import items and analyses from the SQLite database of Collections")
            .arg(
                path("work")
                    .long("work")
                    .help("The file that the tables become on the way [default: FILE.jsonl]"),
            ),
    );
    group
}

fn of_file(command: Clap) -> Clap {
    command
        .arg(path("file").required(true).help("What to import"))
        .args(target())
        .arg(
            Arg::new("on-conflict")
                .long("on-conflict")
                .value_name("WHAT")
                .default_value("fail")
                .value_parser(value_parser!(OnConflict))
                .help("What happens to a line whose id is taken"),
        )
        .arg(
            path("state")
                .long("state")
                .help("Where to keep how far it is, until it is done [default: beside the file]"),
        )
        .arg(
            Arg::new("concurrency")
                .long("concurrency")
                .value_name("N")
                .default_value("4")
                .value_parser(value_parser!(u32).range(1..=64))
                .help("How many batches are under way at once"),
        )
}

fn path(name: &'static str) -> Arg {
    Arg::new(name).value_name("FILE").value_parser(value_parser!(PathBuf))
}

fn target() -> [Arg; 3] {
    let tenant = tenant_id(Arg::new("tenant").long("tenant"));
    [
        address(),
        token_flag(),
        tenant.help("The tenant [default: the token's, or the server's default]"),
    ]
}

fn read_target(leaf: &ArgMatches) -> Target {
    let text = |name: &str| leaf.get_one::<String>(name).cloned();
    Target { address: text("address"), token: text("token"), tenant: text("tenant") }
}

pub(super) fn read_export(leaf: &ArgMatches) -> Export {
    let kinds = leaf.get_many::<String>("kind").into_iter().flatten().cloned();
    let output = leaf.get_one::<PathBuf>("output").cloned();
    Export { target: read_target(leaf), output, kinds: kinds.collect() }
}

pub(super) fn read_import(leaf: &ArgMatches, from: From) -> Option<Import> {
    Some(Import {
        target: read_target(leaf),
        input: leaf.get_one("file").cloned()?,
        from,
        on_conflict: leaf.get_one("on-conflict").copied()?,
        state: leaf.get_one("state").cloned(),
        concurrency: leaf.get_one("concurrency").copied()?,
    })
}

pub(super) fn read_jsonl(leaf: &ArgMatches) -> From {
    From::Jsonl { unsealed: leaf.get_flag("unsealed") }
}

#[cfg(feature = "sqlite")]
pub(super) fn read_sqlite(leaf: &ArgMatches) -> From {
    From::Sqlite { work: leaf.get_one("work").cloned() }
}
