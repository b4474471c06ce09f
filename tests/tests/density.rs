//! `brood density`: figures that add up, and nothing left behind.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use brood_tests::{Home, crowd, keys, sha256, text, until, whole};
use nix::sys::signal::Signal;
use serde_json::Value;

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn each_step_is_one_object_with_all_figures_and_they_add_up() {
    let Some(home) = Home::with_kvm() else { return };
    let _turn = crowd();
    let demo = home.demo("demo", "64M");
    let digest = sha256(&demo.ckp());
    let report = home.path().join("report");
    let ran = home
        .brood(&[
            "density",
            &demo.path,
            "--guests",
            "8,50",
            "--dirty-pages",
            "100",
            "--json",
            "--report",
            report.to_str().unwrap(),
        ])
        .ok();
    let steps: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(steps.len(), 2);
    for (step, guests) in steps.iter().zip([8, 50]) {
        let expected = [
            "answered",
            "breakdown",
            "checkpoint",
            "checkpoint_sha256_after",
            "checkpoint_sha256_before",
            "concurrency",
            "dirty_pages",
            "engine",
            "guests",
            "host_delta_mib",
            "machine",
            "memory_mib",
            "per_guest_mib",
            "restore_ms",
            "started_at",
            "wall_s",
        ];
        assert!(
            expected.iter().all(|key| keys(step).contains(key)),
            "{step}"
        );
        assert_eq!(
            (whole(&step["guests"]), whole(&step["answered"])),
            (guests, guests)
        );
        assert_eq!(
            (whole(&step["dirty_pages"]), whole(&step["memory_mib"])),
            (100, 64)
        );
        assert_eq!(
            (
                text(&step["checkpoint_sha256_before"]),
                text(&step["checkpoint_sha256_after"])
            ),
            (&*digest, &*digest)
        );
        let per_guest = number(&step["per_guest_mib"]);
        #[expect(clippy::cast_precision_loss, reason = "8 or 50")]
        let each = number(&step["host_delta_mib"]) / guests as f64;
        assert!((per_guest - each).abs() < 1e-6, "{step}");
        let parts = step["breakdown"].as_object().unwrap();
        let sum: f64 = parts.values().map(number).sum();
        assert!(
            (sum - per_guest).abs() < 1e-6,
            "{sum} is not {per_guest}: {step}"
        );
        // 100 pages were written; the guest's own come on top.
        let private = number(&parts["guest_private"]);
        assert!((0.39..0.45).contains(&private), "{step}");
        let ms = &step["restore_ms"];
        let percentiles = ["p50", "p90", "p99", "max"].map(|name| number(&ms[name]));
        assert!(percentiles[0] > 0.0 && percentiles.is_sorted(), "{ms}");
        assert!(number(&step["wall_s"]) > 0.0);
        assert_eq!(
            keys(&step["machine"]),
            ["cores", "cpu", "kernel", "kvm", "memory_mib"]
        );
    }
    assert!(home.list().is_empty());
    home.nobody_is_left();

    let page = fs::read_to_string(report.join("index.html")).unwrap();
    assert!(
        page.contains("<svg") && page.contains("9,117"),
        "no curve against the reference"
    );
    assert!(
        !page.contains("http://") || !page.contains("src=\"http"),
        "not self-contained"
    );
    assert!(
        fs::read_to_string(report.join("density.svg"))
            .unwrap()
            .contains("<svg")
    );
    let figures: Value =
        serde_json::from_str(&fs::read_to_string(report.join("density.json")).unwrap()).unwrap();
    assert!(figures.to_string().contains(&digest));

    // What was measured is what plans reckon with from here on, unless the host was too noisy.
    let plan = home.json(&["plan", &demo.path]);
    let last = &steps[1];
    assert_eq!(
        plan.to_string().contains("density run of 50 guests"),
        last["noise"].is_null(),
        "{plan} {last}"
    );
    let table = home.brood(&["density", &demo.path, "--guests", "2"]).ok();
    assert!(
        table.stdout.contains("checkpoint unchanged") && table.stdout.contains("yes"),
        "{}",
        table.stdout
    );
}

#[test]
fn an_interrupted_measurement_leaves_no_guest() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    for at in [1, 30] {
        let mut measuring = home.start(&["density", &demo.path, "--guests", "60,60,60", "--json"]);
        until("guests to be restored", || {
            (home.guests().len() >= at || measuring.ended()).then_some(())
        });
        measuring.signal(Signal::SIGINT);
        let ran = measuring.wait();
        assert_eq!(ran.code(), Some(130), "{ran:?}");
        assert!(
            ran.stdout.lines().count() <= 1,
            "it went on: {}",
            ran.stdout
        );
        assert!(home.list().is_empty(), "{:?}", home.list());
        home.nobody_is_left();
    }
}

#[test]
fn a_killed_measurement_leaves_guests_that_are_listed() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let measuring = home.start(&["density", &demo.path, "--guests", "20", "--json"]);
    until("guests to be restored", || {
        (home.guests().len() >= 10).then_some(())
    });
    measuring.signal(Signal::SIGKILL);
    let _ = measuring.wait();
    assert!(!home.converges().is_empty());
}

#[test]
fn guests_of_others_are_left_alone() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 3, "mine");
    let ran = home
        .brood(&["density", &demo.path, "--guests", "5", "--json"])
        .ok();
    assert_eq!(ran.json()["answered"], 5);
    assert_eq!(home.converges(), ["mine-1", "mine-2", "mine-3"]);
}

/// Takes memory and gives it back, again and again, until it is dropped.
struct Noise {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Noise {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let taken = vec![1_u8; 448 << 20];
                thread::sleep(Duration::from_millis(150));
                assert_eq!(taken[taken.len() / 2], 1);
                drop(taken);
                thread::sleep(Duration::from_millis(150));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_noisy_host_is_measured_again_and_then_warned_of() {
    let Some(home) = Home::with_kvm() else { return };
    let _turn = crowd();
    let demo = home.demo("demo", "4M");
    let report = home.path().join("report");
    let out = report.to_str().expect("plain letters");
    let noise = Noise::start();
    let args = ["density", &demo.path, "--guests", "50", "--report", out];
    let ran = home.brood(&args).ok();
    drop(noise);
    let again = ran.stderr.matches("50 guests are measured again: ").count();
    assert_eq!(again, 2, "{ran:?}");
    assert!(
        ran.stderr.contains("warning: the host is too noisy"),
        "{ran:?}"
    );
    let row = ran.stdout.lines().nth(1).expect("a row");
    assert!(row.contains("host noise"), "{row}");
    assert_eq!(
        ran.stdout.matches("host noise").count(),
        1,
        "one row: {ran:?}"
    );
    let page = fs::read_to_string(report.join("index.html")).unwrap();
    assert!(page.contains("the step of 50 guests does not say what they cost"));
    let plan = home.json(&["plan", &demo.path]).to_string();
    assert!(
        !plan.contains("density run"),
        "noise is planned with: {plan}"
    );
    home.nobody_is_left();
}
