//! Tests of the configuration: where settings are looked for, and the errors for those that make no
//! sense.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::*;

/// A configuration file with this text.
fn file(text: &str) -> (TempDir, Sources) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("brood.toml");
    fs::write(&path, text).unwrap();
    let sources = Sources {
        file: Some(path),
        ..Sources::default()
    };
    (dir, sources)
}

fn load(text: &str) -> Result<Config, Error> {
    let (_dir, sources) = file(text);
    Config::load(&sources)
}

/// What is told of a file, without its path.
fn told(text: &str) -> String {
    let error = load(text).expect_err(text);
    assert!(error.hint().is_some());
    let told = error.to_string();
    let (_, rest) = told.split_once("brood.toml, ").unwrap_or(("", &told));
    rest.to_owned()
}

fn environment(pairs: &[(&str, &str)]) -> BTreeMap<OsString, OsString> {
    let pairs = pairs.iter();
    pairs.map(|(k, v)| (k.into(), v.into())).collect()
}

/// What is shown of a setting.
fn shown(config: &Config, key: &str) -> (String, String) {
    let all = config.shown();
    let found = all.into_iter().find(|s| s.key == key).expect(key);
    (
        found.value.unwrap_or_else(|| "-".to_owned()),
        found.source.to_string(),
    )
}

#[test]
fn the_example_changes_nothing() {
    let example = load(EXAMPLE).unwrap();
    let nothing = load("").unwrap();
    let values =
        |config: &Config| -> Vec<_> { config.shown().into_iter().map(|s| s.value).collect() };
    assert_eq!(values(&example), values(&nothing));
    assert_eq!((example.pools, example.restore.concurrency), (vec![], None));
}

