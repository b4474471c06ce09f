//! Bundles damaged at every field of the manifest, and at random.

use std::fs;

use brood_core::checkpoint::Error;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::sample::{KERN, Sample, replace};

/// One step of the way to a value.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

/// Ways to every value below `value`, itself included.
fn ways(value: &Value) -> Vec<Vec<Step>> {
    let children: Vec<(Step, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, v)| (Step::Key(key.clone()), v))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(n, v)| (Step::Index(n), v))
            .collect(),
        _ => Vec::new(),
    };
    let below = children.into_iter().flat_map(|(step, child)| {
        ways(child)
            .into_iter()
            .map(move |way| [vec![step.clone()], way].concat())
    });
    std::iter::once(Vec::new()).chain(below).collect()
}

fn shown(way: &[Step]) -> String {
    let text: String = way
        .iter()
        .map(|step| match step {
            Step::Key(key) => format!(".{key}"),
            Step::Index(n) => format!("[{n}]"),
        })
        .collect();
    text.trim_start_matches('.').to_owned()
}

fn at<'a>(value: &'a mut Value, way: &[Step]) -> &'a mut Value {
    way.iter().fold(value, |value, step| match step {
        Step::Key(key) => &mut value[key],
        Step::Index(n) => &mut value[n],
    })
}

fn without(manifest: &Value, way: &[Step]) -> Option<Value> {
    let (last, parent) = way.split_last()?;
    let mut damaged = manifest.clone();
    match (at(&mut damaged, parent), last) {
        (Value::Object(map), Step::Key(key)) => map.remove(key).map(drop)?,
        (Value::Array(list), Step::Index(n)) => drop(list.remove(*n)),
        _ => return None,
    }
    Some(damaged)
}

/// What to put in place of a value.
fn substitutes(value: &Value) -> Vec<Value> {
    let mut all = vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!(3),
        json!(4096),
        json!(1_u64 << 45),
        json!(u64::MAX),
        json!(u64::MAX - 4095),
        json!(i64::MIN),
        json!(""),
        json!("x"),
        json!("\u{1b}[2J"),
        json!("\u{202e}gpj.exe"),
        json!("y".repeat(100_000)),
        json!("0".repeat(64)),
        json!([]),
        json!([[]]),
        json!({}),
        json!({ "first": 0 }),
    ];
    match value {
        Value::Number(n) => {
            let n = n.as_u64().unwrap();
            all.extend([json!(n + 1), json!(n + 4096), json!(n.to_string())]);
        }
        Value::String(text) => {
            let mut other = text.clone().into_bytes();
            *other.last_mut().unwrap() ^= 1;
            all.extend([
                json!(String::from_utf8(other).unwrap()),
                json!(text.to_uppercase()),
                json!(format!("{text} ")),
                json!(text[1..]),
            ]);
        }
        Value::Array(list) => {
            all.push(Value::Array([list.clone(), list.clone()].concat()));
            all.push(Value::Array(list.iter().rev().cloned().collect()));
        }
        Value::Object(map) => {
            let mut more = map.clone();
            more.insert("surprise".into(), json!(1));
            all.push(Value::Object(more));
        }
        _ => {}
    }
    all.retain(|other| other != value);
    all
}

/// The manifest's text with the key at the end of `way` written twice.
fn twice(value: &Value, way: &[Step]) -> String {
    let Some((first, rest)) = way.split_first() else {
        return value.to_string();
    };
    let members = |map: &Map<String, Value>, key: &str| {
        let member = |(k, v): (&String, &Value)| {
            let inner = if k == key {
                twice(v, rest)
            } else {
                v.to_string()
            };
            let member = format!("{}:{inner}", json!(k));
            if k == key && rest.is_empty() {
                format!("{member},{member}")
            } else {
                member
            }
        };
        map.iter().map(member).collect::<Vec<_>>().join(",")
    };
    match (value, first) {
        (Value::Object(map), Step::Key(key)) => format!("{{{}}}", members(map, key)),
        (Value::Array(list), Step::Index(n)) => {
            let item = |(i, v): (usize, &Value)| {
                if i == *n {
                    twice(v, rest)
                } else {
                    v.to_string()
                }
            };
            format!(
                "[{}]",
                list.iter()
                    .enumerate()
                    .map(item)
                    .collect::<Vec<_>>()
                    .join(",")
            )
        }
        _ => unreachable!(),
    }
}

/// `segments[0].size` of `memory.segments[0].size` is `memory`.
fn top(field: &str) -> &str {
    field.split(['.', '[']).next().unwrap()
}

/// The refusal must name a field under the same top-level key as the damage, or the one that
/// must agree with it.
fn expect_refusal(sample: &Sample, text: &str, way: &[Step], what: &str) {
    replace(&sample.path.manifest(), text.as_bytes());
    let field = shown(way);
    let what = format!("{field}: {what}");
    let error = sample.refusal(&what);
    let named = error
        .field()
        .unwrap_or_else(|| panic!("{what}: no field in {error}"));
    let agrees = matches!(
        (top(&field), top(named)),
        ("devices", "disks") | ("memory", "files" | "working_set") | ("", _)
    );
    assert!(top(&field) == top(named) || agrees, "{what}: {error}");
    assert!(error.to_string().contains(named), "{what}: {error}");
}

