//! Signatures of checkpoints: one that must be signed is restored only when it is, by a command and
//! by the daemon, and one that was changed since is not.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use brood_tests::{Daemon, Demo, Home, Ran, Running, text};
use reqwest::Method;
use serde_json::{Value, json};

/// Keys that openssl made for these tests, secret and public: the base64 between the lines of PEM.
const MINE: [&str; 2] = [
    "MC4CAQAwBQYDK2VwBCIEIKDM3ia8mFxQhkx2diF+k3/vZBOfbzhSwBhAF6L6jFXJ",
    "MCowBQYDK2VwAyEAjQx7uYET7/glYdplOuv3qK1GN+FFAn71LghbMpL263s=",
];
const OTHERS: [&str; 2] = [
    "MC4CAQAwBQYDK2VwBCIEIAb/rrCYQGyhHcmGbXN9us0cteka4PzQPR4keR4EXGuN",
    "MCowBQYDK2VwAyEAB2HWBESwLflHfrvYp2GnuKlEB0XfvviLJDjLNOA4Q/Q=",
];

fn pem(what: &str, base64: &str) -> String {
    format!("-----BEGIN {what} KEY-----\n{base64}\n-----END {what} KEY-----\n")
}

/// A home whose configuration requires signatures.
struct Scene {
    home: Home,
    demo: Demo,
    signers: PathBuf,
    config: PathBuf,
}

impl Scene {
    fn new() -> Option<Self> {
        let home = Home::with_kvm()?;
        let demo = home.demo("demo", "4M");
        let signers = home.path().join("signers");
        fs::create_dir(&signers).unwrap();
        fs::set_permissions(&signers, fs::Permissions::from_mode(0o755)).unwrap();
        let scene = Self {
            demo,
            config: home.path().join("brood.toml"),
            signers,
            home,
        };
        let config = format!("[restore]\nsigners = {:?}\n", scene.signers);
        fs::write(&scene.config, config).unwrap();
        scene.key("mine.pem", MINE[0], 0o600);
        scene.key("others.pem", OTHERS[0], 0o600);
        scene.signer("mine.pem", MINE[1]);
        Some(scene)
    }

