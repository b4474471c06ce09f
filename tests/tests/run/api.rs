//! Programs, files and consoles of guests over the API.

use std::thread;

use brood_tests::{Daemon, Home, text, until};
use reqwest::Method;
use serde_json::{Value, json};

use super::{MIB, bytes, digest, runs, sh};

fn kind(problem: &Value) -> &str {
    text(&problem["type"])
}

#[test]
fn the_api_runs_programs_and_carries_files() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let daemon = Daemon::start(&home);
    let exec = |body: &Value, status| daemon.post("/api/v1/guests/a-1/exec", body, status);
    let ran = exec(
        &json!({
            "command": ["sh", "-c", "cat; echo $A; pwd; echo e >&2; exit 3"],
            "env": { "A": "b" }, "cwd": "/etc", "input": "typed\n",
        }),
        200,
    );
    assert_eq!(
        ran,
        json!({ "code": 3, "output": "typed\nb\n/etc\n", "error": "e\n" })
    );
    let slow = exec(
        &json!({ "command": ["sleep", "100"], "timeout_s": 0.5 }),
        200,
    );
    assert_eq!(slow["code"], 124);
    let missing = exec(&json!({ "command": ["no-such-program"] }), 404);
    assert!(kind(&missing).ends_with("not-in-guest"), "{missing}");
    // The image names no program, and what stands for its arguments is one.
    let none = exec(&json!({ "command": [] }), 400);
    assert!(text(&none["detail"]).contains("names no program"), "{none}");
    let ran = exec(&json!({ "args": ["echo", "x"] }), 200);
    assert_eq!((&ran["code"], &ran["output"]), (&json!(0), &json!("x\n")));
    let _ = exec(&json!({ "command": ["true"], "timeout_s": -1 }), 400);
    // Who writes without end is ended.
    let loud = exec(&json!({ "command": ["yes", "4711"] }), 409);
    assert!(kind(&loud).ends_with("too-much-output"), "{loud}");
    until("its end", || {
        (!runs(&home, "a-1", "yes 4711")).then_some(())
    });
    // Files, longer than any other body may be.
    let path = "/api/v1/guests/a-1/files?path=/root/new/file&mode=750";
    let sent = bytes(5 * MIB);
    let put = daemon.request(Method::PUT, path).body(sent.clone());
    assert_eq!(put.send().unwrap().status(), 204);
    let said = sh(
        &home,
        "a-1",
        "stat -c %a /root/new/file; sha256sum /root/new/file",
    )
    .stdout;
    assert!(
        said.starts_with(&format!("750\n{}", digest(&sent))),
        "{said}"
    );
    let got = daemon.request(Method::GET, path).send().unwrap();
    assert!(got.bytes().unwrap() == sent);
    let none = daemon.send(Method::GET, "/api/v1/guests/a-1/files?path=/no/file", 404);
    assert!(kind(&none).ends_with("not-in-guest"), "{none}");
    let _ = daemon.send(Method::GET, "/api/v1/guests/a-1/files?path=/root", 400);
    let _ = daemon.send(Method::PUT, "/api/v1/guests/a-1/files?path=/x&mode=9", 400);
    // The console.
    let _ = sh(&home, "a-1", "echo heard >/dev/ttyS0").ok();
    until("it to be logged", || {
        let logs = daemon.request(Method::GET, "/api/v1/guests/a-1/logs");
        let said = logs.send().unwrap().text().unwrap();
        said.contains("heard").then_some(())
    });
    let _ = home.brood(&["pause", "a-1"]).ok();
    let paused = exec(&json!({ "command": ["true"] }), 409);
    assert!(text(&paused["detail"]).contains("paused"), "{paused}");
}

#[test]
fn who_waits_for_a_program_over_the_api_is_told_of_its_guests_suspend() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let daemon = Daemon::start(&home);
    let asked = json!({ "command": ["sleep", "4711"], "timeout_s": 300 });
    let waits = daemon.request(Method::POST, "/api/v1/guests/a-1/exec");
    let waits = thread::spawn(move || waits.json(&asked).send().unwrap());
    until("it to run", || {
        runs(&home, "a-1", "sleep 4711").then_some(())
    });
    let warm = home.named("warm");
    let _ = home.brood(&["suspend", "a-1", &warm.path]).ok();
    let answer = waits.join().unwrap();
    let status = answer.status();
    let problem: Value = answer.json().unwrap();
    // Once all is done there is no such guest any more.
    if status != 404 {
        assert_eq!(status, 409, "{problem}");
        assert_eq!(kind(&problem), "urn:brood:error:guest-not-alive");
        let detail = text(&problem["detail"]);
        assert!(
            detail.contains("was suspended to") && detail.contains(&warm.path),
            "{problem}"
        );
    }
}
