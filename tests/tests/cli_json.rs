//! JSON of the commands: the keys that scripts rely on.

use brood_tests::{array, keys, with_a_daemon_and_without};

#[test]
fn json_has_the_keys_that_scripts_rely_on() {
    with_a_daemon_and_without(|home| {
        let demo = home.demo("demo", "4M");
        let report = home.restore(&demo, 2, "g");
        assert_eq!(
            keys(&report),
            [
                "asked",
                "checkpoint",
                "errors",
                "failed",
                "guests",
                "interrupted",
                "not_begun",
                "paused",
                "restore_ms",
                "restored",
                "rolled_back",
                "verify_s",
                "wall_s"
            ]
        );
        assert_eq!(
            keys(&report["guests"][0]),
            ["counter", "id", "name", "nonce", "pid", "restore_ms"]
        );
        assert_eq!(keys(&report["restore_ms"]), ["max", "p50", "p90", "p99"]);
        let listed = [
            "checkpoint",
            "checkpoint_sha256",
            "created_at",
            "disk",
            "disk_path",
            "engine",
            "entry",
            "generation",
            "id",
            "mac",
            "memory_mib",
            "name",
            "pid",
            "pool",
            "private_limit",
            "private_limit_enforced",
            "reason",
            "state",
        ];
        assert_eq!(keys(&home.list()[0]), listed);
        let shown = home.json(&["show", "g-1"]);
        let measured = [
            "page_table_bytes",
            "private_bytes",
            "process_bytes",
            "shared_bytes",
        ];
        assert!(
            listed
                .iter()
                .chain(&measured)
                .all(|key| keys(&shown).contains(key)),
            "{shown}"
        );
        for (request, own) in [
            ("ping", vec!["text"]),
            ("sum", vec!["sum"]),
            ("dirty 1", vec!["address", "pages"]),
            ("peek 0", vec!["value"]),
            ("poke 65536 1", vec![]),
            ("identity", vec!["generation", "mac", "name", "seed"]),
            ("random", vec!["random"]),
            ("time", vec!["time", "unix_seconds", "uptime_seconds"]),
            ("spin 10", vec![]),
        ] {
            let mut expected = [own, vec!["counter", "nonce"]].concat();
            expected.sort_unstable();
            assert_eq!(keys(&home.ask("g-1", request)), expected, "{request}");
        }
        // After the request, as people write it, as well.
        let _ = home.brood(&["ask", "g-1", "ping", "--json"]).ok().json();
        for (command, past) in [
            ("pause", "paused"),
            ("resume", "resumed"),
            ("destroy", "destroyed"),
        ] {
            let done = home.json(&[command, "g-1"]);
            let mut expected = vec!["errors", "guests", past];
            if command == "destroy" {
                expected.push("spared");
            }
            expected.sort_unstable();
            assert_eq!(keys(&done), expected);
            assert_eq!(done[past], 1);
            assert_eq!(done["guests"][0]["name"], "g-1");
        }
        let to = home.named("to");
        assert_eq!(
            keys(&home.json(&["suspend", "g-2", &to.path])),
            ["checkpoint", "guest", "pages", "parent", "sha256", "size"]
        );
        assert_eq!(
            keys(&home.json(&["checkpoint", "verify", &to.path])),
            ["checkpoint", "sha256", "whole"]
        );
        let inspected = home.json(&["checkpoint", "inspect", &to.path]);
        for key in [
            "checkpoint",
            "created_at",
            "engine",
            "files",
            "guest",
            "memory",
            "memory_mib",
            "vcpus",
            "version",
        ] {
            assert!(keys(&inspected).contains(&key), "{key}: {inspected}");
        }
        let bundles = home.json(&["checkpoint", "list", home.checkpoints().to_str().unwrap()]);
        for bundle in array(&bundles) {
            assert_eq!(
                keys(bundle),
                [
                    "created_at",
                    "engine",
                    "memory",
                    "name",
                    "parent",
                    "sha256",
                    "size",
                    "state"
                ]
            );
        }
        let doctor = home.brood(&["doctor", "--json"]).json();
        assert_eq!(keys(&doctor), ["checks", "facts", "guests", "ok"]);
        let _ = keys(&home.json(&["plan", &to.path, "--host-memory", "24G"]));
    });
}
