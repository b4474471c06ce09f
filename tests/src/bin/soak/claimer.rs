//! Claimer: a client that claims guests and uses them. It remembers every answer of the daemon, and
//! checks later answers against them.

use std::{
    thread,
    time::{Duration, Instant},
};

use brood_tests::{Random, text};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    mark,
    scene::{Counts, Held, Pool, Scene},
    talk::{Answer, Talk},
};

/// Claims and uses guests until the soak is over.
pub(crate) fn run(scene: &Scene, mut random: Random) {
    let talk = scene.talk();
    while !scene.is_done() {
        let pool = random.choose(&scene.pools);
        let Some(mut claim) = claim(scene, &talk, pool, &mut random) else {
            continue;
        };
        let mut there = true;
        for _ in 0..random.below(6) {
            thread::sleep(Duration::from_millis(random.below(150)));
            let doing = scene.doing();
            there = claim.use_once(scene, &talk, &mut random);
            drop(doing);
            if !there || scene.is_done() {
                break;
            }
        }
        let doing = scene.doing();
        if there && random.below(8) == 0 && !claim.held.suspended {
            // Its lease ends it.
            Counts::add(&scene.counts.abandoned);
            scene.let_go(&claim.token);
        } else if there {
            claim.release(scene, &talk);
        }
        drop(doing);
    }
}

struct Claim {
    token: String,
    held: Held,
    /// When the daemon last confirmed a new lease.
    renewed: Instant,
}

fn claim(scene: &Scene, talk: &Talk, pool: &Pool, random: &mut Random) -> Option<Claim> {
    let _doing = scene.doing();
    let asked = Instant::now();
    let path = format!("/pools/{}/claims", pool.name);
    // A claim whose answer is lost ends with its lease: it is not put again.
    let answer = talk.once(&Method::POST, &path, Some(&json!({ "wait_s": 2.0 })))?;
    if answer.status != 201 {
        // 507: its disk is full for the moment.
        let passes = [500, 503, 504, 507].contains(&answer.status);
        assert!(passes, "a claim was answered with {answer:?}");
        thread::sleep(Duration::from_millis(20));
        return None;
    }
    Counts::add(&scene.counts.claims);
    let told = &answer.body;
    let (guest, id) = (
        text(&told["guest"]).to_owned(),
        text(&told["id"]).to_owned(),
    );
    scene.give(&format!("guest {id}"));
    let pid = i32::try_from(told["pid"].as_i64().expect("a process")).expect("a process id");
    let mut claim = Claim {
        token: text(&told["token"]).to_owned(),
        held: Held {
            guest,
            id,
            pid,
            mark: pool.pristine,
            suspended: false,
        },
        renewed: asked,
    };
    scene.hold(&claim.token, claim.held.clone());
    if !claim.look(scene, talk) {
        return None;
    }
    let mark = random.below(u64::MAX >> 1) | 1;
    claim.write(scene, talk, mark).then_some(claim)
}

impl Claim {
    /// Does one thing with it; `false` when it is not there any more, for a good reason.
    fn use_once(&mut self, scene: &Scene, talk: &Talk, random: &mut Random) -> bool {
        match random.below(8) {
            0..3 if self.held.suspended => self.resume(scene, talk),
            _ if self.held.suspended => true,
            0..2 => self.suspend(scene, talk),
            2 => self.write(scene, talk, random.below(u64::MAX >> 1) | 1),
            3..5 => self.renew(scene, talk),
            _ => self.look(scene, talk),
        }
    }

    /// Looks whether its guest is its own: what was written last is there.
    fn look(&mut self, scene: &Scene, talk: &Talk) -> bool {
        match self.ask(scene, talk, &mark::read(scene.engine)) {
            None => false,
            Some(answer) => {
                assert_eq!(
                    mark::of(scene.engine, &answer),
                    Some(self.held.mark),
                    "{:?} finds what is not its own: {answer}",
                    self.held
                );
                true
            }
        }
    }

    fn write(&mut self, scene: &Scene, talk: &Talk, mark: u64) -> bool {
        let write = mark::write(scene.engine, mark);
        if self.ask(scene, talk, &write).is_none() {
            return false;
        }
        self.held.mark = mark;
        scene.hold(&self.token, self.held.clone());
        true
    }

