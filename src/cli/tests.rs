//! What may be typed, and that the manual fits and keeps up.

use super::*;

fn words(line: &str) -> Result<Invocation, clap::Error> {
    parse(line.split_whitespace())
}

#[track_caller]
fn typed(line: &str) -> Command {
    words(line).unwrap_or_else(|error| panic!("{line}: {error}")).command
}

#[test]
fn the_tree_is_sound() {
    command().debug_assert();
}

#[test]
fn commands_become_plain_data() {
    assert_eq!(typed("casebook serve"), Command::Serve);
    assert_eq!(typed("casebook migrate up"), Command::Migrate(Migrate::Up));
    assert_eq!(typed("casebook migrate down"), Command::Migrate(Migrate::Down { steps: 1 }));
    assert_eq!(typed("casebook migrate down 3"), Command::Migrate(Migrate::Down { steps: 3 }));
    assert_eq!(
        typed(
            "casebook token create --tenant acme --role reader,auditor --role admin --expires-in 90d"
        ),
        Command::Token(Token::Create {
            tenant: "acme".into(),
            roles: vec![Role::Reader, Role::Auditor, Role::Admin],
            name: None,
            expires_in: Some(Duration::from_secs(90 * 86_400)),
        })
    );
    assert_eq!(
        typed("casebook token revoke --tenant acme id1"),
        Command::Token(Token::Revoke { tenant: "acme".into(), id: "id1".into() })
    );
    assert_eq!(
        typed("casebook tenant create acme"),
        Command::Tenant(Tenant::Create { id: "acme".into() })
    );
    assert_eq!(
        typed("casebook audit archive --older-than 2w --tenant acme"),
        Command::Audit(Audit::Archive {
            address: None,
            token: None,
            tenant: Some("acme".into()),
            older_than: Duration::from_secs(14 * 86_400),
        })
    );
    assert_eq!(
        typed("casebook export jsonl --output f --kind claim,decision --tenant acme"),
        Command::Export(Export {
            target: Target { tenant: Some("acme".into()), ..Target::default() },
            output: Some("f".into()),
            kinds: vec!["claim".into(), "decision".into()],
        })
    );
    assert_eq!(
        typed("casebook import jsonl f --on-conflict skip --unsealed --state s"),
        Command::Import(Import {
            target: Target::default(),
            input: "f".into(),
            from: ImportFrom::Jsonl { unsealed: true },
            on_conflict: crate::transfer::OnConflict::Skip,
            state: Some("s".into()),
            concurrency: 4,
        })
    );
    assert_eq!(
        typed("casebook demo --count 5"),
        Command::Demo(Demo { address: None, token: None, count: 5, concurrency: 64 })
    );
    assert_eq!(
        typed("casebook health --service s"),
        Command::Health(Health { address: None, service: "s".into() })
    );
    assert_eq!(typed("casebook key generate"), Command::Key(KeyCommand::Generate));
    assert_eq!(typed("casebook key rotate --blob-key-file keys"), Command::Key(KeyCommand::Rotate));
    assert_eq!(
        typed("casebook config print --redacted"),
        Command::Config(ConfigCommand::Print { redacted: true })
    );
}

#[test]
fn settings_are_flags_wherever_they_matter() {
    let line = "casebook serve --pool-max-size 7 --read-lanes -1 --pool-verify --config c.toml";
    let invocation = words(line).unwrap();
    assert_eq!(invocation.config_file, Some("c.toml".into()));
    let flags = [("pool_max_size", "7"), ("pool_verify", "true"), ("read_lanes", "-1")];
    let mut given = invocation.flags;
    given.sort();
    assert_eq!(given, flags.map(|(name, text)| (name.to_owned(), text.to_owned())));

    for line in [
        "casebook migrate --database-url postgres://u@h/d status",
        "casebook migrate status --database-url postgres://u@h/d",
        "casebook token list --tenant acme --database-url postgres://u@h/d",
        "casebook tenant list --database-url postgres://u@h/d",
    ] {
        let expected = [("database_url".to_owned(), "postgres://u@h/d".to_owned())];
        assert_eq!(words(line).unwrap().flags, expected, "{line}");
    }
    assert_eq!(words("casebook serve").unwrap().flags, []);
    assert_eq!(words("casebook --config a serve --env-file b").unwrap().env_file, Some("b".into()));
}

