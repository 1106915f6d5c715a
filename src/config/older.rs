//! The environment variables of the systems that Casebook replaces: honoured, or refused with a reason.

use super::{
    settings::Setting,
    sources::{Env, Layers, Source, open, refusal},
    url::{DatabaseUrl, encode},
    values::boolean,
};

/// One variable of an older system.
#[derive(Debug)]
pub struct Older {
    pub name: &'static str,
    /// What Casebook does with it, in one sentence.
    pub meaning: &'static str,
}

const fn older(name: &'static str, meaning: &'static str) -> Older {
    Older { name, meaning }
}

const QDRANT: &str =
    "Not used: this build keeps vectors in PostgreSQL and has no Qdrant projection.";
const PINECONE: &str =
    "Not used: this build keeps vectors in PostgreSQL and has no Pinecone projection.";
const ENDPOINT: &str = "Becomes s3_endpoint; blobs are then in S3_BUCKET_NAME.";
const ACCESS_KEY: &str = "Becomes s3_access_key_id.";
const SECRET_KEY: &str = "Becomes s3_secret_access_key.";

/// Every variable that the five older systems name, and what becomes of it.
pub static OLDER: &[Older] = &[
    older(
        "DATABASE_URL",
        "The same as CASEBOOK_DATABASE_URL; a driver, as in postgresql+psycopg2://, is ignored.",
    ),
    older("DB_DATABASE_URL", "The same as CASEBOOK_DATABASE_URL."),
    older("POSTGRES_HOST", "With the next four, the same as CASEBOOK_DATABASE_URL."),
    older("POSTGRES_PORT", "The port; default 5432."),
    older("POSTGRES_DB", "The database; default puda_storage."),
    older("POSTGRES_USER", "The role; needed with POSTGRES_HOST."),
    older("POSTGRES_PASSWORD", "The password."),
    older(
        "PGVECTOR_DATABASE_URL",
        "Must name the main database: a record and its vector are written in one transaction.",
    ),
    older(
        "PARAMETER_STORE_DB_URL",
        "Refused: reading AWS Parameter Store needs AWS; use file: or env: in CASEBOOK_DATABASE_URL.",
    ),
    older(
        "DATABASE_PATH",
        "Refused: Casebook has no SQLite; with no database set it starts its own PostgreSQL in data_dir.",
    ),
    older("DB_POOL_SIZE", "Added to DB_MAX_OVERFLOW (20 if unset), it is pool_max_size."),
    older("DB_MAX_OVERFLOW", "Added to DB_POOL_SIZE (10 if unset), it is pool_max_size."),
    older("DB_POOL_TIMEOUT", "Seconds; becomes pool_wait_timeout_ms."),
    older("DB_POOL_RECYCLE", "Seconds; becomes pool_max_lifetime_ms."),
    older("DB_ECHO", "Refused when true: Casebook never logs SQL with its parameters."),
    older(
        "VECTORDB_BACKEND",
        "pgvector is accepted; qdrant and pinecone are refused: this build has no such projection.",
    ),
    older("PGVECTOR_TABLE", "Not used: Casebook names its own tables."),
    older("QDRANT_HOST", QDRANT),
    older("QDRANT_PORT", QDRANT),
    older("QDRANT_API_KEY", QDRANT),
    older("QDRANT_COLLECTION", QDRANT),
    older("PINECONE_API_KEY", PINECONE),
    older("PINECONE_INDEX", PINECONE),
    older(
        "S3_BUCKET_NAME",
        "blob_store_url becomes s3:// and this; default eje-evidence where an endpoint is set.",
    ),
    older("S3_ENDPOINT_URL", ENDPOINT),
    older("S3_ENDPOINT", ENDPOINT),
    older("S3_ACCESS_KEY", ACCESS_KEY),
    older("S3_SECRET_KEY", SECRET_KEY),
    older("AWS_ACCESS_KEY_ID", ACCESS_KEY),
    older("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
    older("AWS_REGION", "Becomes s3_region."),
];

fn get<'e>(env: &'e Env, name: &str) -> Option<&'e str> {
    env.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
}

