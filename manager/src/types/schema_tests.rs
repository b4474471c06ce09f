//! Schemas of `types` beside what the core's types are written as: neither has a key, or a kind
//! of value, that the other one lacks.

use std::{collections::BTreeSet, fmt::Debug, time::Duration};

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{manifest as schema, report, words};
use brood_core::{
    checkpoint::{
        Accelerator, AgentProtocol, BhyveGuest, BundlePath, LinuxGuest, Network, QemuGuest,
        Readiness, manifest,
    },
    guest_id::GuestId,
    host::{doctor, plan, sharing},
    percentiles::Percentiles,
    restore::{RestoreFailure, RestoreReport, RestoreSpec, RestoredGuest},
    units::Bytes,
};

/// Why a value is not what its schema says, with the way to it.
type Mismatch = String;

/// Checks that `samples`, which have a value for each key and one of each alternative, are what the
/// schema of `T` says, and all that it says.
fn check<T: ToSchema>(samples: &[impl Serialize + Debug]) -> Result<(), Mismatch> {
    let mut parts = Vec::new();
    T::schemas(&mut parts);
    let parts = parts.into_iter();
    let parts = parts.map(|(name, schema)| (name, serde_json::to_value(schema).unwrap()));
    let mut checker = Checker {
        parts: parts.collect(),
        used: BTreeSet::new(),
    };
    let whole = serde_json::to_value(T::schema()).unwrap();
    for sample in samples {
        let value = serde_json::to_value(sample).unwrap();
        checker.check(&value, &whole, &T::name())?;
    }
    match checker.unused(&whole, &T::name()).into_iter().next() {
        Some(way) => Err(format!("{way} is in the schema, and no sample is one")),
        None => Ok(()),
    }
}

struct Checker {
    parts: Map<String, Value>,
    /// Ways to alternatives that a sample was.
    used: BTreeSet<String>,
}

impl Checker {
    /// The schema that stands behind a reference.
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(name) => &self.parts[name.rsplit('/').next().unwrap()],
            None => schema,
        }
    }

    fn check(&mut self, value: &Value, schema: &Value, way: &str) -> Result<(), Mismatch> {
        let schema = self.resolve(schema).clone();
        if let Some(alternatives) = schema["oneOf"].as_array() {
            for (n, alternative) in alternatives.iter().enumerate() {
                let way = format!("{way}|{n}");
                if self.check(value, alternative, &way).is_ok() {
                    self.used.insert(way);
                    return Ok(());
                }
            }
            return Err(format!("{way}: no alternative is {value}"));
        }
        if let Some(words) = schema["enum"].as_array() {
            let is_one = words.contains(value);
            return is_one
                .then_some(())
                .ok_or(format!("{way}: no word is {value}"));
        }
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let kinds = &schema["type"];
        if kinds != kind
            && !kinds
                .as_array()
                .is_some_and(|all| all.contains(&kind.into()))
        {
            return Err(format!("{way}: {value} is no {kinds}"));
        }
        match value {
            Value::Null => Err(format!("{way}: the sample has no value")),
            Value::Array(items) if items.is_empty() => Err(format!("{way}: the sample has none")),
            Value::Array(items) => items
                .iter()
                .try_for_each(|item| self.check(item, &schema["items"], &format!("{way}[]"))),
            Value::Object(members) => match schema["properties"].as_object() {
                Some(properties) => {
                    let written: BTreeSet<_> = members.keys().collect();
                    let told: BTreeSet<_> = properties.keys().collect();
                    if written != told {
                        let odd: Vec<_> = written.symmetric_difference(&told).collect();
                        return Err(format!("{way}: only one of the two has {odd:?}"));
                    }
                    members.iter().try_for_each(|(key, value)| {
                        self.check(value, &properties[key], &format!("{way}.{key}"))
                    })
                }
                // A map: each value is of one kind.
                None => members.values().try_for_each(|value| {
                    self.check(value, &schema["additionalProperties"], &format!("{way}.*"))
                }),
            },
            _ => Ok(()),
        }
    }

    /// Alternatives that no sample was, but for null.
    fn unused(&self, schema: &Value, way: &str) -> Vec<String> {
        let schema = self.resolve(schema);
        let mut unused = Vec::new();
        for (n, alternative) in schema["oneOf"].as_array().into_iter().flatten().enumerate() {
            let way = format!("{way}|{n}");
            if alternative["type"] == "null" {
                continue;
            }
            if self.used.contains(&way) {
                unused.extend(self.unused(alternative, &way));
            } else {
                unused.push(way);
            }
        }
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            unused.extend(self.unused(property, &format!("{way}.{key}")));
        }
        if schema["items"].is_object() {
            unused.extend(self.unused(&schema["items"], &format!("{way}[]")));
        }
        unused
    }
}