#[test]
fn every_field_of_the_manifest_is_checked() {
    let sample = Sample::new();
    let manifest = serde_json::to_value(&sample.manifest).unwrap();
    let ways = ways(&manifest);
    assert!(ways.len() > 40, "{ways:?}");
    let mut cases = 0;
    for way in &ways {
        if let Some(damaged) = without(&manifest, way) {
            expect_refusal(&sample, &damaged.to_string(), way, "removed");
        }
        let mut original = manifest.clone();
        for value in substitutes(at(&mut original, way)) {
            let mut damaged = manifest.clone();
            *at(&mut damaged, way) = value.clone();
            let what: String = value.to_string().chars().take(60).collect();
            expect_refusal(&sample, &damaged.to_string(), way, &what);
            cases += 1;
        }
        if matches!(way.last(), Some(Step::Key(_))) {
            expect_refusal(&sample, &twice(&manifest, way), way, "written twice");
        }
    }
    assert!(cases > 800, "{cases}");
    // The undamaged values, written another way, are the same manifest.
    replace(&sample.path.manifest(), manifest.to_string().as_bytes());
    sample.check().unwrap();
}

#[test]
fn removed_and_unknown_fields_are_named_exactly() {
    let sample = Sample::new();
    let manifest = serde_json::to_value(&sample.manifest).unwrap();
    for way in ways(&manifest) {
        let field = shown(&way);
        if matches!(way.last(), Some(Step::Key(_))) {
            let text = without(&manifest, &way).unwrap().to_string();
            replace(&sample.path.manifest(), text.as_bytes());
            assert_eq!(sample.refusal(&field).field(), Some(field.as_str()));
        }
        let mut damaged = manifest.clone();
        if let Value::Object(map) = at(&mut damaged, &way) {
            map.insert("surprise".into(), json!({}));
            replace(&sample.path.manifest(), damaged.to_string().as_bytes());
            let named = format!("{field}.surprise");
            let named = named.trim_start_matches('.');
            assert_eq!(sample.refusal(&field).field(), Some(named));
        }
    }
}

#[test]
fn another_version_is_refused_by_name() {
    let sample = Sample::new();
    let mut manifest = serde_json::to_value(&sample.manifest).unwrap();
    manifest["version"] = json!(7);
    manifest["engine_version"] = json!("brood 9.1.0");
    // Version 7 may have what version 1 has not.
    manifest["balloon"] = json!({ "pages": 3 });
    replace(&sample.path.manifest(), manifest.to_string().as_bytes());
    let error = sample.refusal("version");
    assert!(
        matches!(&error, Error::Version { found, .. } if found == "7"),
        "{error:?}"
    );
    let shown = error.to_string();
    assert!(
        shown.contains("version 7") && shown.contains("brood 9.1.0"),
        "{shown}"
    );
    assert!(shown.contains("reads version 1"), "{shown}");
}

#[test]
fn no_json_at_all_is_refused() {
    let sample = Sample::new();
    let nested = "[".repeat(500_000);
    let deep = "{\"format\":".repeat(50_000);
    for text in [
        "",
        "{",
        "null",
        "[]",
        "\u{feff}{}",
        "{} {}",
        "\0",
        nested.as_str(),
        &deep,
    ] {
        replace(&sample.path.manifest(), text.as_bytes());
        let what: String = text.chars().take(20).collect();
        assert_eq!(sample.refusal(&what).file(), sample.path.manifest());
    }
    replace(&sample.path.manifest(), &[0xff, 0xfe, 0x80]);
    sample.refusal("not UTF-8");
}

/// A change of bytes.
#[derive(Clone, Debug)]
enum Damage {
    Flip {
        at: prop::sample::Index,
        bits: u8,
    },
    Cut {
        at: prop::sample::Index,
    },
    Insert {
        at: prop::sample::Index,
        bytes: Vec<u8>,
    },
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, bits)| Damage::Flip { at, bits }),
        1 => any::<prop::sample::Index>().prop_map(|at| Damage::Cut { at }),
        1 => (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_damage_never_passes_for_the_original(
        damages in prop::collection::vec((0_usize..4, damage()), 30)
    ) {
        let sample = Sample::new();
        let original = sample.files().map(|file| fs::read(file).unwrap());
        for (which, damage) in damages {
            let file = &sample.files()[which];
            let mut content = original[which].clone();
            match &damage {
                Damage::Flip { at, bits } => content[at.index(original[which].len())] ^= bits,
                Damage::Cut { at } => content.truncate(at.index(original[which].len())),
                Damage::Insert { at, bytes } => {
                    let at = at.index(content.len());
                    content.splice(at..at, bytes.iter().copied());
                }
            }
            replace(file, &content);
            match sample.check() {
                // White space between two tokens is no damage.
                Ok(checkpoint) => {
                    prop_assert_eq!(which, 0);
                    prop_assert_eq!(checkpoint.manifest(), &sample.manifest);
                    prop_assert_eq!(checkpoint.kern(), KERN);
                }
                Err(_) => drop(sample.refusal(&format!("{}: {damage:?}", file.display()))),
            }
            replace(file, &original[which]);
        }
        sample.check().unwrap();
    }
}
