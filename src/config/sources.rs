//! Where values come from: the file, the environment, the flags, and which of them wins.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::Path,
};

use toml::de::{DeTable, DeValue};

use super::{
    ConfigError, older,
    settings::{DefaultValue, SETTINGS, Setting},
    values::{Secret, Value},
};

/// Variables with our prefix that are not settings: `CASEBOOK_CONFIG` names the file, the others are for the
/// commands that call a server.
pub const OTHER_VARIABLES: &[(&str, &str)] = &[
    ("CASEBOOK_CONFIG", "The configuration file, if --config does not say."),
    ("CASEBOOK_ADDRESS", "The server that demo and health call, if --address does not say."),
    ("CASEBOOK_TOKEN", "The API token that demo presents, if --token does not say."),
];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    /// Follows from other settings, as the words say.
    Derived(&'static str),
    File {
        path: String,
        line: usize,
    },
    /// One or more environment variables.
    Env(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Derived(reason) => write!(f, "default: {reason}"),
            Self::File { path, line } => write!(f, "{path} line {line}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// A value's text, if it has one, and where it came from.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// Hidden from `Debug`, whatever the setting: that is simpler than being right about which.
    pub(super) text: Option<Secret>,
    pub source: Source,
}

/// The environment, as far as it concerns us. An empty variable counts as unset, because that is how compose
/// files and charts pass on what they were not given.
pub(super) type Env = BTreeMap<String, String>;

/// The text in force for each setting, and what was wrong on the way.
#[derive(Debug)]
pub(super) struct Layers {
    found: BTreeMap<&'static str, Provenance>,
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Layers {
    /// File, then older systems' names, then the environment, then the flags: the later wins.
    pub fn gather(
        file: Option<&Path>,
        env: &Env,
        flags: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut layers =
            Self { found: BTreeMap::new(), problems: Vec::new(), warnings: Vec::new() };
        if let Some(path) = file {
            layers.read_file(path);
        }
        older::apply(env, &mut layers);
        layers.read_env(env);
        for (name, text) in flags {
            match Setting::find(&name) {
                Some(setting) => layers.set(setting, text, Source::Flag(setting.flag())),
                None => layers.problem(format!("--{name} is not a setting{}", nearest(&name))),
            }
        }
        layers.refuse_unknown(env);
        layers.open_secrets(env);
        layers
    }

    pub fn problem(&mut self, sentence: String) {
        self.problems.push(sentence);
    }

    /// Whether nothing was wrong so far.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    pub fn warn(&mut self, sentence: String) {
        self.warnings.push(sentence);
    }

    pub fn set(&mut self, setting: &'static Setting, text: String, source: Source) {
        self.found.insert(setting.name, Provenance { text: Some(Secret::new(text)), source });
    }

    /// Gives a setting that nobody set a value that follows from others.
    pub fn derive(&mut self, name: &'static str, text: Option<&str>, reason: &'static str) {
        self.found.entry(name).or_insert_with(|| Provenance {
            text: text.map(Secret::new),
            source: Source::Derived(reason),
        });
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.found.get(name)?.text.as_ref().map(Secret::expose)
    }

    pub fn source(&self, name: &str) -> Option<&Source> {
        self.found.get(name).map(|found| &found.source)
    }

    pub fn forget(&mut self, name: &str) {
        self.found.remove(name);
    }

    /// A setting's value, or `None` after noting what is wrong with it.
    pub fn value<T: Value>(&mut self, name: &'static str) -> Option<T> {
        let setting = Setting::find(name)?;
        let found = self.found.entry(name).or_insert_with(|| Provenance {
            text: match setting.default {
                DefaultValue::Text(text) => Some(Secret::new(text)),
                DefaultValue::Number(number) => Some(Secret::new(number.to_string())),
                DefaultValue::Derived(_) => None,
            },
            source: match setting.default {
                DefaultValue::Derived(words) => Source::Derived(words),
                DefaultValue::Text(_) | DefaultValue::Number(_) => Source::Default,
            },
        });
        let Some(text) = &found.text else { return T::absent() };
        match T::parse(setting, text.expose()) {
            Ok(value) => Some(value),
            Err(allowed) => {
                let sentence = refusal(setting, text.expose(), &found.source, &allowed);
                self.problems.push(sentence);
                None
            }
        }
    }

    /// What was found, unless something was wrong.
    pub fn finish(self) -> Result<(BTreeMap<&'static str, Provenance>, Vec<String>), ConfigError> {
        if self.problems.is_empty() {
            Ok((self.found, self.warnings))
        } else {
            Err(ConfigError { problems: self.problems })
        }
    }

    fn read_file(&mut self, path: &Path) {
        let shown = path.display().to_string();
        let content = match std::fs::read_to_string(path) {
            Ok(content) => content,
            Err(cause) => {
                return self.problem(format!("The configuration file {shown}: {cause}."));
            }
        };
        let line = |offset: usize| 1 + content.bytes().take(offset).filter(|b| *b == b'\n').count();
        let table = match DeTable::parse(&content) {
            Ok(table) => table.into_inner(),
            Err(cause) => {
                // Only the message: the parser's whole text quotes the line, which may hold a secret.
                let line = line(cause.span().map_or(0, |span| span.start));
                return self.problem(format!("{shown} line {line}: {}.", cause.message()));
            }
        };
        for (key, value) in &table {
            let name: &str = key.get_ref();
            let source = Source::File { path: shown.clone(), line: line(key.span().start) };
            let Some(setting) = Setting::find(name) else {
                let is_table = matches!(value.get_ref(), DeValue::Table(_));
                let flat = if is_table { "; keys stand alone, without tables" } else { "" };
                self.problem(format!("{name} ({source}) is not a setting{flat}{}", nearest(name)));
                continue;
            };
            match plain(value.get_ref()) {
                Some(text) => self.set(setting, text, source),
                None => {
                    let allowed = setting.kind.allowed();
                    self.problem(format!(
                        "{name} ({source}) must be {allowed}, not a date, list or table."
                    ));
                }
            }
        }
    }

    fn read_env(&mut self, env: &Env) {
        for setting in SETTINGS {
            let name = setting.env();
            // An empty CASEBOOK_METRICS_LISTEN says something, namely no metrics.
            let may_be_empty = setting.name == "metrics_listen";
            if let Some(text) = env.get(&name).filter(|text| may_be_empty || !text.is_empty()) {
                self.set(setting, text.clone(), Source::Env(name));
            }
        }
    }

    /// A misspelt variable would otherwise be a setting that silently does nothing.
    fn refuse_unknown(&mut self, env: &Env) {
        let known: HashSet<String> = SETTINGS
            .iter()
            .map(Setting::env)
            .chain(OTHER_VARIABLES.iter().map(|(name, _)| (*name).to_owned()))
            // `env:NAME` makes NAME ours.
            .chain(self.found.values().filter_map(|found| {
                found.text.as_ref()?.expose().strip_prefix("env:").map(str::to_owned)
            }))
            .collect();
        for (name, value) in env {
            let Some(rest) = name.strip_prefix("CASEBOOK_") else { continue };
            if !known.contains(name) && !is_service_link(rest, value) {
                let hint = nearest_named(&rest.to_ascii_lowercase(), Setting::env);
                self.problem(format!("The environment variable {name} is not a setting{hint}"));
            }
        }
    }

    /// Replaces `file:` and `env:` references by what they refer to.
    fn open_secrets(&mut self, env: &Env) {
        for setting in SETTINGS.iter().filter(|setting| setting.is_secret()) {
            let Some(found) = self.found.get(setting.name) else { continue };
            let Some(text) = &found.text else { continue };
            match open(text.expose(), env) {
                Ok(opened) => {
                    let source = found.source.clone();
                    self.set(setting, opened, source);
                }
                Err(why) => {
                    let sentence = format!("{} ({}) {why}.", setting.name, found.source);
                    self.forget(setting.name);
                    self.problem(sentence);
                }
            }
        }
    }
}

/// What a secret's text refers to. `Err` completes the sentence "<setting> ...".
pub(super) fn open(text: &str, env: &Env) -> Result<String, String> {
    if let Some(path) = text.strip_prefix("file:") {
        return match std::fs::read_to_string(path) {
            Ok(content) => Ok(content.trim().to_owned()),
            Err(cause) => Err(format!("refers to the file {path}: {cause}")),
        };
    }
    if let Some(name) = text.strip_prefix("env:") {
        return match env.get(name).filter(|value| !value.is_empty()) {
            Some(value) => Ok(value.trim().to_owned()),
            None => Err(format!("refers to the environment variable {name}, which is not set")),
        };
    }
    if text.starts_with("aws-ssm:") {
        return Err("refers to AWS Parameter Store, which this build cannot read: let your \
                    platform put the parameter into a file or a variable and say file: or env:"
            .into());
    }
    Ok(text.to_owned())
}

/// One sentence: what, from where, which value unless it is secret, and what is allowed.
pub(super) fn refusal(setting: &Setting, text: &str, source: &Source, allowed: &str) -> String {
    let name = setting.name;
    if setting.is_secret() {
        format!("{name} ({source}) must be {allowed}.")
    } else {
        format!("{name} = {text:?} ({source}) must be {allowed}.")
    }
}

fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(yes) => Some(yes.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            // 0x1000 is a number too.
            Some(match i128::from_str_radix(&digits, number.radix()) {
                Ok(number) => number.to_string(),
                Err(_) => digits,
            })
        }
        DeValue::Array(_) | DeValue::Table(_) | DeValue::Datetime(_) => None,
    }
}