fn spec() -> RestoreSpec {
    RestoreSpec {
        checkpoint: "/ckp/demo".to_owned(),
        guests: 3,
        concurrency: Some(2),
        timeout: Some(Duration::from_millis(1500)),
        prefix: Some("web".to_owned()),
        paused: true,
        private_limit: Some(Bytes::mib(1)),
        enforce_private_limit: true,
        overcommit: true,
        park_after: Some(Duration::from_millis(2500)),
        all_or_nothing: true,
        disk: "reflink:/images/web.img".parse().unwrap(),
        network: Some(Network::User),
        publish: vec!["8080:80".parse().unwrap()],
        trust: true,
        name: Some("of no client's".to_owned()),
        overhead: Some(Bytes::mib(1)),
        membership: None,
    }
}

#[test]
fn a_restore_is_asked_for_and_told_of_as_its_schemas_say() {
    let spec = spec();
    check::<report::RestoreRequest>(std::slice::from_ref(&spec)).unwrap();
    // What a client sends is what the daemon does.
    let sent = serde_json::to_value(&spec).unwrap();
    let received: RestoreSpec = serde_json::from_value(sent.clone()).unwrap();
    assert_eq!(serde_json::to_value(&received).unwrap(), sent);
    assert_eq!(received.timeout, spec.timeout);
    // What only pools set is not a client's to set.
    for own in ["name", "overhead", "membership"] {
        let mut sent = sent.clone();
        sent[own] = Value::Null;
        let refused = serde_json::from_value::<RestoreSpec>(sent).unwrap_err();
        assert!(refused.to_string().contains("unknown field"), "{refused}");
    }
    let least = serde_json::json!({ "checkpoint": "demo", "guests": 1 });
    let least: RestoreSpec = serde_json::from_value(least).unwrap();
    assert_eq!(
        (least.guests, least.timeout, least.paused),
        (1, None, false)
    );

    let latencies = Percentiles::of(&[1.5]);
    check::<report::Percentiles>(&[latencies]).unwrap();
    let restored = RestoreReport {
        checkpoint: "/ckp/demo".to_owned(),
        asked: 2,
        restored: 1,
        failed: 1,
        not_begun: 0,
        interrupted: false,
        rolled_back: false,
        paused: true,
        wall_s: 0.5,
        verify_s: 0.25,
        restore_ms: latencies,
        guests: vec![RestoredGuest {
            name: "web-1".to_owned(),
            id: GuestId([7; 8]),
            pid: 17,
            restore_ms: 1.5,
            nonce: 0x1234,
            counter: 1,
        }],
        failures: vec![RestoreFailure {
            name: "web-2".to_owned(),
            error: "it died".to_owned(),
        }],
        undone: vec!["web-1 is not paused".to_owned()],
        warnings: vec!["overcommitted".to_owned()],
    };
    check::<report::RestoreReport>(std::slice::from_ref(&restored)).unwrap();
    let sent = serde_json::to_value(&restored).unwrap();
    assert_eq!(sent["guests"][0]["nonce"], "0000000000001234");
    assert_eq!(
        serde_json::from_value::<RestoreReport>(sent).unwrap(),
        restored
    );
}

#[test]
fn an_examined_host_is_what_its_schema_says() {
    let statuses = [
        doctor::Status::Ok,
        doctor::Status::Warn,
        doctor::Status::Fail,
    ];
    let checks = statuses.map(|status| doctor::Check {
        name: "vm.max_map_count".to_owned(),
        status,
        found: "65530".to_owned(),
        need: "at least 1".to_owned(),
        hint: Some("sysctl".to_owned()),
    });
    check::<report::Check>(&checks).unwrap();
}