#[test]
fn every_setting_has_its_flag() {
    let tree = command();
    let serve = tree.find_subcommand("serve").unwrap();
    for setting in SETTINGS {
        let flag = serve.get_arguments().find(|arg| arg.get_id() == setting.name).unwrap();
        assert_eq!(flag.get_long(), Some(setting.flag().as_str()));
        assert!(flag.get_help().unwrap().to_string().starts_with(setting.consequence));
    }
}

#[test]
fn mistakes_are_usage_errors() {
    for line in [
        "casebook",
        "casebook nonsense",
        "casebook migrate",
        "casebook migrate down 0",
        "casebook token create --tenant acme",
        "casebook token create --tenant acme --role king",
        "casebook token create --tenant Acme --role reader",
        "casebook token create --tenant acme --role reader --expires-in 0d",
        "casebook token create --tenant acme --role reader --expires-in 90",
        "casebook token create --tenant acme --role reader --expires-in 99999d",
        "casebook token create --tenant acme --role reader --expires-in 9ü",
        "casebook tenant create -x",
        "casebook audit archive",
        "casebook audit archive --older-than 365",
        "casebook export jsonl --kind tenant",
        "casebook import jsonl",
        "casebook import jsonl f --on-conflict maybe",
        "casebook import jsonl f --concurrency 0",
        "casebook demo --count 0",
        "casebook serve --pool-size 3",
        "casebook health --pool-max-size 3",
    ] {
        let error = words(line).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(exit::USAGE), "{line}: {error}");
    }
    for line in ["casebook --version", "casebook --help", "casebook help serve"] {
        assert_eq!(words(line).unwrap_err().exit_code(), i32::from(exit::OK), "{line}");
    }
}

/// Every command, each with the path that leads to it.
fn leaves(tree: &Clap, path: &str, found: &mut Vec<(String, Clap)>) {
    found.push((path.to_owned(), tree.clone()));
    for sub in tree.get_subcommands().filter(|sub| sub.get_name() != "help") {
        leaves(sub, &format!("{path} {}", sub.get_name()), found);
    }
}

#[test]
fn help_fits_the_width_and_every_leaf_is_read() {
    let mut tree = command().term_width(HELP_WIDTH);
    tree.build();
    let mut found = Vec::new();
    leaves(&tree, "casebook", &mut found);
    assert!(found.len() > 15);
    for (path, mut command) in found {
        for help in [command.render_help(), command.render_long_help()] {
            let wide = help
                .to_string()
                .lines()
                .find(|l| l.chars().count() > HELP_WIDTH)
                .map(str::to_owned);
            assert_eq!(wide, None, "{path}");
        }
        let is_top = path.matches(' ').count() <= 1;
        assert_eq!(command.render_long_help().to_string().contains("EXAMPLES"), is_top, "{path}");
        if !command.has_subcommands() {
            let words: Vec<&str> = path.split(' ').skip(1).collect();
            let arguments = "--tenant acme --role reader";
            let line = match words.as_slice() {
                ["token", "create"] => format!("{path} {arguments}"),
                ["token", "list"] => format!("{path} --tenant acme"),
                ["token", "revoke"] => format!("{path} --tenant acme id"),
                ["tenant", "create"] => format!("{path} acme"),
                ["import", _] => format!("{path} file"),
                ["audit", "archive"] => format!("{path} --older-than 365d"),
                _ => path.clone(),
            };
            typed(&line);
        }
    }
}

#[test]
fn every_example_in_the_manual_can_be_typed() {
    for text in [
        manual::ROOT,
        manual::SERVE_EXAMPLES,
        manual::MIGRATE_EXAMPLES,
        manual::TOKEN_EXAMPLES,
        manual::TENANT_EXAMPLES,
        manual::AUDIT_EXAMPLES,
        manual::EXPORT_EXAMPLES,
        manual::IMPORT_EXAMPLES,
        manual::DEMO_EXAMPLES,
        manual::HEALTH_EXAMPLES,
        manual::CONFIG_EXAMPLES,
    ] {
        let mut examples = 0;
        for line in text.lines().filter_map(|line| line.strip_prefix("  ")) {
            let Some((_, example)) = line.split_once("casebook ") else { continue };
            if line.starts_with(' ') {
                continue;
            }
            // Two spaces and more begin the explanation.
            let example = example.split("  ").next().unwrap().replace("''", "off");
            match words(&format!("casebook {example}")) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.exit_code(), 0, "{example}: {error}"),
            }
            examples += 1;
        }
        assert!(examples > 0, "{text}");
    }
}