    fn ask(&mut self, scene: &Scene, talk: &Talk, request: &[String]) -> Option<Value> {
        if !self.renew(scene, talk) {
            return None;
        }
        let path = format!("/guests/{}/ask", self.held.id);
        let answer = talk.until_told(&Method::POST, &path, Some(&json!({ "request": request })));
        if answer.is_ok() {
            return Some(answer.body);
        }
        self.may_be_gone(scene, talk, &answer);
        None
    }

    fn renew(&mut self, scene: &Scene, talk: &Talk) -> bool {
        let asked = Instant::now();
        let path = format!("/claims/{}", self.token);
        let answer = talk.until_told(
            &Method::PUT,
            &path,
            Some(&json!({ "lease_s": scene.lease_s })),
        );
        if answer.is_ok() {
            self.renewed = asked;
            return true;
        }
        self.may_be_gone(scene, talk, &answer);
        false
    }

    fn suspend(&mut self, scene: &Scene, talk: &Talk) -> bool {
        if !self.renew(scene, talk) {
            return false;
        }
        let path = format!("/claims/{}/suspend", self.token);
        let answer = talk.until_told(&Method::POST, &path, None);
        if !answer.is_ok() {
            self.may_be_gone(scene, talk, &answer);
            return false;
        }
        Counts::add(&scene.counts.suspends);
        self.held.suspended = true;
        scene.hold(&self.token, self.held.clone());
        true
    }

    /// A suspended claim is there whatever was killed, and comes back as it was. Only one that has
    /// come back, when the answer that said so was lost, may end as any other: with its lease.
    fn resume(&mut self, scene: &Scene, talk: &Talk) -> bool {
        let path = format!("/claims/{}/resume", self.token);
        let begin = Instant::now();
        let mut unanswered = false;
        let answer = loop {
            let asked = Instant::now();
            let answer = talk.once(&Method::POST, &path, Some(&json!({ "wait_s": 2.0 })));
            unanswered |= answer.is_none();
            match answer {
                Some(answer) if answer.is_ok() => {
                    self.renewed = asked;
                    break answer;
                }
                Some(answer) if answer.kind() == "no-such-claim" => {
                    let over = begin.elapsed() > Duration::from_secs(scene.lease_s);
                    assert!(
                        unanswered && over,
                        "{:?} was suspended, and is not known any more",
                        self.held
                    );
                    Counts::add(&scene.counts.lost_with_their_guest);
                    scene.let_go(&self.token);
                    return false;
                }
                // A pool that is full, a guest that was killed while it was restored.
                _ if begin.elapsed() < Duration::from_secs(60) => {
                    thread::sleep(Duration::from_millis(20));
                }
                answer => panic!(
                    "{:?} is suspended, and cannot be resumed: {answer:?}",
                    self.held
                ),
            }
        };
        Counts::add(&scene.counts.resumes);
        self.held.suspended = false;
        self.held.guest = text(&answer.body["guest"]).to_owned();
        self.held.id = text(&answer.body["id"]).to_owned();
        self.held.pid =
            i32::try_from(answer.body["pid"].as_i64().expect("a process")).expect("a process id");
        scene.give(&format!("guest {}", self.held.id));
        scene.hold(&self.token, self.held.clone());
        self.look(scene, talk)
    }

    fn release(&self, scene: &Scene, talk: &Talk) {
        let path = format!("/claims/{}", self.token);
        scene.let_go(&self.token);
        let answer = talk.until_told(&Method::DELETE, &path, None);
        // Released by a request whose answer was lost.
        assert!(answer.is_ok() || answer.status == 404, "{answer:?}");
        Counts::add(&scene.counts.releases);
    }

    /// Its guest is gone, or it is: only when somebody killed the one, or it was not renewed for
    /// longer than its lease.
    fn may_be_gone(&self, scene: &Scene, talk: &Talk, answer: &Answer) {
        let killed = scene.was_killed(self.held.pid);
        let over = self.renewed.elapsed() > Duration::from_secs(scene.lease_s);
        assert!(
            killed || over,
            "{:?} was told {answer:?} ({}), and nobody had killed it",
            self.held,
            answer.kind()
        );
        Counts::add(&scene.counts.lost_with_their_guest);
        self.release(scene, talk);
    }
}