fn manifest(readiness: Readiness) -> manifest::Manifest {
    let text = |text: &str| text.to_owned();
    let seal = manifest::FileSeal {
        size: Bytes(4096),
        sha256: "0".repeat(64),
    };
    manifest::Manifest {
        format: text(manifest::FORMAT),
        version: manifest::VERSION,
        guest: text("web"),
        created_at: text("2026-01-01T00:00:00Z"),
        engine: manifest::EngineKind::Bhyve,
        engine_version: text("bhyve"),
        memory: manifest::Memory {
            size: Bytes(4096),
            segments: vec![manifest::Segment {
                guest_address: 0,
                size: Bytes(4096),
                file_offset: 0,
            }],
        },
        vcpus: 1,
        devices: vec![manifest::Device {
            name: text("net0"),
            model: text("virtio-net"),
        }],
        disks: vec![manifest::DiskSnapshot {
            device: Some(text("disk0")),
            provider: manifest::DiskProvider::Zfs,
            source: text("pool/web"),
            snapshot: text("pool/web@now"),
            identity: text("17"),
        }],
        working_set: vec![manifest::PageRange { first: 0, count: 1 }],
        bhyve: Some(BhyveGuest {
            config: [(text("memory.size"), text("4096"))].into(),
            agent: Some(2),
            agent_protocol: AgentProtocol::Frames,
            readiness,
        }),
        qemu: Some(QemuGuest {
            version: text("7.2.22"),
            machine: text("pc-i440fx-7.2"),
            accelerator: Accelerator::Tcg,
            cpu: text("max"),
            devices_version: 1,
            nonce: "0".repeat(32),
            image: "0".repeat(64),
            network: Network::User,
            root: true,
            disk: Some(brood_core::units::Bytes::mib(64)),
        }),
        linux: Some(LinuxGuest {
            machine_version: 1,
            virtualization: text("svm"),
            nonce: "0".repeat(32),
            image: "0".repeat(64),
            cpu_template: text("v2"),
            network: Network::User,
            root: true,
            disk: Some(Bytes(1 << 30)),
        }),
        parent: Some(manifest::Parent {
            path: text("base"),
            sha256: "0".repeat(64),
            pages: "8,256-511".parse().unwrap(),
        }),
        files: manifest::Files {
            ckp: seal.clone(),
            kern: seal.clone(),
            meta: seal,
        },
    }
}

#[test]
fn a_manifest_is_what_its_schema_says() {
    let argv = vec!["/usr/bin/true".to_owned()];
    let (words, address) = ("login:".to_owned(), "web:80".to_owned());
    let manifests = [
        Readiness::Agent,
        Readiness::Console { com: 1, words },
        Readiness::Tcp { address },
        Readiness::Command { argv },
    ]
    .map(manifest);
    check::<schema::Manifest>(&manifests).unwrap();
}

#[test]
fn a_plan_is_what_its_schema_says() {
    let case = plan::Case {
        per_guest: Bytes::mib(1),
        guests: 3,
        guest_memory: Bytes::mib(12),
        binds: "memory".to_owned(),
        guests_by_memory: 4,
    };
    let plan = plan::Plan {
        host_memory: Bytes::mib(16),
        memory_limit: Some(plan::MemoryLimit {
            name: "memory.max".to_owned(),
            left: Bytes::mib(8),
        }),
        sharing: sharing::Sharing {
            shared: false,
            why: Some("vmm_vnode is not installed".to_owned()),
        },
        memory_size: Bytes::mib(4),
        cost: plan::CostModel::built_in(manifest::EngineKind::Kvm),
        best: case.clone(),
        expected: case.clone(),
        worst: case.clone(),
        unshared: case,
    };
    check::<super::Plan>(std::slice::from_ref(&plan)).unwrap();
    let sent = serde_json::to_value(&plan).unwrap();
    assert_eq!(serde_json::from_value::<plan::Plan>(sent).unwrap(), plan);
}

#[test]
fn a_checkpoint_is_read_as_it_was_sent() {
    let path = BundlePath::new("/ckp/web".as_ref()).unwrap();
    let manifest = manifest(Readiness::Agent);
    let made = super::Checkpoint::new(&path, &manifest);
    let shown = super::Checkpoint {
        parents: Some(vec!["/ckp/base".to_owned()]),
        trusted: Some(true),
        exposed: vec!["/ckp/web.ckp".to_owned()],
        ..made.clone()
    };
    for view in [made, shown] {
        let sent = serde_json::to_string(&view).unwrap();
        let read: super::Checkpoint = serde_json::from_str(&sent).unwrap();
        assert_eq!(read, view);
    }
}

#[test]
fn what_only_one_of_the_two_has_is_found() {
    #[derive(ToSchema)]
    #[expect(dead_code, reason = "a schema alone")]
    struct Less {
        size: words::Bytes,
    }
    #[derive(ToSchema)]
    #[expect(dead_code, reason = "a schema alone")]
    struct Other {
        size: String,
        sha256: String,
    }
    #[derive(ToSchema)]
    #[expect(dead_code, reason = "a schema alone")]
    struct More {
        size: words::Bytes,
        sha256: String,
        blake3: String,
    }
    let seal = [manifest::FileSeal {
        size: Bytes(1),
        sha256: "0".to_owned(),
    }];
    check::<schema::FileSeal>(&seal).unwrap();
    assert!(check::<Less>(&seal).unwrap_err().contains("sha256"));
    assert!(check::<Other>(&seal).unwrap_err().contains("Other.size"));
    assert!(check::<More>(&seal).unwrap_err().contains("blake3"));
    // A variant that no sample is.
    let one = [manifest(Readiness::Agent)];
    let missed = check::<schema::Manifest>(&one).unwrap_err();
    assert!(missed.contains("readiness|1"), "{missed}");
}