/// Lays the older names' values between the file and our own variables. Databases are left to
/// [`settle_database`], which must see every layer.
pub(super) fn apply(env: &Env, layers: &mut Layers) {
    pool_size(env, layers);
    seconds(env, layers, "DB_POOL_TIMEOUT", "pool_wait_timeout_ms");
    seconds(env, layers, "DB_POOL_RECYCLE", "pool_max_lifetime_ms");

    s3(env, layers);

    if let Some(text) = get(env, "DB_ECHO") {
        match boolean(text) {
            Some(false) => {}
            Some(true) => layers.problem(
                "DB_ECHO = true is refused: Casebook never logs SQL with its parameters, which are \
                 data about people; unset it."
                    .into(),
            ),
            None => layers.problem(format!(
                "DB_ECHO = {text:?} (environment variable) must be false, or unset."
            )),
        }
    }
    if let Some(backend) = get(env, "VECTORDB_BACKEND") {
        match backend.to_ascii_lowercase().as_str() {
            "pgvector" => {}
            "qdrant" | "pinecone" => layers.problem(format!(
                "VECTORDB_BACKEND = {backend} is refused: this build has no such projection; vectors \
                 live in PostgreSQL, so say pgvector or unset it."
            )),
            _ => layers.problem(format!(
                "VECTORDB_BACKEND = {backend:?} (environment variable) must be pgvector."
            )),
        }
    }
    if get(env, "PARAMETER_STORE_DB_URL").is_some() {
        layers.problem(
            "PARAMETER_STORE_DB_URL is refused: reading AWS Parameter Store needs AWS, which this build \
             does not speak; set CASEBOOK_DATABASE_URL, if need be to file: and a path or env: and a name."
                .into(),
        );
    }
    if get(env, "DATABASE_PATH").is_some() {
        layers.problem(
            "DATABASE_PATH is refused: Casebook does not run on SQLite; unset it, and with no database \
             set Casebook starts its own PostgreSQL in data_dir."
                .into(),
        );
    }
    let unused: Vec<&str> = OLDER
        .iter()
        .filter(|older| older.meaning.starts_with("Not used") && get(env, older.name).is_some())
        .map(|older| older.name)
        .collect();
    if !unused.is_empty() {
        layers.warn(format!(
            "Set but not used, because this build has no vector projections: {}.",
            unused.join(", ")
        ));
    }
}

/// What two systems call a setting of S3. Both may be set, to the same.
const S3: &[(&str, &[&str])] = &[
    ("s3_endpoint", &["S3_ENDPOINT_URL", "S3_ENDPOINT"]),
    ("s3_access_key_id", &["AWS_ACCESS_KEY_ID", "S3_ACCESS_KEY"]),
    ("s3_secret_access_key", &["AWS_SECRET_ACCESS_KEY", "S3_SECRET_KEY"]),
    ("s3_region", &["AWS_REGION"]),
];

/// The bucket that the oldest of them uses when nobody names one.
const BUCKET_DEFAULT: &str = "eje-evidence";

fn s3(env: &Env, layers: &mut Layers) {
    for (setting, names) in S3 {
        let mut given = names.iter().filter_map(|name| Some((*name, get(env, name)?)));
        let (Some((name, text)), Some(setting)) = (given.next(), Setting::find(setting)) else {
            continue;
        };
        if let Some((other, _)) = given.find(|(_, other)| *other != text) {
            layers.problem(format!("{name} and {other} differ: set only one of them."));
            continue;
        }
        layers.set(setting, text.to_owned(), Source::Env(name.into()));
    }
    let endpoint = ["S3_ENDPOINT_URL", "S3_ENDPOINT"].into_iter().find(|n| get(env, n).is_some());
    let (bucket, source) = match (get(env, "S3_BUCKET_NAME"), endpoint) {
        (Some(bucket), _) => (bucket, "S3_BUCKET_NAME"),
        (None, Some(endpoint)) => (BUCKET_DEFAULT, endpoint),
        // Keys and a region alone are on many machines, and say nothing about blobs.
        (None, None) => return,
    };
    if let Some(setting) = Setting::find("blob_store_url") {
        layers.set(setting, format!("s3://{bucket}"), Source::Env(source.into()));
    }
}

