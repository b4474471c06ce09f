//! Daemon killed before each of its steps, one after the other. A step is a system call that
//! changes something outside its own memory. The next daemon completes whatever the killed one was
//! doing, and what was acknowledged stands.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use brood_tests::{Call, Daemon, Demo, Home, Then, Tracer, text, until, whole};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

const HOT: u64 = 2;
const MARK_AT: u64 = 0x20_0000;

/// A pool `p` whose daemon is killed again and again.
struct Scene {
    home: Home,
    demo: Demo,
    daemon: Option<Daemon>,
    /// Steps before which a daemon was killed.
    killed: Vec<Call>,
}

/// A request.
struct Asked {
    method: Method,
    path: String,
    body: Value,
}

impl Asked {
    fn new(method: Method, path: &str, body: Value) -> Self {
        Self {
            method,
            path: format!("/api/v1{path}"),
            body,
        }
    }
}

impl Scene {
    fn new() -> Option<Self> {
        let home = Home::with_kvm()?;
        let demo = home.demo("demo", "4M");
        let daemon = Some(Daemon::start(&home));
        let scene = Self {
            home,
            demo,
            daemon,
            killed: Vec::new(),
        };
        scene.make_pool();
        scene.converges(0, 0);
        Some(scene)
    }

    fn make_pool(&self) {
        let pool =
            json!({ "name": "p", "checkpoint": self.demo.path, "hot": HOT, "lease_s": 3600 });
        self.daemon().post("/api/v1/pools", &pool, 201);
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("there is one")
    }

    /// Puts a request to a daemon that is killed before its step `nth` from then on; the next one
    /// is there when this returns. `None` when it was killed, else its answer: it has fewer steps.
    fn ask_and_kill(&mut self, asked: &Asked, nth: u64) -> Option<(u16, Value)> {
        let count = Arc::new(AtomicU64::new(0));
        let steps = Arc::clone(&count);
        let tracer = Tracer::attach(&[self.daemon().pid()], move |call| {
            if call.is_step() && steps.fetch_add(1, Ordering::Relaxed) + 1 == nth {
                return Then::Kill;
            }
            Then::GoOn
        });
        let request = self.daemon().request(asked.method.clone(), &asked.path);
        let request = match &asked.body {
            Value::Null => request,
            body => request.json(body),
        };
        let answer = request.send().ok().and_then(|response| {
            let status = response.status().as_u16();
            Some((status, response.text().ok()?))
        });
        let killed = tracer.end();
        if let Some(call) = killed {
            self.killed.push(call);
            let dead = self.daemon.take().expect("there was one").wait();
            assert_eq!(dead.killed_by(), Some(Signal::SIGKILL as i32));
            self.daemon = Some(Daemon::start(&self.home));
        }
        let (status, body) = answer?;
        Some((status, serde_json::from_str(&body).unwrap_or(Value::Null)))
    }

    /// Waits until the pool has all that it should have, so many claims, and so many that rest.
    fn converges(&self, claimed: u64, cold: u64) {
        until("the pool to be as it should be", || {
            let shown = self.daemon().get("/api/v1/pools/p");
            let entries = &shown["entries"];
            let is = |what: &str, n| whole(&entries[what]) == n;
            (is("hot", HOT)
                && is("filling", 0)
                && is("releasing", 0)
                && is("claimed", claimed)
                && is("suspended", cold))
            .then_some(())
        });
        until("what is listed and what runs to be the same", || {
            (self.home.list().len() as u64 == HOT + claimed).then_some(())
        });
    }

    fn claims(&self) -> u64 {
        whole(&self.daemon().get("/api/v1/pools/p")["entries"]["claimed"])
    }

    fn token(&self) -> (String, String) {
        let claim = self
            .daemon()
            .post("/api/v1/pools/p/claims", &json!({}), 201);
        (
            text(&claim["token"]).to_owned(),
            text(&claim["id"]).to_owned(),
        )
    }

    fn mark(&self, guest: &str, mark: u64) {
        let request = json!({ "request": ["poke", MARK_AT.to_string(), mark.to_string()] });
        self.daemon()
            .post(&format!("/api/v1/guests/{guest}/ask"), &request, 200);
    }

    fn marked(&self, guest: &str) -> u64 {
        let request = json!({ "request": ["peek", MARK_AT.to_string()] });
        whole(
            &self
                .daemon()
                .post(&format!("/api/v1/guests/{guest}/ask"), &request, 200)["value"],
        )
    }