    fn key(&self, name: &str, base64: &str, mode: u32) {
        let file = self.home.path().join(name);
        fs::write(&file, pem("PRIVATE", base64)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn signer(&self, name: &str, base64: &str) {
        let file = self.signers.join(name);
        fs::write(&file, pem("PUBLIC", base64)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn brood(&self, words: &[&str]) -> Ran {
        let mut command = self.home.command(words);
        command.env("BROOD_CONFIG", &self.config);
        Running::start(command).wait()
    }

    fn sign(&self, path: &str, key: &str) -> Ran {
        self.brood(&["checkpoint", "sign", path, "--key", key])
    }

    fn restore(&self, path: &str) -> Ran {
        self.brood(&["restore", path, "-n", "1", "--prefix", "g"])
    }

    #[track_caller]
    fn is_refused(&self, path: &str, why: &str) {
        let words = [
            "is not signed with a key of",
            why,
            "hint: ",
            "checkpoint sign",
        ];
        let _ = self.restore(path).exits(1).says(&words);
        let create = ["pool", "create", "p", path, "--hot", "1"];
        let _ = self.brood(&create).exits(1).says(&words[..2]);
        assert!(self.home.list().is_empty());
    }
}

fn signature(demo: &Demo) -> PathBuf {
    demo.file("ckp.sig")
}

#[test]
fn what_must_be_signed_is_restored_only_when_it_is() {
    let Some(scene) = Scene::new() else { return };
    let demo = &scene.demo;
    scene.is_refused(&demo.path, "it has no signature");
    let _ = scene.sign(&demo.path, "others.pem").ok();
    scene.is_refused(&demo.path, "it is signed with other keys only");
    // Who signs too leaves the others' signatures, and replaces an own one.
    let _ = scene.sign(&demo.path, "mine.pem").ok();
    let _ = scene.sign(&demo.path, "mine.pem").ok();
    let lines = fs::read_to_string(signature(demo)).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    let _ = scene.restore(&demo.path).ok();
    let _ = scene.home.ask("g-1", "ping");
    // It goes with its checkpoint.
    let moved = scene.home.path().join("moved");
    fs::create_dir(&moved).unwrap();
    for end in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood", "ckp.sig"] {
        fs::copy(demo.file(end), moved.join(format!("demo.{end}"))).unwrap();
    }
    let path = moved.join("demo").display().to_string();
    let _ = scene.restore(&path).ok();
    let _ = scene.home.brood(&["destroy", "--all"]).ok();
    let _ = scene.brood(&["checkpoint", "remove", &path]).ok();
    assert_eq!(moved.read_dir().unwrap().count(), 0);
    // A key that is taken away counts no more.
    fs::remove_file(scene.signers.join("mine.pem")).unwrap();
    scene.is_refused(&demo.path, "it is signed with other keys only");
}

#[test]
fn a_signature_is_of_one_checkpoint() {
    let Some(scene) = Scene::new() else { return };
    let _ = scene.sign(&scene.demo.path, "mine.pem").ok();
    let other = scene.home.demo("other", "4M");
    fs::copy(signature(&scene.demo), signature(&other)).unwrap();
    scene.is_refused(&other.path, "it was changed since it was signed with");
    // Any other character of it.
    let whole = fs::read_to_string(signature(&scene.demo)).unwrap();
    let file = signature(&scene.demo);
    fs::remove_file(&file).unwrap();
    for at in [0, 8, 20, 72, 74, 100, 200] {
        let mut broken = whole.clone().into_bytes();
        broken[at] = if broken[at] == b'0' { b'1' } else { b'0' };
        fs::write(&file, &broken).unwrap();
        scene.is_refused(&scene.demo.path, "it ");
    }
    fs::write(&file, &whole).unwrap();
    let _ = scene.restore(&scene.demo.path).ok();
}

#[test]
fn keys_that_others_have_or_that_are_none_are_refused() {
    let Some(scene) = Scene::new() else { return };
    let path = &scene.demo.path;
    scene.key("open.pem", MINE[0], 0o640);
    let _ = scene
        .sign(path, "open.pem")
        .exits(1)
        .says(&["others may read it", "chmod 600"]);
    let public = Path::new("signers/mine.pem").display().to_string();
    fs::set_permissions(
        scene.signers.join("mine.pem"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let _ = scene
        .sign(path, &public)
        .exits(1)
        .says(&["no secret ed25519 key"]);
    let _ = scene
        .sign(path, "missing.pem")
        .exits(1)
        .says(&["missing.pem"]);
    assert!(!signature(&scene.demo).exists());
    let _ = scene.sign(path, "mine.pem").ok();
    // A folder of keys that is wrong lets nothing pass.
    fs::write(scene.signers.join("a.pem"), "no key").unwrap();
    let _ = scene
        .restore(path)
        .exits(1)
        .says(&["a.pem", "no public ed25519 key"]);
    fs::remove_file(scene.signers.join("a.pem")).unwrap();
    fs::set_permissions(&scene.signers, fs::Permissions::from_mode(0o777)).unwrap();
    let _ = scene
        .restore(path)
        .exits(1)
        .says(&["everybody may change it"]);
    fs::rename(&scene.signers, scene.home.path().join("gone")).unwrap();
    let _ = scene.restore(path).exits(1).says(&["signers"]);
}

#[test]
fn the_daemon_requires_signatures_and_claims_are_suspended_without() {
    let Some(scene) = Scene::new() else { return };
    let config = scene.config.to_str().unwrap().to_owned();
    let daemon = Daemon::with_environment(&scene.home, &[("BROOD_CONFIG", &config)]);
    let pool = json!({ "name": "p", "checkpoint": scene.demo.path, "hot": 1 });
    let refused: Value = daemon.post("/api/v1/pools", &pool, 403);
    assert!(
        text(&refused["type"]).ends_with("checkpoint-not-signed"),
        "{refused}"
    );
    let _ = scene.sign(&scene.demo.path, "mine.pem").ok();
    daemon.post("/api/v1/pools", &pool, 201);
    let claim = daemon.post("/api/v1/pools/p/claims", &json!({}), 201);
    let claim = format!("/api/v1/claims/{}", text(&claim["token"]));
    daemon.send(Method::POST, &format!("{claim}/suspend"), 200);
    daemon.post(&format!("{claim}/resume"), &json!({}), 200);
    daemon.send(Method::DELETE, &claim, 204);
    daemon.send(Method::DELETE, "/api/v1/pools/p?force=true", 204);
}