/// SQLAlchemy keeps `pool_size` connections and lends `max_overflow` more: together they are our one bound.
fn pool_size(env: &Env, layers: &mut Layers) {
    let (size, overflow) = (get(env, "DB_POOL_SIZE"), get(env, "DB_MAX_OVERFLOW"));
    let names = match (size, overflow) {
        (None, None) => return,
        (Some(_), None) => "DB_POOL_SIZE",
        (None, Some(_)) => "DB_MAX_OVERFLOW",
        (Some(_), Some(_)) => "DB_POOL_SIZE + DB_MAX_OVERFLOW",
    };
    let mut sum = 0u64;
    for (name, text, default) in [("DB_POOL_SIZE", size, "10"), ("DB_MAX_OVERFLOW", overflow, "20")]
    {
        let text = text.unwrap_or(default);
        match text.trim().parse::<u32>() {
            Ok(number) => sum += u64::from(number),
            Err(_) => {
                return layers.problem(format!(
                    "{name} = {text:?} (environment variable) must be a whole number from 0."
                ));
            }
        }
    }
    if let Some(setting) = Setting::find("pool_max_size") {
        layers.set(setting, sum.to_string(), Source::Env(names.into()));
    }
}

fn seconds(env: &Env, layers: &mut Layers, name: &'static str, setting: &str) {
    let (Some(text), Some(setting)) = (get(env, name), Setting::find(setting)) else { return };
    match text.trim().parse::<f64>() {
        // Out of the setting's bounds is for the setting to say, which knows them.
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            let ms = format!("{:.0}", seconds * 1000.0);
            layers.set(setting, ms, Source::Env(format!("{name}, in seconds")));
        }
        _ => layers.problem(format!(
            "{name} = {text:?} (environment variable) must be a number of seconds from 0."
        )),
    }
}

/// Brings every way to name the database together. Two that differ are an error, never a silent choice;
/// only a flag, which somebody just typed, overrides.
pub(super) fn settle_database(env: &Env, layers: &mut Layers) -> Option<DatabaseUrl> {
    let own = own_url(layers, "database_url");
    let by_flag = matches!(layers.source("database_url"), Some(Source::Flag(_)));
    let older = older_urls(env, layers, own.is_some());

    let mut in_force = own.map(|(url, source)| (url, format!("database_url ({source})")));
    for (name, text) in older {
        let url = match open(&text, env).and_then(|text| DatabaseUrl::parse(&text)) {
            Ok(url) => url,
            Err(_) if by_flag => {
                layers.warn(format!("The flag --database-url overrides {name}."));
                continue;
            }
            Err(why) => {
                layers.problem(format!("{name} (environment variable) {why}."));
                continue;
            }
        };
        match &in_force {
            None => {
                if let Some(setting) = Setting::find("database_url") {
                    layers.set(setting, url.text().to_owned(), Source::Env(name.clone()));
                }
                in_force = Some((url, name));
            }
            Some((main, _)) if main.is_same(&url) => {}
            Some(_) if by_flag => {
                layers.warn(format!("The flag --database-url overrides {name}, which says {url}."));
            }
            Some((main, first)) => {
                let how = difference(main, &url);
                layers.problem(format!("{first} and {name} {how}: set only one of them."));
            }
        }
    }
    let main = in_force.map(|(url, _)| url);
    check_pgvector(env, layers, main.as_ref());
    main
}

fn difference(a: &DatabaseUrl, b: &DatabaseUrl) -> String {
    if a.is_same_password(b) || a.to_string() != b.to_string() {
        format!("name different databases, {a} and {b}")
    } else {
        format!("give different passwords for {a}")
    }
}

