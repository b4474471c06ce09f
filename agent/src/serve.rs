//! Reads the port for ever, and begins what the host asks for.

use std::{
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use brood_agent_protocol::{Decoder, Failure, FailureKind, Ready, Reply, Request, ToGuest};

use crate::{
    call::Call,
    files, port,
    port::{Port, Target},
    process,
    sessions::Sessions,
    steps::{Begun, Steps},
    system,
};

/// How a request ends.
pub(crate) type Answer = Result<Reply, Failure>;

/// How long the agent waits before it tries to open its port again.
const REOPEN_INTERVAL: Duration = Duration::from_millis(50);
/// How long at most until the agent looks by itself whether the host is there again.
const HOST_INTERVAL: Duration = Duration::from_secs(1);
/// How long a host may seem to be gone before its session is over.
///
/// When a guest is restored, its port tells of two changes: that the host of the checkpoint is gone,
/// and that another is there. Words of the other may be read before the kernel has worked through
/// both, and between them the port reads as at its end.
const ABSENCE: Duration = Duration::from_millis(300);

/// Serves the host at this port until the agent is killed.
pub(crate) fn serve(target: &Target, sessions: &Arc<Sessions>) -> ExitCode {
    process::oom::protect();
    let started = sessions.outbox.start();
    if let Err(e) = started.and_then(|()| sessions.workers.start()) {
        eprintln!("error: cannot start a thread: {e}");
        return ExitCode::FAILURE;
    }
    let mut complained = false;
    let mut announced = false;
    loop {
        match Port::open(target) {
            Ok(port) => {
                complained = false;
                let port = Arc::new(port);
                sessions.outbox.set_port(Some(Arc::clone(&port)));
                if !announced {
                    announced = true;
                    sessions.announce();
                }
                if let Err(e) = read(&port, sessions) {
                    eprintln!("brood-agent: cannot read {target:?}: {e}");
                }
                sessions.end();
                sessions.outbox.set_port(None);
            }
            Err(e) if !complained => {
                complained = true;
                eprintln!("brood-agent: cannot open {target:?}: {e}; trying again until it can");
            }
            Err(_) => {}
        }
        thread::sleep(REOPEN_INTERVAL);
    }
}

/// Reads until the port has to be opened again.
fn read(port: &port::Port, sessions: &Arc<Sessions>) -> std::io::Result<()> {
    let mut decoder = Decoder::<ToGuest>::default();
    let mut bytes = vec![0; 64 * 1024];
    let mut gone_since = None;
    loop {
        let length = port.read(&mut bytes)?;
        if length == 0 {
            if !port.stays() {
                sessions.end();
                return Ok(());
            }
            let gone = gone_since.get_or_insert_with(Instant::now).elapsed();
            let left = ABSENCE.saturating_sub(gone);
            if left.is_zero() {
                sessions.end();
                port.wait_for_host(HOST_INTERVAL)?;
            } else {
                port.wait_for_host(left)?;
            }
            continue;
        }
        gone_since = None;
        let mut rest = &bytes[..length];
        while let Some(received) = decoder.next(&mut rest) {
            sessions.receive(received);
        }
    }
}

/// Answers what needs no wait at once, so that nothing stands before it; the rest in a worker.
pub(crate) fn begin(sessions: &Arc<Sessions>, call: &Arc<Call>, request: Request) {
    let answer = match request {
        Request::Ready => Ok(Reply::Ready(Ready {
            nonce: sessions.nonce,
            counter: sessions.count_ready(),
        })),
        Request::Reseed { entropy } => system::reseed(&entropy),
        Request::Clock { set } => system::clock(set),
        Request::Signal { exec, signal } => sessions.processes.signal(call, exec, signal),
        Request::Resize { exec, size } => sessions.processes.resize(call, exec, size),
        Request::Processes => sessions.processes.list(call),
        Request::Steps(steps) => match Steps::begin(sessions, steps) {
            Ok(Begun::Done(reply)) => Ok(reply),
            Ok(Begun::Waits(steps)) => {
                return hand_over(sessions, call, |sessions, call| {
                    let reply = steps.go_on(sessions, &call);
                    Some((call, Ok(reply)))
                });
            }
            Err(failure) => Err(failure),
        },
        request => {
            return hand_over(sessions, call, |sessions, call| {
                run(sessions, call, request)
            });
        }
    };
    sessions.finish(call, answer);
}

/// Has a worker do this, and answer whoever it says: a process may change hands while it runs.
fn hand_over(
    sessions: &Arc<Sessions>,
    call: &Arc<Call>,
    act: impl FnOnce(&Arc<Sessions>, Arc<Call>) -> Option<(Arc<Call>, Answer)> + Send + 'static,
) {
    let started = sessions.workers.run({
        let (sessions, call) = (Arc::clone(sessions), Arc::clone(call));
        move || {
            if let Some((call, answer)) = act(&sessions, call) {
                sessions.finish(&call, answer);
            }
        }
    });
    if let Err(e) = started {
        let text = format!("cannot start a thread for the request: {e}");
        sessions.finish(call, Err(Failure::new(FailureKind::Busy, text)));
    }
}

fn run(sessions: &Arc<Sessions>, call: Arc<Call>, request: Request) -> Option<(Arc<Call>, Answer)> {
    let answer = match request {
        Request::Exec(exec) => return process::exec(sessions, call, exec, process::Which::Given),
        Request::RunImage(exec) => {
            return process::exec(sessions, call, exec, process::Which::OfImage);
        }
        Request::Attach { pid } => match sessions.processes.attach(&call, pid) {
            Ok(()) => return None,
            Err(failure) => Err(failure),
        },
        Request::ReadFile(file) => files::read(&call, &file),
        Request::WriteFile(file) => files::write(&call, &file),
        Request::Stat { path, follow } => files::stat(&path, follow),
        Request::List { path, after } => files::list(&path, after.as_ref()),
        Request::MakeDir {
            path,
            mode,
            parents,
        } => files::make_dir(&path, mode, parents),
        Request::Move { from, to } => files::rename(&from, &to),
        Request::Remove { path, recursive } => files::remove(&path, recursive),
        Request::Watch { path, recursive } => files::watch(&call, &path, recursive),
        Request::Identity(identity) => sessions.system.identify(identity),
        Request::Freeze { paths, limit_ms } => {
            let limit = Duration::from_millis(limit_ms.into());
            sessions.system.freeze(&paths, limit)
        }
        Request::Thaw => sessions.system.thaw(),
        Request::Sync => system::sync(),
        Request::Facts => system::facts(),
        Request::Hooks(hooks) => sessions.system.hooks(&call, hooks),
        Request::Shutdown(power) => {
            sessions.finish(&call, Ok(Reply::Nothing));
            sessions.outbox.flush(Duration::from_secs(1));
            system::shutdown(power);
            return None;
        }
        Request::Ready
        | Request::Reseed { .. }
        | Request::Clock { .. }
        | Request::Signal { .. }
        | Request::Resize { .. }
        | Request::Processes
        | Request::Steps(_) => unreachable!("they need no worker"),
    };
    Some((call, answer))
}
