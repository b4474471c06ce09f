//! Tests of the display at two sizes of the terminal.

use insta::assert_snapshot;
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
};
use serde_json::{Value, json};

use super::*;
use crate::cli::top::view::KeyOutcome;

fn guest(name: &str, state: &str, private_kib: u64, age: u32) -> Value {
    let mut guest = json!({
        "name": name, "id": "16f31da1b4e7e9c0", "state": state, "pid": 4711, "engine": "kvm",
        "memory_mib": 256.0, "checkpoint": "/var/tmp/ckp/demo", "checkpoint_sha256": "00",
        "generation": "00", "mac": "02:00:00:00:00:01",
        "created_at": format!("2026-01-02T03:{:02}:05Z", 4 - age / 60),
        "reason": null, "disk": null, "disk_path": null,
    });
    if state == "dead" {
        guest["pid"] = Value::Null;
        guest["reason"] = "killed by signal 9".into();
    } else {
        guest["private_bytes"] = (private_kib << 10).into();
        guest["shared_bytes"] = (60_u64 << 10).into();
        guest["process_bytes"] = (300_u64 << 10).into();
        guest["page_table_bytes"] = (48_u64 << 10).into();
    }
    guest
}

fn pool(name: &str, hot: (u64, u64), claims: &Value) -> Value {
    json!({
        "name": name, "checkpoint": "/var/tmp/ckp/demo", "sha256": "00", "hot": hot.1,
        "hot_min": null, "max": null, "max_memory": null, "max_age_s": null,
        "refill_rate": null, "lease_s": 300, "private_limit": 1_048_576, "created_at": "2026-01-02T03:04:05Z",
        "entries": { "filling": 2, "hot": hot.0, "claimed": 7, "releasing": 0, "suspended": 1 },
        "claims": claims,
    })
}

fn picture() -> Picture {
    let mut guests = vec![
        guest("web-1", "running", 4_004, 120),
        guest("web-2", "paused", 8, 60),
        guest("demo-10", "running", 1_024, 0),
        guest("demo-9", "dead", 0, 0),
    ];
    guests.extend((11..60).map(|n| guest(&format!("demo-{n}"), "paused", n, 0)));
    let claims = json!({
        "total": 1234, "mean_ms": 1.25, "per_second": 41.2, "p50_ms": 0.81, "p99_ms": 12.4,
    });
    let mut picture: Picture = serde_json::from_value(json!({
        "at": "2026-01-02T03:04:05.678Z",
        "daemon": 321,
        "host": {
            "memory_total_bytes": 25_769_803_776_u64, "memory_available_bytes": 20_401_094_656_u64,
            "tasks": 512, "pid_max": 4_194_304,
        },
        "density": { "guests": 0, "own_bytes": 0, "mib_per_guest": 0.0 },
        "pools": [pool("web", (50, 50), &claims), pool("api", (3, 20), &Value::Null)],
        "restores": [
            { "request_id": "a", "checkpoint": "/var/tmp/ckp/demo", "asked": 200, "restored": 40,
              "failed": 1 },
            { "request_id": "", "pool": "api", "checkpoint": "/var/tmp/ckp/demo", "asked": 17,
              "restored": 2, "failed": 0 },
        ],
        "guests": guests,
    }))
    .expect("a picture");
    picture.density = crate::cli::top::picture::Density::of(&picture.guests);
    picture
}

fn display() -> Display {
    let mut display = Display::default();
    display
        .history
        .extend((0..90).map(|n| (512 << 10) + (n % 30) * (17 << 10)));
    display.update(picture());
    display
}

fn seen(display: &Display, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, display)).expect("drawn");
    terminal.backend().to_string()
}

fn press(display: &mut Display, keys: &str) {
    for key in keys.chars() {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            key => KeyCode::Char(key),
        };
        let then = display.key(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(then, KeyOutcome::Go, "{key:?} ends it");
    }
}

#[test]
fn it_fits_a_small_terminal_and_a_wide_one() {
    assert_snapshot!("small", seen(&display(), 80, 24));
    assert_snapshot!("wide", seen(&display(), 160, 40));
}

#[test]
fn nothing_is_too_small_for_it() {
    for (width, height) in [(1, 1), (10, 3), (79, 5), (40, 24), (300, 2)] {
        let mut display = display();
        let _ = seen(&display, width, height);
        display.help = true;
        let _ = seen(&display, width, height);
    }
    assert!(seen(&Display::default(), 80, 24).contains("looking"));
}

#[test]
fn names_of_folders_are_written_out() {
    let hostile = "/a\u{1b}]0;x\u{7}\u{9b}31m\u{202e}\nz/demo";
    let mut picture = picture();
    picture.guests[0].checkpoint = hostile.to_owned();
    picture.guests[1].reason = Some(hostile.to_owned());
    picture.restores[0].checkpoint = hostile.to_owned();
    let text = text::render(&picture, crate::cli::top::view::Sort::Private, "");
    let mut display = display();
    display.update(picture);
    for seen in [seen(&display, 160, 40), text] {
        let acts = |c: char| brood_core::escaped::is_unprintable(c) && c != '\n';
        assert!(!seen.contains(acts), "{seen:?}");
        assert!(
            seen.contains(r"\u{1b}]0;x\u{7}\u{9b}31m\u{202e}\u{a}z"),
            "{seen}"
        );
    }
}

#[test]
fn keys_sort_filter_explain_and_stop() {
    let mut display = display();
    press(&mut display, "ss/demo-1\n");
    assert_snapshot!("by_name_filtered", seen(&display, 80, 24));
    let names = |display: &Display| -> Vec<String> {
        display.guests().iter().map(|g| g.name.clone()).collect()
    };
    assert_eq!(names(&display)[..2], ["demo-10", "demo-11"]);
    press(&mut display, "r");
    assert_eq!(names(&display)[0], "demo-19");
    press(&mut display, "\u{1b}");
    assert_eq!(names(&display).len(), 53);
    press(&mut display, "?");
    assert_snapshot!("help", seen(&display, 80, 24));
    press(&mut display, "q");
    assert!(!display.help, "any key ends the help, and nothing else");

    press(&mut display, "p");
    let mut other = picture();
    other.guests.clear();
    display.update(other.clone());
    assert_eq!(names(&display).len(), 53, "it stands still");
    assert!(seen(&display, 80, 24).contains("stands still"));
    press(&mut display, " ");
    display.update(other);
    assert_eq!(names(&display).len(), 0);
    let q = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
    assert_eq!(display.key(q), KeyOutcome::Quit);
    let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(display.key(ctrl_c), KeyOutcome::Quit);
}

#[test]
fn without_a_daemon_it_says_so() {
    let mut picture = picture();
    picture.daemon = None;
    picture.restores.clear();
    picture.pools.clear();
    let mut display = Display::default();
    display.update(picture);
    assert_snapshot!("without_a_daemon", seen(&display, 100, 16));
}

#[test]
fn as_text_it_is_the_same() {
    let picture = picture();
    let text = text::render(&picture, crate::cli::top::view::Sort::Private, "web");
    assert_snapshot!("as_text", text);
}