    fn end(mut self) {
        self.daemon()
            .send(Method::DELETE, "/api/v1/pools/p?force=true", 204);
        let cold = self.home.suspended();
        let left = std::fs::read_dir(cold).into_iter().flatten().count();
        assert_eq!(left, 0, "bundles are left");
        let daemon = self.daemon.take().expect("there is one");
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0));
        println!("killed before {} steps", self.killed.len());
        assert!(!self.killed.is_empty());
        self.home.destroy_all();
    }
}

#[test]
fn a_claim_is_killed_at_each_step() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let claim = Asked::new(Method::POST, "/pools/p/claims", json!({}));
    let mut told = Vec::new();
    for nth in 1.. {
        let before = scene.claims();
        let kills = scene.killed.len();
        let answer = scene.ask_and_kill(&claim, nth);
        if let Some((status, claim)) = &answer {
            assert_eq!(*status, 201, "{claim}");
            told.push((
                text(&claim["token"]).to_owned(),
                text(&claim["id"]).to_owned(),
            ));
        }
        let after = scene.claims();
        assert!(
            after - before <= 1,
            "{before} and then {after} were claimed"
        );
        if scene.killed.len() == kills {
            break;
        }
        scene.converges(after, 0);
    }
    for (n, (token, guest)) in told.iter().enumerate() {
        assert!(
            !told[..n].iter().any(|(_, other)| other == guest),
            "{guest} is two claimers'"
        );
        scene.mark(guest, n as u64);
        scene
            .daemon()
            .send(Method::DELETE, &format!("/api/v1/claims/{token}"), 204);
    }
    scene.end();
}

#[test]
fn a_release_is_killed_at_each_step() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    for nth in 1.. {
        let (token, _) = scene.token();
        let release = Asked::new(Method::DELETE, &format!("/claims/{token}"), Value::Null);
        let kills = scene.killed.len();
        let _ = scene.ask_and_kill(&release, nth);
        if scene.killed.len() == kills {
            break;
        }
        // It was released, or can be.
        let again = scene.daemon().request(Method::DELETE, &release.path).send();
        assert!([204, 404].contains(&again.expect("an answer").status().as_u16()));
        scene.converges(0, 0);
    }
    scene.end();
}

/// Suspends and resumes a claim again and again, one of which is killed at each step. Wherever the
/// claim is then, its guest comes back as it was.
fn rests_and_comes_back(killed_at: &str) {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let (token, mut guest) = scene.token();
    let suspend = Asked::new(
        Method::POST,
        &format!("/claims/{token}/suspend"),
        Value::Null,
    );
    let resume = Asked::new(Method::POST, &format!("/claims/{token}/resume"), json!({}));
    for nth in 1.. {
        scene.mark(&guest, nth);
        let kills = scene.killed.len();
        if killed_at == "suspend" {
            if let Some((status, body)) = scene.ask_and_kill(&suspend, nth) {
                assert_eq!(status, 200, "{body}");
                scene.converges(0, 1);
            }
        } else {
            scene.daemon().send(Method::POST, &suspend.path, 200);
            let _ = scene.ask_and_kill(&resume, nth);
        }
        let back = scene.daemon().post(&resume.path, &json!({}), 200);
        text(&back["id"]).clone_into(&mut guest);
        assert_eq!(scene.marked(&guest), nth, "at {:?}", scene.killed.last());
        scene.converges(1, 0);
        if scene.killed.len() == kills {
            break;
        }
    }
    scene
        .daemon()
        .send(Method::DELETE, &format!("/api/v1/claims/{token}"), 204);
    scene.end();
}

#[test]
fn a_suspension_is_killed_at_each_step() {
    rests_and_comes_back("suspend");
}

#[test]
fn a_resumption_is_killed_at_each_step() {
    rests_and_comes_back("resume");
}

#[test]
fn the_making_and_removal_of_a_pool_are_killed_at_each_step() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let remove = Asked::new(Method::DELETE, "/pools/p", Value::Null);
    let pool = json!({ "name": "p", "checkpoint": scene.demo.path, "hot": HOT, "lease_s": 3600 });
    let make = Asked::new(Method::POST, "/pools", pool);
    for nth in 1.. {
        let kills = scene.killed.len();
        let _ = scene.ask_and_kill(&remove, nth);
        let again = scene.daemon().request(Method::DELETE, &remove.path).send();
        assert!([204, 404].contains(&again.expect("an answer").status().as_u16()));
        until("its guests to be gone", || {
            scene.home.list().is_empty().then_some(())
        });
        let _ = scene.ask_and_kill(&make, nth);
        let again = scene
            .daemon()
            .request(Method::POST, &make.path)
            .json(&make.body)
            .send();
        assert!([201, 409].contains(&again.expect("an answer").status().as_u16()));
        scene.converges(0, 0);
        if scene.killed.len() == kills {
            break;
        }
    }
    scene.end();
}