/// The example with its further settings in use.
fn whole_example() -> String {
    let lines = EXAMPLE.lines().map(|line| {
        let setting = line.strip_prefix('#');
        setting
            .filter(|s| s.starts_with(|c: char| c != ' '))
            .unwrap_or(line)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_has_every_setting() {
    let text = whole_example();
    let config = load(&text).unwrap();
    for setting in config.shown() {
        assert!(
            matches!(setting.source, SettingSource::File { .. }),
            "the example lacks {}",
            setting.key
        );
    }
    let pool = &config.pools[0];
    assert_eq!(
        (pool.policy, pool.private_limit),
        (
            Policy {
                hot: 50,
                hot_min: Some(40),
                most: Some(200),
                max_memory: Some(Bytes::gib(16)),
                max_age_s: Some(86_400),
                refill_per_s: Some(100),
                lease_s: 600,
            },
            Bytes::mib(64)
        )
    );
    let table: toml::Table = text.parse().unwrap();
    let keys = table["pool"][0].as_table().unwrap();
    assert_eq!(keys.len(), 14, "as many keys as a pool can have: {keys:?}");
}

#[test]
fn flags_come_before_the_environment_and_that_before_the_file() {
    let (dir, mut sources) =
        file("[restore]\n\nprivate_limit = 65536\npark_after = 1.5\n[state]\ndir = '/in/file'\n");
    let of = |sources: &Sources, key: &str| shown(&Config::load(sources).unwrap(), key);
    let in_file = format!("{}/brood.toml:3", dir.path().display());
    let key = "restore.private_limit";
    assert_eq!(of(&sources, key), ("64 KiB".into(), in_file));
    assert_eq!(of(&sources, "restore.park_after").0, "1.5");
    assert_eq!(of(&sources, "restore.concurrency").1, "default");

    sources.environment = environment(&[
        ("BROOD_RESTORE_PRIVATE_LIMIT", "2M"),
        ("BROOD_RESTORE_CONCURRENCY", "7"),
        ("BROOD_SERVE_LOG_LEVEL", ""),
        ("BROOD_STATE_DIR", "in-environment"),
    ]);
    let told = "BROOD_RESTORE_PRIVATE_LIMIT in the environment";
    assert_eq!(of(&sources, key), ("2 MiB".into(), told.into()));
    assert_eq!(of(&sources, "restore.concurrency").0, "7");
    assert_eq!(
        of(&sources, "serve.log_level"),
        ("info".into(), "default".into())
    );
    let here = std::env::current_dir().unwrap().join("in-environment");
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.state_dir().unwrap(), here);
    assert_eq!(config.socket().unwrap(), here.join("api.sock"));

    sources.flags.insert("state.dir", "/flag".into());
    sources.flags.insert(key, "3M".into());
    assert_eq!(of(&sources, key), ("3 MiB".into(), "command line".into()));
    assert_eq!(
        of(&sources, "state.dir"),
        ("/flag".into(), "command line".into())
    );
}

#[test]
fn every_setting_can_be_set_in_the_environment() {
    let (_dir, mut sources) = file("");
    for (key, value) in [
        ("daemon", "off"),
        ("engine", "qemu"),
        ("qemu.accel", "tcg"),
        ("state.dir", "/a"),
        ("restore.concurrency", "3"),
        ("restore.private_limit", "5 MiB"),
        ("restore.enforce_private_limit", "true"),
        ("restore.signers", "/f"),
        ("restore.park_after", "9"),
        ("bhyve.rctl", "pcpu:deny=100,nthr:deny=64"),
        ("serve.socket", "/b"),
        ("serve.socket_mode", "0660"),
        ("serve.listen", "[::1]:80"),
        ("serve.token_file", "/c"),
        ("image.dir", "/i"),
        ("serve.checkpoints", "/d"),
        ("serve.log_format", "json"),
        ("serve.log_level", "trace"),
        ("image.dir", "/e"),
    ] {
        let name = variable(key);
        sources.environment.insert(name.into(), value.into());
    }
    for setting in Config::load(&sources).unwrap().shown() {
        let variable = variable(setting.key);
        assert_eq!(setting.source, SettingSource::Environment { variable });
        let value = setting.value.unwrap();
        assert_eq!(
            sources.variable(&self::variable(setting.key)).unwrap(),
            &*value
        );
    }
}

#[test]
fn a_file_can_be_loaded_again_after_it_changed() {
    let (_dir, sources) = file("[serve]\nlog_level = 'debug'");
    let level = || Config::load(&sources).map(|config| config.serve.log_level.value);
    assert_eq!(level().unwrap(), LogLevel::Debug);
    fs::write(
        sources.file.as_ref().unwrap(),
        "[serve]\nlog_level = 'warn'",
    )
    .unwrap();
    assert_eq!(level().unwrap(), LogLevel::Warn);
    fs::write(
        sources.file.as_ref().unwrap(),
        "[serve]\nlog_level = 'loud'",
    )
    .unwrap();
    assert!(level().is_err(), "the caller keeps what it has");
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let (dir, mut sources) = file("");
    sources.file = Some(dir.path().join("none.toml"));
    let error = Config::load(&sources).unwrap_err().to_string();
    assert!(error.contains("none.toml"), "{error}");
    sources.file = None;
    let named = dir.path().join("brood.toml");
    sources.environment = environment(&[("BROOD_CONFIG", named.to_str().unwrap())]);
    assert_eq!(
        Config::load(&sources).unwrap().file.as_deref(),
        Some(&*named)
    );
    sources.file = Some(Path::new("/dev/null").to_owned());
    assert!(Config::load(&sources).is_ok(), "an empty file is none");
}

#[test]
fn mistakes_are_told_with_their_place() {
    let pool = "[[pool]]\nname = 'a'\ncheckpoint = '/c/d'\nhot = 5\n";
    let mistakes = [
        "[restore]\nprivate-limit = '1M'".to_owned(),
        "[restor]".to_owned(),
        "[restore".to_owned(),
        "[restore]\nprivate_limit = '1X'".to_owned(),
        "[restore]\n  private_limit = true".to_owned(),
        "[restore]\nconcurrency = 0".to_owned(),
        "[restore]\npark_after = -1".to_owned(),
        "[restore]\npark_after = 'soon'".to_owned(),
        "[state]\ndir = 'here'".to_owned(),
        "[serve]\nsocket_mode = 0o600".to_owned(),
        "[serve]\nsocket_mode = '0666'".to_owned(),
        "[serve]\nlisten = 'localhost'".to_owned(),
        "[serve]\nlisten = '127.0.0.1:1'".to_owned(),
        "[serve]\nlog_format = 'xml'".to_owned(),
        "[[pool]]\nname = 'a'".to_owned(),
        "pool = 3".to_owned(),
        pool.replace("'a'", "'a b'"),
        pool.replace("/c/d", "c/d"),
        format!("{pool}{pool}"),
        format!("{pool}max = 4"),
        format!("{pool}hot_min = 6"),
        format!("{pool}lease = 0"),
        format!("{pool}colour = 'red'"),
    ];
    let all: Vec<String> = mistakes
        .iter()
        .map(|text| format!("{text}\n--> {}\n", told(text)))
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    let (_dir, mut sources) = file("");
    sources.environment = environment(&[("BROOD_RESTORE_CONCURRENCY", "many")]);
    let error = Config::load(&sources).unwrap_err().to_string();
    assert!(error.contains("BROOD_RESTORE_CONCURRENCY"), "{error}");
    assert!(error.contains("\"many\""), "{error}");
}