/// Kubernetes announces every service of a namespace by variables in its name, so one that is called
/// `casebook` sets CASEBOOK_PORT, CASEBOOK_SERVICE_HOST and the like. They are not for us.
pub(super) fn is_service_link(rest: &str, value: &str) -> bool {
    let is_url = value.starts_with("tcp://") || value.starts_with("udp://");
    let rest = format!("_{rest}");
    rest.ends_with("_SERVICE_HOST")
        || rest.ends_with("_SERVICE_PORT")
        || rest.contains("_SERVICE_PORT_")
        || (rest.ends_with("_PORT") && is_url)
        || rest.split_once("_PORT_").is_some_and(|(_, port)| {
            let mut parts = port.split('_');
            parts.next().is_some_and(|number| number.parse::<u16>().is_ok())
                && parts.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
        })
}

/// The end of a sentence that refuses a name: "; did you mean pool_max_size?"
fn nearest(name: &str) -> String {
    nearest_named(name, |setting| setting.name.to_owned())
}

fn nearest_named(name: &str, spell: impl Fn(&Setting) -> String) -> String {
    let likeness = |setting: &Setting| {
        // One measure favours a common beginning, the other a common rest; people get either wrong.
        let edits = strsim::normalized_damerau_levenshtein(name, setting.name);
        (edits + strsim::jaro_winkler(name, setting.name)) / 2.0
    };
    SETTINGS
        .iter()
        .map(|setting| (likeness(setting), setting))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .filter(|(likeness, _)| *likeness > 0.6)
        .map_or_else(
            || "; `casebook config list` names them all.".into(),
            |(_, setting)| format!("; did you mean {}?", spell(setting)),
        )
}

/// Reads a `.env` file: `NAME=value` lines, `#` comments, optional `export` and quotes, nothing expanded.
pub fn read_env_file(path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let shown = path.display();
    let content = std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::one(format!("The environment file {shown}: {cause}.")))?;
    let mut pairs = Vec::new();
    for (index, line) in content.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let pair = line.strip_prefix("export ").unwrap_or(line).split_once('=');
        let Some((name, value)) = pair.filter(|(name, _)| !name.trim().is_empty()) else {
            // The line is not quoted: it may hold a secret.
            let at = index + 1;
            return Err(ConfigError::one(format!("{shown} line {at} must be NAME=value.")));
        };
        pairs.push((name.trim().to_owned(), unquote(value.trim()).to_owned()));
    }
    Ok(pairs)
}

fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.split_once(quote)) {
            return inner.0;
        }
    }
    // A comment needs a space before it: a password may hold a `#`.
    value.split_once(" #").map_or(value, |(value, _)| value.trim_end())
}
