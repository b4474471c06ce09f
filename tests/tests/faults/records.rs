//! Scenes of what is kept: a delta that is flattened, and a damaged record that is rebuilt.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use brood_tests::{Demo, EngineKind, Home, Ran, pool_home, text, without_kvm};
use serde_json::Value;

use crate::{
    guests::MARK_AT,
    visits::{Scene, no_drafts, owned, strs, unsealed},
};

/// `brood checkpoint flatten`.
pub(crate) struct Flatten {
    home: Home,
    delta: Demo,
}

impl Flatten {
    pub(crate) fn new() -> Option<Self> {
        if without_kvm() {
            return None;
        }
        let home = Home::bare();
        let demo = home.demo("demo", "4M");
        home.restore(&demo, 1, "g");
        let _ = home.ask("g-1", &format!("poke {MARK_AT} 7"));
        let delta = home.named("delta");
        let _ = home.brood(&["suspend", "g-1", &delta.path, "--delta"]).ok();
        Some(Self { home, delta })
    }
}

impl Scene for Flatten {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        let flat = self.home.named("flat");
        owned(&["checkpoint", "flatten", &self.delta.path, &flat.path])
    }

    fn check(&mut self, ran: &Ran, told: &str) {
        let home = &self.home;
        let flat = home.named("flat");
        no_drafts(home, told);
        let is_there = flat.file("ckp.brood").exists();
        match ran.code() {
            Some(0) => assert!(is_there, "{told}"),
            Some(_) => assert!(!is_there, "{told}"),
            None => {}
        }
        if !is_there {
            let words = owned(&["checkpoint", "flatten", &self.delta.path, &flat.path]);
            let again = home.brood(&strs(&words));
            assert_eq!(again.code(), Some(0), "{told}: {again:?}");
        }
        let _ = home.brood(&["checkpoint", "verify", &flat.path]).ok();
        home.restore(&flat, 1, "f");
        assert_eq!(home.peek("f-1", MARK_AT), 7, "{told}");
        home.destroy_all();
        let _ = home.brood(&["checkpoint", "remove", &flat.path]).ok();
        assert_eq!(unsealed(home), Vec::<PathBuf>::new(), "{told}");
    }
}

/// `brood checkpoint demo`.
pub(crate) struct MakeDemo {
    home: Home,
}

impl MakeDemo {
    pub(crate) fn new() -> Option<Self> {
        if without_kvm() {
            return None;
        }
        let home = Home::bare();
        fs::create_dir_all(home.checkpoints()).expect("there is room");
        Some(Self { home })
    }
}

impl Scene for MakeDemo {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        let made = self.home.named("made");
        owned(&["checkpoint", "demo", &made.path, "--memory", "4M"])
    }

    fn check(&mut self, ran: &Ran, told: &str) {
        let home = &self.home;
        let made = home.named("made");
        no_drafts(home, told);
        let is_there = made.file("ckp.brood").exists();
        match ran.code() {
            Some(0) => assert!(is_there, "{told}"),
            Some(_) => assert!(!is_there, "{told}"),
            None => {}
        }
        if !is_there {
            let words = self.prepare();
            let again = self.home.brood(&strs(&words));
            assert_eq!(again.code(), Some(0), "{told}: {again:?}");
        }
        let _ = self.home.brood(&["checkpoint", "verify", &made.path]).ok();
        let _ = self.home.brood(&["checkpoint", "remove", &made.path]).ok();
        assert_eq!(unsealed(&self.home), Vec::<PathBuf>::new(), "{told}");
    }
}

/// `brood checkpoint import` of what bhyve wrote.
pub(crate) struct Import {
    home: Home,
}

impl Import {
    pub(crate) fn new() -> Option<Self> {
        let home = Home::on(EngineKind::Bhyve)?;
        Some(Self { home })
    }
}

impl Scene for Import {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        let machine = self.home.machine().expect("bhyve has a machine");
        let folder = self.home.path().join("raw");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let (raw, conf) = (folder.join("first"), folder.join("web.conf"));
        machine.suspend_to(&raw);
        fs::write(&conf, machine.config()).unwrap();
        let (raw, conf) = (raw.display().to_string(), conf.display().to_string());
        let to = self.home.named("web").path;
        let words = ["checkpoint", "import", &raw, &to, "--bhyve-config", &conf];
        owned(&[&words[..], &["--agent", "1"]].concat())
    }

    fn check(&mut self, ran: &Ran, told: &str) {
        let home = &self.home;
        no_drafts(home, told);
        let web = home.named("web");
        if !web.file("ckp.brood").exists() {
            assert_ne!(ran.code(), Some(0), "{told}");
            let words = self.prepare();
            let again = self.home.brood(&strs(&words));
            assert_eq!(again.code(), Some(0), "{told}: {again:?}");
        }
        let home = &self.home;
        home.restore(&web, 1, "i");
        home.destroy_all();
        let _ = home.brood(&["checkpoint", "remove", &web.path]).ok();
        assert_eq!(unsealed(home), Vec::<PathBuf>::new(), "{told}");
    }
}

/// `brood state rebuild`.
pub(crate) struct Rebuild {
    home: Home,
    demo: Demo,
    suspended: Value,
}

impl Rebuild {
    pub(crate) fn new(on: EngineKind) -> Option<Self> {
        let (home, demo) = pool_home(on, 1, &["--lease", "3600"])?;
        Some(Self {
            home,
            demo,
            suspended: Value::Null,
        })
    }
}

impl Scene for Rebuild {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        let home = &self.home;
        home.restore(&self.demo, 1, "g");
        self.suspended = home.claim();
        let guest = text(&self.suspended["guest"]);
        let _ = home.ask(guest, &format!("poke {MARK_AT} 9"));
        let token = text(&self.suspended["token"]);
        let _ = home.brood(&["pool", "suspend", token]).ok();
        let database = home.state().join("brood.sqlite");
        let file = File::options().write(true).open(database).unwrap();
        file.write_all_at(&[0x5a; 100], 0).unwrap();
        owned(&["state", "rebuild"])
    }

    fn check(&mut self, ran: &Ran, told: &str) {
        let home = &self.home;
        let is_whole = home.brood(&["state", "check"]).code() == Some(0);
        assert!(!matches!(ran.code(), Some(0 | 3)) || is_whole, "{told}");
        if !is_whole {
            let again = home.brood(&["state", "rebuild"]);
            assert!(matches!(again.code(), Some(0 | 3)), "{told}: {again:?}");
        }
        assert!(home.converges().contains(&"g-1".to_owned()), "{told}");
        let back = home.json(&["pool", "resume", text(&self.suspended["token"])]);
        assert_eq!(home.peek(text(&back["guest"]), MARK_AT), 9, "{told}");
        home.release(&self.suspended);
        home.destroy_all();
        home.fill();
        home.destroy_all();
    }
}
