//! What the configuration accepts, refuses and shows.

use super::{limits::ID_MAX_BYTES, sources::is_service_link, *};

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(None, pairs(env), pairs(flags))
}

fn file(content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

fn load_file(content: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(Some(file(content).path().into()), pairs(env), [])
}

/// The problem of a configuration that has exactly one.
#[track_caller]
fn problem(result: Result<Config, ConfigError>) -> String {
    let mut problems = result.unwrap_err().problems;
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.remove(0)
}

fn url(config: &Config) -> &str {
    config.database_url.as_ref().unwrap().expose()
}

#[test]
fn nothing_set_gives_the_documented_defaults() {
    let config = load(&[], &[]).unwrap();
    assert!(config.is_embedded());
    assert_eq!(config.listen.to_string(), DEFAULT_ADDRESS);
    assert_eq!(config.metrics_listen, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(config.auth, Auth::None);
    assert!(config.migrate_on_start);
    assert_eq!((config.pool_max_size, config.pool_min_idle), (30, 2));
    assert_eq!(config.message_in_max_bytes, 4 * 1024 * 1024);
    assert_eq!((config.deadline_default_ms, config.deadline_max_ms), (30_000, 60_000));
    assert_eq!(config.owner_database_url, None);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn every_setting_is_documented_and_its_names_derive_from_one() {
    let mut names = std::collections::HashSet::new();
    for setting in SETTINGS {
        let name = setting.name;
        assert!(names.insert(name), "{name} twice");
        assert!(!setting.unit.is_empty(), "{name}");
        let consequence = setting.consequence;
        assert!(consequence.len() > 20 && consequence.ends_with('.'), "{name}: {consequence}");
        assert!(!consequence.trim_end_matches('.').contains(". "), "{name}: one sentence");
        assert_eq!(setting.env(), format!("CASEBOOK_{}", name.to_uppercase()));
        assert_eq!(setting.flag(), name.replace('_', "-"));
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        assert!(name.bytes().all(is_plain), "{name}");
        // A number that is a time or a size says so in its name.
        for unit in ["ms", "bytes", "percent"] {
            assert_eq!(setting.unit == unit, name.ends_with(&format!("_{unit}")), "{name}");
        }
        for older in setting.older {
            assert!(OLDER.iter().any(|known| known.name == *older), "{older}");
        }
        if let (Kind::Number { min, max }, DefaultValue::Number(n)) =
            (setting.kind, setting.default)
        {
            assert!((min..=max).contains(&n), "{name}");
        }
    }
}

#[test]
fn every_setting_can_be_given_in_each_way() {
    let config = load(&[], &[]).unwrap();
    for setting in SETTINGS {
        // A value in force is a value that may be set.
        let Some(text) = config.provenance[setting.name].text.as_ref() else { continue };
        let text = text.expose();
        let by_flag = load(&[], &[(setting.name, text)]).unwrap();
        assert_eq!(by_flag.source(setting.name), Some(&Source::Flag(setting.flag())));
        let by_env = load(&[(&setting.env(), text)], &[]).unwrap();
        assert_eq!(by_env.source(setting.name), Some(&Source::Env(setting.env())));
        let by_file = load_file(&format!("{} = {text:?}", setting.name), &[]).unwrap();
        assert!(matches!(by_file.source(setting.name), Some(Source::File { line: 1, .. })));
    }
}

#[test]
fn numbers_are_held_to_their_bounds() {
    for setting in SETTINGS {
        let Kind::Number { min, max } = setting.kind else { continue };
        let name = setting.name;
        for bad in [max + 1, min.wrapping_sub(1)] {
            let error = load(&[(&setting.env(), &bad.to_string())], &[]).unwrap_err().to_string();
            let allowed = format!("must be a whole number from {min} to {max}.");
            assert!(error.contains(&allowed) && error.contains(&setting.env()), "{name}: {error}");
        }
        for (text, is_max) in [(max, true), (min, false)] {
            // Pairs that must be ordered are moved together.
            let others: Vec<_> = [
                ("pool_min_idle", "pool_max_size"),
                ("page_size_default", "page_size_max"),
                ("deadline_default_ms", "deadline_max_ms"),
                ("message_in_max_bytes", "batch_message_in_max_bytes"),
                ("retry_base_ms", "retry_max_ms"),
                ("blob_part_bytes", "blob_in_flight_bytes"),
            ]
            .iter()
            .filter_map(|(low, high)| match (is_max, name) {
                (true, n) if n == *low => Some(*high),
                (false, n) if n == *high => Some(*low),
                _ => None,
            })
            .collect();
            let text = text.to_string();
            let mut flags = vec![(name, text.as_str())];
            flags.extend(others.iter().map(|other| (*other, text.as_str())));
            assert!(load(&[], &flags).is_ok(), "{name} = {text}");
        }
    }
    assert_eq!(
        problem(load(&[("CASEBOOK_READ_LANES", "two")], &[])),
        "read_lanes = \"two\" (environment variable CASEBOOK_READ_LANES) must be a whole number from 1 to 64."
    );
}

#[test]
fn a_flag_wins_over_the_environment_which_wins_over_the_file() {
    let file = file(
        "read_lanes = 3\nwrite_lanes = 3\nbatch_max = 0x10\n\n# a comment\npool_verify = false\n",
    );
    let config = Config::load(
        Some(file.path().into()),
        pairs(&[("CASEBOOK_READ_LANES", "4"), ("CASEBOOK_WRITE_LANES", "4")]),
        pairs(&[("read_lanes", "5")]),
    )
    .unwrap();
    assert_eq!((config.read_lanes, config.write_lanes, config.batch_max), (5, 4, 16));
    assert!(!config.pool_verify);
    assert!(config.source("pool_verify").unwrap().to_string().ends_with("line 6"));
    assert_eq!(config.source("read_lanes").unwrap().to_string(), "flag --read-lanes");

    let named = [("CASEBOOK_CONFIG".to_owned(), file.path().display().to_string())];
    assert_eq!(Config::load(None, named, []).unwrap().read_lanes, 3);
    assert!(problem(Config::load(Some("/nowhere.toml".into()), [], [])).contains("/nowhere.toml"));
}

#[test]
fn an_empty_variable_is_unset_except_where_empty_says_something() {
    let config = load(
        &[("CASEBOOK_READ_LANES", ""), ("DATABASE_URL", ""), ("CASEBOOK_METRICS_LISTEN", "")],
        &[],
    )
    .unwrap();
    assert_eq!(config.read_lanes, 2);
    assert!(config.is_embedded());
    assert_eq!(config.metrics_listen, None);
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    let said = problem(load(&[("CASEBOOK_POOL_SIZE", "3")], &[]));
    assert!(
        said.contains("CASEBOOK_POOL_SIZE") && said.contains("CASEBOOK_POOL_MAX_SIZE?"),
        "{said}"
    );
    let said = problem(load_file("\nlisten_on = \"x\"", &[]));
    assert!(said.contains("line 2") && said.ends_with("did you mean listen?"), "{said}");
    let said = problem(load_file("[pool]\nmax_size = 3", &[]));
    assert!(said.contains("without tables"), "{said}");
    let said = problem(load(&[("CASEBOOK_QUUX", "3")], &[]));
    assert!(said.ends_with("`casebook config list` names them all."), "{said}");
    assert!(problem(load(&[], &[("quux", "3")])).starts_with("--quux"));
}

#[test]
fn all_problems_are_told_at_once() {
    let env = [("CASEBOOK_READ_LANES", "0"), ("CASEBOOK_AUTH", "maybe"), ("CASEBOOK_X", "1")];
    let error = load(&env, &[("write_lanes", "0")]).unwrap_err();
    assert_eq!(error.problems.len(), 4, "{error}");
    assert_eq!(error.to_string().lines().count(), 4);
}

#[test]
fn kubernetes_service_links_are_not_taken_for_settings() {
    let links = [
        ("CASEBOOK_SERVICE_HOST", "10.0.0.7"),
        ("CASEBOOK_SERVICE_PORT", "50051"),
        ("CASEBOOK_SERVICE_PORT_GRPC", "50051"),
        ("CASEBOOK_PORT", "tcp://10.0.0.7:50051"),
        ("CASEBOOK_PORT_50051_TCP", "tcp://10.0.0.7:50051"),
        ("CASEBOOK_PORT_50051_TCP_ADDR", "10.0.0.7"),
        ("CASEBOOK_METRICS_SERVICE_HOST", "10.0.0.7"),
        ("CASEBOOK_METRICS_PORT_9464_TCP_PORT", "9464"),
        // And one called `postgres` must not look like half a database.
        ("POSTGRES_PORT", "tcp://10.0.0.8:5432"),
    ];
    assert!(load(&links, &[]).unwrap().is_embedded());
    assert!(problem(load(&[("CASEBOOK_PORT", "50051")], &[])).contains("CASEBOOK_PORT"));
    assert!(!is_service_link("POOL_PORT_X", "1"));
}

#[test]
fn values_are_read_as_documented() {
    let config = load(
        &[("CASEBOOK_POOL_VERIFY", "off"), ("CASEBOOK_BATCH_MAX", "1_0")],
        &[("listen", "unix:///run/casebook.sock"), ("metrics_listen", "off")],
    )
    .unwrap();
    assert!(!config.pool_verify);
    assert_eq!(config.batch_max, 10);
    assert_eq!(config.listen, Listen::Unix("/run/casebook.sock".into()));
    assert_eq!(config.metrics_listen, None);
    assert_eq!(load(&[], &[("listen", "localhost:1")]).unwrap().listen.to_string(), "127.0.0.1:1");

    for (name, bad) in [
        ("listen", "50051"),
        ("listen", "db.example.com:1"),
        ("listen", "unix:relative"),
        ("listen", ""),
        ("metrics_listen", "9464"),
        ("default_tenant", "Acme"),
        ("data_dir", ""),
        ("log_filter", "a=b=c"),
        ("log_format", "xml"),
        ("pool_verify", "maybe"),
        ("retry_attempts_max", "1.5"),
        ("read_lanes", "-1"),
    ] {
        let said = problem(load(&[], &[(name, bad)]));
        let start = format!("{name} = {bad:?} (flag --{}) must be ", name.replace('_', "-"));
        assert!(said.starts_with(&start) && said.ends_with('.'), "{said}");
    }
    assert!(
        problem(load_file("read_lanes = [2]", &[])).contains("whole number from 1 to 64, not a")
    );
}

#[test]
fn keeping_the_audit_log_for_less_than_half_a_year_is_warned_of() {
    let warned = |days| load(&[], &[("audit_keep_min_days", days)]).unwrap().warnings;
    assert_eq!(warned("183"), Vec::<String>::new());
    let [warning] = &warned("182")[..] else { panic!("a warning") };
    assert!(warning.starts_with("audit_keep_min_days = 182 (flag --"), "{warning}");
    assert!(load(&[], &[("audit_keep_min_days", "0")]).is_err());
    // Empty is unset: nothing is archived.
    let unset = load(&[], &[("audit_archive_dir", "")]).unwrap().audit_archive_dir;
    assert_eq!(unset, None);
}

#[test]
fn values_must_fit_together() {
    for (low, high, bad) in [
        ("pool_min_idle", "pool_max_size", ("9", "8")),
        ("page_size_default", "page_size_max", ("9", "8")),
        ("deadline_default_ms", "deadline_max_ms", ("9", "8")),
        ("retry_base_ms", "retry_max_ms", ("9", "8")),
        ("message_in_max_bytes", "batch_message_in_max_bytes", ("65537", "65536")),
    ] {
        let said = problem(load(&[], &[(low, bad.0), (high, bad.1)]));
        assert!(said.contains(low) && said.contains(high), "{said}");
    }
    let same = problem(load(&[], &[("listen", "127.0.0.1:1"), ("metrics_listen", "127.0.0.1:1")]));
    assert!(same.contains("different ports"), "{same}");
    let ports = load(&[], &[("listen", "127.0.0.1:0"), ("metrics_listen", "127.0.0.1:0")]);
    assert!(ports.is_ok(), "port 0 is a different port each time");
}

#[test]
fn no_token_is_asked_for_only_where_nobody_else_can_come() {
    let auth = |env: &[(&str, &str)], flags: &[(&str, &str)]| load(env, flags).unwrap().auth;
    let database = ("DATABASE_URL", "postgres://u@localhost/d");
    assert_eq!(auth(&[], &[]), Auth::None);
    assert_eq!(auth(&[], &[("listen", "unix:/s")]), Auth::None);
    assert_eq!(auth(&[], &[("listen", "[::1]:1")]), Auth::None);
    assert_eq!(auth(&[], &[("listen", "0.0.0.0:1")]), Auth::Token);
    assert_eq!(auth(&[database], &[]), Auth::Token);
    assert_eq!(auth(&[database], &[("auth", "none")]), Auth::None);
    for address in ["0.0.0.0:1", "[::]:1", "10.0.0.7:1", "[::ffff:10.0.0.7]:1"] {
        let said = problem(load(&[], &[("auth", "none"), ("listen", address)]));
        assert!(said.starts_with("auth = \"none\" (flag --auth) is refused on"), "{said}");
        assert!(said.contains(address), "{said}");
    }
    assert_eq!(auth(&[], &[("auth", "none"), ("listen", "[::ffff:127.0.0.1]:1")]), Auth::None);
}

#[test]
fn the_database_has_many_names() {
    for (env, expected) in [
        (&[("CASEBOOK_DATABASE_URL", "postgres://u:p@h/d")][..], "postgresql://u:p@h/d"),
        (&[("DATABASE_URL", "postgresql+psycopg2://u:p@h/d")], "postgresql://u:p@h/d"),
        (&[("DB_DATABASE_URL", "postgresql+asyncpg://u@h/d?ssl=prefer")], "postgresql://u@h/d"),
        (
            &[("POSTGRES_HOST", "h"), ("POSTGRES_USER", "u"), ("POSTGRES_PASSWORD", "p@:/?#%")],
            "postgresql://u:p%40%3A%2F%3F%23%25@h:5432/puda_storage",
        ),
        (
            &[
                ("POSTGRES_HOST", "::1"),
                ("POSTGRES_PORT", "6"),
                ("POSTGRES_USER", "u"),
                ("POSTGRES_DB", "d"),
            ],
            "postgresql://u@[::1]:6/d",
        ),
        (
            &[("CASEBOOK_DATABASE_URL", "env:THE_URL"), ("THE_URL", "postgres://u@h/d")],
            "postgresql://u@h/d",
        ),
    ] {
        let config = load(env, &[]).unwrap();
        assert_eq!(url(&config), expected);
        assert_eq!(config.owner_database_url, config.database_url);
        assert!(!config.migrate_on_start && !config.is_embedded());
        assert!(
            config.warnings.iter().any(|w| w.contains("not encrypted")) != expected.contains("::1")
        );
    }
    let secret = file("postgres://u:p@h/d\n");
    let reference = format!("file:{}", secret.path().display());
    assert_eq!(url(&load(&[], &[("database_url", &reference)]).unwrap()), "postgresql://u:p@h/d");
}

#[test]
fn two_databases_are_refused_naming_both() {
    let a = "postgres://u:secret1@h/a";
    let b = "postgres://u:secret2@h/b";
    for (first, second) in [
        ("DATABASE_URL", "DB_DATABASE_URL"),
        ("CASEBOOK_DATABASE_URL", "DATABASE_URL"),
        ("CASEBOOK_DATABASE_URL", "DB_DATABASE_URL"),
    ] {
        let said = problem(load(&[(first, a), (second, b)], &[]));
        assert!(said.contains(first) && said.contains(second), "{said}");
        assert!(said.contains("@h:5432/a") && !said.contains("secret"), "{said}");
    }
    let host = [("POSTGRES_HOST", "h"), ("POSTGRES_USER", "u"), ("DATABASE_URL", a)];
    assert!(problem(load(&host, &[])).contains("POSTGRES_HOST"));
    let said = problem(load_file(&format!("database_url = {a:?}"), &[("DATABASE_URL", b)]));
    assert!(said.contains("line 1") && said.contains("DATABASE_URL"), "{said}");

    // The same database in another spelling is no conflict, another password is.
    let same = [
        ("DATABASE_URL", a),
        ("DB_DATABASE_URL", "postgresql+x://u:secret1@h:5432/a?sslmode=disable"),
    ];
    assert!(load(&same, &[]).is_ok());
    let said =
        problem(load(&[("DATABASE_URL", a), ("DB_DATABASE_URL", "postgres://u:no@h/a")], &[]));
    assert!(said.contains("different passwords") && !said.contains("secret"), "{said}");

    // Our own names layer as every setting does, and a flag is never an accident.
    let layered = load_file(&format!("database_url = {a:?}"), &[("CASEBOOK_DATABASE_URL", b)]);
    assert!(url(&layered.unwrap()).ends_with("/b"));
    let config = load(&[("DATABASE_URL", b)], &[("database_url", a)]).unwrap();
    assert!(url(&config).ends_with("/a"));
    assert!(config.warnings[0].contains("overrides DATABASE_URL"), "{:?}", config.warnings);
    assert!(!format!("{:?}", config.warnings).contains("secret"));
}

#[test]
fn vectors_live_in_the_main_database() {
    let a = "postgres://u:p@h/a";
    assert!(load(&[("DATABASE_URL", a), ("PGVECTOR_DATABASE_URL", a)], &[]).is_ok());
    for env in [
        &[("DATABASE_URL", a), ("PGVECTOR_DATABASE_URL", "postgres://u:p@h/b")][..],
        &[("PGVECTOR_DATABASE_URL", a)],
    ] {
        let said = problem(load(env, &[]));
        assert!(said.contains("one transaction"), "{said}");
    }
    assert!(load(&[("VECTORDB_BACKEND", "pgvector")], &[]).is_ok());
    for backend in ["qdrant", "pinecone"] {
        let said = problem(load(&[("VECTORDB_BACKEND", backend)], &[]));
        assert!(said.contains("no such projection"), "{said}");
    }
    assert!(problem(load(&[("VECTORDB_BACKEND", "faiss")], &[])).contains("must be pgvector"));
}

#[test]
fn a_database_that_cannot_be_meant_is_refused_without_showing_it() {
    for (bad, hint) in [
        ("postgres://u:hush@h/d?sslmode=require", "no TLS to PostgreSQL"),
        ("postgres://u:hush@h/d?a=b&sslmode=verify-full", "no TLS to PostgreSQL"),
        ("postgres://u:hush@h/d?ssl%6Dode=require", "no TLS to PostgreSQL"),
        ("postgresql+asyncpg://u:hush@h/d?ssl=true", "no TLS to PostgreSQL"),
        ("postgres://u:hush@h/d?channel_binding=require", "no TLS to PostgreSQL"),
        ("postgres://u:hush@h/d?sslrootcert=/hush", "no TLS to PostgreSQL"),
        ("postgres://u:p@hush@h/d", "percent-encoded"),
        ("postgres://u:p@hu/sh@h/d", "percent-encoded"),
        ("postgres://u:hush@h:port/d", "port"),
        ("postgres://u:p@h/d?hush=1", "parameter"),
        ("postgres://", "host"),
        ("sqlite:///hush.db", "SQLite"),
        ("mysql://u:hush@h/d", "postgres://"),
        ("host=h password=hush", "postgres://"),
        ("aws-ssm:/hush", "Parameter Store"),
        ("env:NOT_SET", "NOT_SET"),
        ("file:/nowhere", "/nowhere"),
    ] {
        let said = problem(load(&[], &[("database_url", bad)]));
        assert!(said.starts_with("database_url (flag --database-url) "), "{said}");
        assert!(said.contains(hint) && !said.contains("hush"), "{bad}: {said}");
    }
    assert!(problem(load(&[("DATABASE_URL", "sqlite:///x")], &[])).starts_with("DATABASE_URL ("));
    let lone = problem(load(&[], &[("owner_database_url", "postgres://u@h/d")]));
    assert!(lone.contains("set both"), "{lone}");
    for half in [("POSTGRES_HOST", "h"), ("POSTGRES_USER", "u"), ("POSTGRES_PASSWORD", "hush")] {
        let said = problem(load(&[half], &[]));
        assert!(said.contains(half.0) && !said.contains("hush"), "{said}");
    }
}

#[test]
fn older_pools_become_one_bound() {
    for (env, size) in [
        (&[("DB_POOL_SIZE", "20"), ("DB_MAX_OVERFLOW", "15")][..], 35),
        (&[("DB_POOL_SIZE", "20")], 40),
        (&[("DB_MAX_OVERFLOW", "5")], 15),
        (&[("DB_POOL_SIZE", "20"), ("CASEBOOK_POOL_MAX_SIZE", "7")], 7),
    ] {
        assert_eq!(load(env, &[]).unwrap().pool_max_size, size, "{env:?}");
    }
    assert_eq!(
        load_file("pool_max_size = 9", &[("DB_POOL_SIZE", "20")]).unwrap().pool_max_size,
        40
    );
    let config = load(&[("DB_POOL_TIMEOUT", "1.5"), ("DB_POOL_RECYCLE", "1800")], &[]).unwrap();
    assert_eq!((config.pool_wait_timeout_ms, config.pool_max_lifetime_ms), (1500, 1_800_000));
    for (name, bad) in [
        ("DB_POOL_SIZE", "many"),
        ("DB_POOL_SIZE", "5000"),
        ("DB_MAX_OVERFLOW", "-1"),
        ("DB_POOL_TIMEOUT", "soon"),
        ("DB_POOL_RECYCLE", "-1"),
        ("DB_POOL_RECYCLE", "inf"),
    ] {
        assert!(problem(load(&[(name, bad)], &[])).contains(name));
    }
}

#[test]
fn every_older_name_is_honoured_or_answered_with_a_reason() {
    assert_eq!(OLDER.len(), 28 + 3);
    for older in OLDER {
        assert!(older.meaning.ends_with('.'), "{}", older.name);
        let value = match older.name {
            name if name.contains("URL") => "postgres://u@h/d",
            name if name.starts_with("DB_") => "7",
            _ => "x",
        };
        match load(&[(older.name, value)], &[]) {
            Err(error) => assert!(error.to_string().contains(older.name), "{error}"),
            Ok(config) if older.meaning.starts_with("Not used") => {
                assert_eq!(config.warnings.len(), 1);
                assert!(config.warnings[0].contains(older.name));
            }
            Ok(config) => {
                let honoured = config.provenance.values().any(
                    |found| matches!(&found.source, Source::Env(name) if name.contains(older.name)),
                );
                assert!(honoured, "{}", older.name);
            }
        }
    }
    let env = [("AWS_REGION", "hush"), ("S3_SECRET_KEY", "hush"), ("QDRANT_API_KEY", "hush")];
    let warnings = load(&env, &[]).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(!warnings[0].contains("hush"));
    assert!(load(&[("DB_ECHO", "false")], &[]).is_ok());
    assert!(problem(load(&[("DB_ECHO", "true")], &[])).contains("never logs SQL"));
    assert!(problem(load(&[("DATABASE_PATH", "x.db")], &[])).contains("own PostgreSQL"));
    let store = problem(load(&[("PARAMETER_STORE_DB_URL", "/x")], &[]));
    assert!(store.contains("file:") && store.contains("env:"), "{store}");
}

#[test]
fn s3_has_the_names_of_two_systems() {
    let puda = [
        ("S3_ENDPOINT", "http://puda-minio:9000"),
        ("S3_ACCESS_KEY", "who"),
        ("S3_SECRET_KEY", "hush"),
        ("AWS_SECRET_ACCESS_KEY", "hush"),
        ("S3_BUCKET_NAME", "evidence"),
        ("AWS_REGION", "eu-central-1"),
    ];
    let config = load(&puda, &[]).unwrap();
    let bucket = |name: &str| BlobUrl::S3 { bucket: name.into(), prefix: String::new() };
    assert_eq!(config.blob_store_url, Some(bucket("evidence")));
    assert_eq!(config.s3_endpoint.as_deref(), Some("http://puda-minio:9000"));
    assert_eq!(config.s3_region, "eu-central-1");
    assert_eq!(config.s3_secret_access_key.as_ref().unwrap().expose(), "hush");
    assert!(config.s3_path_style);
    assert!(!config.print(false).contains("hush"));

    let eje = load(&[("S3_ENDPOINT_URL", "https://s3.example.org")], &[]).unwrap();
    assert_eq!(eje.blob_store_url, Some(bucket("eje-evidence")));
    assert_eq!((eje.s3_region.as_str(), eje.s3_path_style), ("us-east-1", true));
    // What is on many machines says nothing about blobs.
    let embedded = load(&[("AWS_ACCESS_KEY_ID", "who")], &[]).unwrap();
    assert!(matches!(embedded.blob_store_url, Some(BlobUrl::File(path)) if path.is_absolute()));
    assert!(!embedded.s3_path_style);
    let url = "postgres://role@localhost/records";
    assert_eq!(load(&[("DATABASE_URL", url)], &[]).unwrap().blob_store_url, None);
    let own = load(&[("S3_BUCKET_NAME", "a")], &[("blob_store_url", "memory:")]).unwrap();
    assert_eq!(own.blob_store_url, Some(BlobUrl::Memory));

    let two = [("S3_ENDPOINT", "http://a"), ("S3_ENDPOINT_URL", "http://b")];
    assert!(problem(load(&two, &[])).contains("S3_ENDPOINT_URL and S3_ENDPOINT differ"));
    let half = [("S3_BUCKET_NAME", "a"), ("S3_ACCESS_KEY", "who")];
    assert!(problem(load(&half, &[])).contains("s3_secret_access_key"));
    for (url, feature, has) in
        [("gs://a", "gcs", cfg!(feature = "gcs")), ("az://a", "azure", cfg!(feature = "azure"))]
    {
        let loaded = load(&[], &[("blob_store_url", url), ("azure_account", "b")]);
        assert_eq!(loaded.is_ok(), has, "{url}");
        if let Err(error) = loaded {
            let said = error.to_string();
            assert!(said.contains("blob_store_url") && said.contains(feature), "{said}");
        }
    }
    let nobody = problem(load(&[], &[("blob_store_url", "az://a")]));
    let lacks = if cfg!(feature = "azure") { "azure_account" } else { "feature azure" };
    assert!(nobody.contains(lacks), "{nobody}");
}

#[test]
fn a_token_key_is_32_bytes() {
    for key in [
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "-_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ] {
        assert!(load(&[], &[("token_key", key)]).unwrap().token_key.is_some());
    }
    let said = problem(load(&[], &[("token_key", "aHVzaA==")]));
    assert!(said.contains("32 bytes") && !said.contains("aHVzaA"), "{said}");
}

#[test]
fn keys_of_blobs_are_read_and_kept_in_one_place() {
    let key = "qrvM3e7/ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJk=";
    let two = format!("new:{key},old:{key}");
    let ring = load(&[("CASEBOOK_BLOB_KEY", &two)], &[]).unwrap().blob_key.unwrap();
    assert_eq!(ring.key_ids().collect::<Vec<_>>(), ["new", "old"]);
    let lines = file(&two.replace(',', "\n"));
    let named = format!("file:{}", lines.path().display());
    assert_eq!(load(&[("CASEBOOK_BLOB_KEY", &named)], &[]).unwrap().blob_key.unwrap(), ring);
    assert!(load(&[], &[]).unwrap().blob_key.is_none());
    let said = problem(load(&[("CASEBOOK_BLOB_KEY", key)], &[]));
    assert!(said.contains("casebook key generate") && said.contains("no colon"), "{said}");
    assert!(!said.contains(key), "{said}");
    let said = problem(load(&[("CASEBOOK_BLOB_KEY", &two)], &[("blob_key_file", "/keys")]));
    assert!(said.contains("both set") && !said.contains(key), "{said}");
}

#[test]
fn nothing_secret_is_ever_shown() {
    let key = "qrvM3e7/ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJk=";
    let blob_key = format!("a-key:{key}");
    let env = [
        ("CASEBOOK_DATABASE_URL", "postgres://role:hush@db.internal/records?application_name=hush"),
        ("CASEBOOK_OWNER_DATABASE_URL", "postgres://owner:hush@db.internal/records"),
        ("CASEBOOK_TOKEN_KEY", key),
        ("CASEBOOK_BLOB_KEY", &blob_key),
    ];
    let config = load(&env, &[]).unwrap();
    let (open, redacted) = (config.print(false), config.print(true));
    assert!(open.contains("postgres://role:***@db.internal:5432/records"), "{open}");
    assert!(open.contains("postgres://owner:***@"), "{open}");
    assert!(!redacted.contains("records"), "{redacted}");
    for text in [open, redacted, format!("{config:?}")] {
        assert!(!text.contains("hush") && !text.contains(key), "{text}");
    }
    // A file that cannot be parsed is reported without quoting it.
    let said = problem(load_file("database_url = \"postgres://u:hush@h/d\nx = 1", &[]));
    assert!(said.contains("line 1") && !said.contains("hush"), "{said}");
}

#[test]
fn what_is_printed_can_be_read_again() {
    let flags = [("listen", "unix:/run/a \"b\".sock"), ("pool_verify", "no"), ("batch_max", "1_0")];
    let config = load(&[], &flags).unwrap();
    let printed = config.print(false);
    assert_eq!(printed.lines().count(), SETTINGS.len());
    assert!(printed.contains("# flag --batch-max"), "{printed}");
    let again = load_file(&printed, &[]).unwrap();
    assert_eq!((again.listen, again.pool_verify, again.batch_max), (config.listen, false, 10));
}

#[test]
fn the_list_has_everything_and_fits_the_width() {
    let list = list();
    for setting in SETTINGS {
        assert!(list.contains(&format!("\n  {}\n", setting.name)));
        assert!(list.contains(&format!("env {}, flag --{}\n", setting.env(), setting.flag())));
    }
    for older in OLDER {
        assert!(list.contains(&format!("\n  {}\n", older.name)));
    }
    assert_eq!(list.lines().find(|line| line.chars().count() > 100), None);
}

#[test]
fn limits_name_their_units() {
    let limits = load(&[], &[("page_size_max", "70")]).unwrap().limits();
    let find = |name: &str| limits.iter().find(|limit| limit.name == name).unwrap();
    assert_eq!((find("page_size_max").value, find("page_size_max").configurable), (70, true));
    assert_eq!(find("id_max_bytes").value, i64::try_from(ID_MAX_BYTES).unwrap());
    assert!(!find("id_max_bytes").configurable);
    for limit in &limits {
        let suffix = limit.name.rsplit('_').next().unwrap();
        let expected =
            if ["bytes", "ms", "days", "percent"].contains(&suffix) { suffix } else { "count" };
        assert_eq!(limit.unit, expected, "{}", limit.name);
        assert!(limit.description.ends_with('.'), "{}", limit.name);
    }
}

#[test]
fn an_environment_file_is_read_plainly() {
    let env =
        file("# comment\n\nexport A=1\nB = \"two # words\" # why\nC='x'\nD=pass#word # why\nE=\n");
    let read = read_env_file(env.path()).unwrap();
    let expected = [("A", "1"), ("B", "two # words"), ("C", "x"), ("D", "pass#word"), ("E", "")];
    assert_eq!(read, pairs(&expected));
    let error = read_env_file(file("A=1\nhush\n").path()).unwrap_err().to_string();
    assert!(error.contains("line 2") && !error.contains("hush"), "{error}");
}

#[test]
fn a_client_finds_the_server_beside_it() {
    let client = |address: Option<&str>, env: &[(&str, &str)]| {
        Client::load(address.map(Into::into), None, pairs(env))
    };
    for (address, env, expected) in [
        (None, &[][..], "http://127.0.0.1:50051"),
        (Some("10.0.0.7:1"), &[("CASEBOOK_ADDRESS", "x:2")], "http://10.0.0.7:1"),
        (None, &[("CASEBOOK_ADDRESS", "http://x:2")], "http://x:2"),
        (None, &[("CASEBOOK_LISTEN", "0.0.0.0:3")], "http://127.0.0.1:3"),
        (None, &[("CASEBOOK_LISTEN", "[::]:3")], "http://[::1]:3"),
        (None, &[("CASEBOOK_LISTEN", "unix:/s")], "unix:/s"),
    ] {
        assert_eq!(client(address, env).unwrap().address, expected);
    }
    assert!(client(Some("https://x:1"), &[]).is_err());
    assert!(client(None, &[("CASEBOOK_LISTEN", "x")]).is_err());
    let token = client(None, &[("CASEBOOK_TOKEN", "env:T"), ("T", "cbk")]).unwrap().token;
    assert_eq!(token.unwrap().expose(), "cbk");
}
