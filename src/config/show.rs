//! `config print` and `config list`: what is in force and what there is, as text.

use std::fmt::Write;

use super::{
    OLDER, OTHER_VARIABLES,
    settings::{Config, Group, Kind, SETTINGS, Setting},
    sources::Source,
    url::DatabaseUrl,
};

/// Lines are wrapped here so that the listing reads in a terminal and in a pull request alike.
const WIDTH: usize = 100;

impl Config {
    /// Every setting with its value and where that came from, as a TOML file with comments. Passwords and keys
    /// are never shown; `redacted` also leaves out where the database is, for pasting into a ticket.
    pub fn print(&self, redacted: bool) -> String {
        let mut lines = Vec::new();
        for setting in SETTINGS {
            let Some(found) = self.provenance.get(setting.name) else { continue };
            let text = found.text.as_ref().map(super::Secret::expose);
            let line = match text {
                None => format!("# {} is unset", setting.name),
                Some(_) if setting.is_secret() && redacted => {
                    format!("# {} is set", setting.name)
                }
                Some(url) if setting.kind == Kind::Url => {
                    let shown = DatabaseUrl::parse(url).map(|url| url.to_string());
                    format!("# {} = {:?}", setting.name, shown.as_deref().unwrap_or("***"))
                }
                Some(_) if setting.is_secret() => format!("# {} = \"***\"", setting.name),
                Some(text) => match setting.kind {
                    Kind::Number { .. } => format!("{} = {}", setting.name, text.trim()),
                    Kind::Bool => {
                        let yes = super::values::boolean(text).unwrap_or_default();
                        format!("{} = {yes}", setting.name)
                    }
                    _ => format!("{} = {}", setting.name, toml::Value::from(text)),
                },
            };
            lines.push((line, &found.source));
        }
        let column = lines.iter().map(|(line, _)| line.chars().count()).filter(|n| *n <= 48).max();
        let column = column.unwrap_or_default();
        let mut out = String::new();
        for (line, source) in lines {
            let source = match source {
                Source::Default => "default".into(),
                other => other.to_string(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{line:column$}  # {source}");
        }
        if redacted && !self.warnings.is_empty() {
            // A warning may say where a database is.
            let _ = writeln!(out, "# Warnings, shown without --redacted: {}", self.warnings.len());
        } else {
            for warning in &self.warnings {
                let _ = writeln!(out, "# Warning: {warning}");
            }
        }
        out
    }
}

/// Every setting with its names, default, unit and consequence, then every other variable that means
/// something.
pub fn list() -> String {
    let mut out = String::from(
        "Every setting has one name. It is a key in the TOML file that --config or CASEBOOK_CONFIG\n\
         names, an environment variable CASEBOOK_<NAME>, and a flag. A flag wins over the environment,\n\
         which wins over the file. A secret may be file:/path or env:NAME instead of the value.\n",
    );
    for group in Group::ALL {
        let _ = write!(out, "\n{}\n", group.title().to_uppercase());
        for setting in SETTINGS.iter().filter(|setting| setting.group == *group) {
            let _ = write!(out, "\n  {}\n", setting.name);
            let _ = writeln!(out, "      env {}, flag --{}", setting.env(), setting.flag());
            wrap(&mut out, &facts(setting));
            wrap(&mut out, setting.consequence);
            if !setting.older.is_empty() {
                wrap(&mut out, &format!("Older names: {}.", setting.older.join(", ")));
            }
        }
    }
    out.push_str("\nOTHER VARIABLES\n");
    for (name, meaning) in OTHER_VARIABLES {
        let _ = write!(out, "\n  {name}\n");
        wrap(&mut out, meaning);
    }
    out.push_str("\nVARIABLES OF OLDER SYSTEMS\n");
    for older in OLDER {
        let _ = write!(out, "\n  {}\n", older.name);
        wrap(&mut out, older.meaning);
    }
    out
}

/// "ms, default 30000, a whole number from 1 to 3600000".
fn facts(setting: &Setting) -> String {
    let secret = if setting.is_secret() { ", secret" } else { "" };
    let bounds = match setting.kind {
        Kind::Number { min, max } => format!(", {min} to {max}"),
        Kind::Choice(words) => format!(", {}", words.join(" or ")),
        _ => String::new(),
    };
    format!("{}{secret}{bounds}, default: {}", setting.unit, setting.default)
}

fn wrap(out: &mut String, text: &str) {
    const INDENT: &str = "      ";
    let mut width = WIDTH;
    for word in text.split_whitespace() {
        if width + 1 + word.len() > WIDTH {
            if !out.ends_with('\n') {
                out.push('\n');
            }
            out.push_str(INDENT);
            out.push_str(word);
            width = INDENT.len() + word.len();
        } else {
            out.push(' ');
            out.push_str(word);
            width += 1 + word.len();
        }
    }
    out.push('\n');
}
