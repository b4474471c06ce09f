//! Real Linux guests in numbers and over time: fifty clones at once, a database over twenty suspends,
//! an agent that is killed, and a channel that is cut.

use std::{
    collections::HashSet,
    io::Write,
    os::unix::net::UnixStream,
    time::{Duration, Instant, SystemTime},
};

use brood_core::agent::{
    Agent, AgentError, Loss,
    protocol::{Exec, HostHello, RequestId, SessionId, ToGuest, encode, limits::VERSION},
};
use brood_tests::{
    Home, agent, crowd,
    linux_agent::{GUEST_PROGRAM, put_guest_program, said},
    until,
};

const CLONES: usize = 50;
/// How wrong a clone's clock may be. It was set to within 50 ms, and has gone on by itself since: on
/// a busy host that translates, it goes less well than on a real processor.
const CLOCK: Duration = Duration::from_secs(1);
const SUSPENDS: usize = 20;

/// How far a guest's clock is from this host's at least, and how long the look took.
fn clock_error(agent: &Agent) -> (Duration, Duration) {
    let (asked, began) = (SystemTime::now(), Instant::now());
    let state = agent.clock(None).unwrap();
    let took = began.elapsed();
    let there = SystemTime::UNIX_EPOCH + Duration::from_nanos(state.before_ns);
    // The guest looked at some time between.
    let error = match there.duration_since(asked) {
        Ok(ahead) => ahead.saturating_sub(took),
        Err(behind) => behind.duration(),
    };
    (error, took)
}

#[test]
fn fifty_clones_differ_have_the_time_and_go_on() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    let _turn = crowd();
    home.restore(&linux, CLONES, "web");
    let mut seen: [HashSet<String>; 4] = Default::default();
    let mut counted = Vec::new();
    for number in 1..=CLONES {
        let name = format!("web-{number}");
        let agent = home.agent(&name);
        // The shortest of some looks says most: the machine may be busy.
        let looks = (0..5).map(|_| clock_error(&agent));
        let (error, took) = looks.min_by_key(|(_, took)| *took).unwrap();
        assert!(error <= CLOCK, "{name}: off by {error:?}, seen in {took:?}");
        let line = "head -c 16 /dev/urandom | od -An -tx1; cat /etc/machine-id; hostname; \
                    cat /run/brood/generation /run/count";
        let said = said(&agent, line);
        let lines: Vec<&str> = said.lines().map(str::trim).collect();
        assert_eq!(lines.len(), 5, "{said}");
        assert_eq!(lines[2], name);
        for (seen, line) in seen.iter_mut().zip(&lines) {
            assert!(seen.insert((*line).to_owned()), "{name} has a twin: {said}");
        }
        counted.push(lines[4].parse::<u64>().unwrap());
    }
    // The program that ran before the checkpoint goes on in each.
    for (number, before) in counted.iter().enumerate() {
        let agent = home.agent(&format!("web-{}", number + 1));
        until("the program to count on", || {
            let count: u64 = said(&agent, "cat /run/count").parse().ok()?;
            (count > *before).then_some(())
        });
    }
}

/// The database is on the guest's own disk. In each round the program that writes it compares all
/// that it has committed with all that the disk has: memory, processor and disk are of one moment in
/// each checkpoint.
#[test]
fn a_database_is_whole_after_twenty_suspends() {
    let Some((home, linux)) = Home::with_qemu_disks(None) else {
        return;
    };
    home.restore(&linux, 1, "a");
    let first = home.agent("a-1");
    if put_guest_program(&first).is_none() {
        return;
    }
    let _ = said(
        &first,
        &format!("setsid {GUEST_PROGRAM} write /srv/db </dev/null >/dev/null 2>&1 &"),
    );
    // SQLite's own check is part of both.
    let look = |agent: &Agent| -> u64 {
        let commits = said(agent, &format!("{GUEST_PROGRAM} look /srv/db"));
        commits.parse().expect("a number of commits")
    };
    let more = |agent: &Agent, than: u64| {
        until("more commits", || {
            Some(look(agent)).filter(|commits| *commits > than)
        })
    };
    let mut commits = more(&first, 100);
    drop(first);
    let mut from = "a-1".to_owned();
    for round in 0..SUSPENDS {
        let to = home.named(&format!("db{round}"));
        let mut suspend = vec!["suspend", &from, &to.path];
        // A delta needs the bundle before it: every other one stands alone.
        suspend.extend((round % 2 == 0).then_some("--delta"));
        let _ = home.brood(&suspend).ok();
        home.restore(&to, 1, &format!("r{round}"));
        from = format!("r{round}-1");
        let agent = home.agent(&from);
        // It goes on from where it was, and on.
        let now = look(&agent);
        assert!(now >= commits, "{now} commits, and {commits} before");
        commits = more(&agent, now + 20);
    }
    // Another program, which has seen none of it, finds the same.
    let agent = home.agent(&from);
    let check = format!("echo 3 >/proc/sys/vm/drop_caches; {GUEST_PROGRAM} check /srv/db");
    let found: u64 = said(&agent, &check).parse().expect("a number of commits");
    assert!(found >= commits, "{found} commits, and {commits} before");
}

#[test]
fn a_killed_agent_is_started_again_and_that_is_told() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let session = home.agent("a-1");
    let before = session.hello().instance;
    let count = said(&session, "cat /run/count").parse::<u64>().unwrap();
    // The agent's death ends this program, too.
    let killed = session.run(agent::shell("killall -9 brood-agent; sleep 100"), 1 << 10);
    let told = killed.expect_err("the agent that was asked is dead");
    assert!(
        matches!(
            &told,
            AgentError::Lost {
                loss: Loss::Restarted | Loss::Closed,
                ..
            }
        ),
        "{told}"
    );
    drop(session);
    let session = home.agent("a-1");
    assert_ne!(session.hello().instance, before);
    until("the program to count on", || {
        let now = said(&session, "cat /run/count").parse::<u64>().ok()?;
        (now > count).then_some(())
    });
    drop(session);
    // Whoever asks next notices nothing.
    assert_eq!(home.ask("a-1", "exec echo there")["output"], "there\n");
}

#[test]
fn a_channel_that_is_cut_in_a_frame_is_whole_again() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let socket = home.guest_folder("a-1").join("agent");
    let mut frame = Vec::new();
    let hello = ToGuest::Hello(HostHello {
        oldest: VERSION,
        newest: VERSION,
    });
    encode(SessionId(5), RequestId::NONE, &hello, &mut frame).unwrap();
    for length in [1, 2, frame.len() / 2, frame.len() - 1] {
        let mut half = UnixStream::connect(&socket).unwrap();
        half.write_all(&frame[..length]).unwrap();
        drop(half);
        let agent = home.agent("a-1");
        assert_eq!(said(&agent, "echo whole"), "whole");
    }
    // In the guest's frames, of which this program never ends to send more.
    for _ in 0..5 {
        let agent = home.agent("a-1");
        let process = agent
            .exec(Exec {
                argv: vec!["cat".into(), "/dev/zero".into()],
                ..Exec::default()
            })
            .unwrap();
        let _ = process.next(None).unwrap();
        drop(process);
        drop(agent);
        let agent = home.agent("a-1");
        assert_eq!(said(&agent, "echo whole"), "whole");
        until("the program to be ended", || {
            (said(&agent, "pidof cat || echo none") == "none").then_some(())
        });
    }
}