/// A database setting under our own name, checked and without its driver.
pub(super) fn own_url(layers: &mut Layers, name: &'static str) -> Option<(DatabaseUrl, Source)> {
    let source = layers.source(name)?.clone();
    let text = layers.text(name)?.to_owned();
    let setting = Setting::find(name)?;
    if text.is_empty() {
        layers.problem(refusal(setting, &text, &source, &setting.kind.allowed()));
        layers.forget(name);
        return None;
    }
    match DatabaseUrl::parse(&text) {
        Ok(url) => {
            layers.set(setting, url.text().to_owned(), source.clone());
            Some((url, source))
        }
        Err(why) => {
            layers.problem(format!("{name} ({source}) {why}."));
            layers.forget(name);
            None
        }
    }
}

fn older_urls(env: &Env, layers: &mut Layers, is_set: bool) -> Vec<(String, String)> {
    let mut urls: Vec<(String, String)> = ["DATABASE_URL", "DB_DATABASE_URL"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), get(env, name)?.to_owned())))
        .collect();
    let parts: Vec<&str> = OLDER
        .iter()
        .map(|older| older.name)
        .filter(|name| name.starts_with("POSTGRES_") && postgres_part(env, name).is_some())
        .collect();
    if let Some(url) = postgres_url(env) {
        urls.push(("POSTGRES_HOST".into(), url));
    } else if !parts.is_empty() {
        let names = parts.join(", ");
        if is_set || !urls.is_empty() {
            layers.warn(format!(
                "Set but not used, because a database needs POSTGRES_HOST and POSTGRES_USER: {names}."
            ));
        } else {
            // Going on would start an empty database of our own, which is not what was meant.
            layers.problem(format!(
                "A database needs POSTGRES_HOST and POSTGRES_USER, and only {names} is set: set both, use \
                 CASEBOOK_DATABASE_URL, or unset it for the embedded PostgreSQL."
            ));
        }
    }
    urls
}

fn postgres_part<'e>(env: &'e Env, name: &str) -> Option<&'e str> {
    // A Kubernetes service called `postgres` sets POSTGRES_PORT to tcp://10.0.0.7:5432. That is not for us.
    get(env, name).filter(|value| name != "POSTGRES_PORT" || !value.contains("://"))
}

fn postgres_url(env: &Env) -> Option<String> {
    let part = |name| postgres_part(env, name);
    let (host, user) = (host_part(part("POSTGRES_HOST")?), encode(part("POSTGRES_USER")?));
    let password = part("POSTGRES_PASSWORD").map(|password| format!(":{}", encode(password)));
    let password = password.unwrap_or_default();
    let port = part("POSTGRES_PORT").unwrap_or("5432");
    let database = encode(part("POSTGRES_DB").unwrap_or("puda_storage"));
    Some(format!("postgres://{user}{password}@{host}:{port}/{database}"))
}

fn host_part(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else if host.starts_with('/') {
        encode(host)
    } else {
        host.to_owned()
    }
}

fn check_pgvector(env: &Env, layers: &mut Layers, main: Option<&DatabaseUrl>) {
    const WHY: &str =
        "a record and its vector are written in one transaction, so they need one database";
    let Some(text) = get(env, "PGVECTOR_DATABASE_URL") else { return };
    let url = open(text, env).and_then(|text| DatabaseUrl::parse(&text));
    match (url, main) {
        (Err(why), _) => {
            layers.problem(format!("PGVECTOR_DATABASE_URL (environment variable) {why}."));
        }
        (Ok(url), Some(main)) if url.is_same(main) => {}
        (Ok(url), Some(main)) => {
            let how = difference(&url, main);
            layers
                .problem(format!("PGVECTOR_DATABASE_URL and the main database URL {how}: {WHY}."));
        }
        // A main URL that was given and is wrong has been reported already.
        (Ok(_), None) if !layers.is_sound() => {}
        (Ok(url), None) => layers.problem(format!(
            "PGVECTOR_DATABASE_URL names {url}, but no main database is set: {WHY}; set \
             CASEBOOK_DATABASE_URL to it."
        )),
    }
}
