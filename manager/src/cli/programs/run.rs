//! `brood run`: a program in a guest of its own, which ends with it.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use brood_core::{
    agent::ProgramChoice, checkpoint::BundlePath, guest_id::random, pool::ClaimSpec,
    restore::RestoreSpec,
};
use clap::Args;
use serde::{Deserialize, Serialize};
use signal_hook::{
    SigId,
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag, low_level,
};

use super::{
    CODES, copy::into_guest, exec::Program, ours, place::Provision, session::GuestSession,
};
use crate::{
    cli::{
        complete,
        output::{operations, operations_to_restore},
        values::wait,
    },
    config::Config,
    failure::{Failure, INTERRUPTED},
    ops::Watch,
    types::DestroyTargets,
};

/// A claim's lease; it is renewed for as long as the program runs.
const LEASE_S: u32 = 60;
const RENEW_INTERVAL: Duration = Duration::from_secs(20);
/// How long a guest of a killed run may be on its way: as long as a restore has.
const GUARD_PATIENCE: Duration = Duration::from_secs(90);

/// Runs a program in a guest of its own: a claim of a pool, or a clone of a checkpoint. The guest
/// ends with the command, in whatever way that ends
///
/// A word with a slash is a checkpoint; else it is a pool, or a checkpoint in this folder when there
/// is no such pool.
///
/// What is run is as `docker run` has it. In a guest of an OCI image the words behind -- are the
/// arguments of the image's entry point, in place of those that the image has; without words it is run
/// with those. Variables, folder and user are the image's, where no option says otherwise. In a guest
/// of another image the words are the program and its arguments. Output, error output and exit code are the program's; Ctrl-C and other signals
/// to end go to the program, the third one kills it.
#[derive(Debug, Args)]
#[command(after_help = after_run())]
pub(in crate::cli) struct Run {
    /// A pool, or DIR/NAME of a checkpoint
    #[arg(value_name = "CHECKPOINT|POOL", add = complete::with(complete::pools_and_checkpoints))]
    from: String,
    /// Copy a file or folder into the guest first; repeat the option for more
    #[arg(long, value_name = "SRC:DST")]
    file: Vec<Provision>,
    /// How long to wait when the pool or the host has no room
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = wait)]
    wait: Duration,
    #[command(flatten)]
    program: Program,
    /// Run this program instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<OsString>,
    /// Arguments of the image's program, or the program and its arguments where the image has none,
    /// behind -- [default: what the image says]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn after_run() -> String {
    format!(
        "{CODES}\n\nExamples:\n  brood run web -- make test\n  \
         brood run ./linux --file ./job.sh:/root/job.sh --timeout 5m -- sh /root/job.sh\n  \
         brood run /var/tmp/ckp/tiny -i --env LANG=C -- sort < names.txt\n  \
         brood run ./app\n  brood run ./app --entrypoint sh -- -c env"
    )
}

impl Run {
    pub(in crate::cli) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        // Until the program runs, what was begun is finished and undone.
        let interrupted = Interruption::watch();
        let mut guard = GuardProcess::start(config).map_err(ours)?;
        let held = match self.place(config).map_err(ours)? {
            From::Pool(pool) => Held::claim(config, &pool, self.wait),
            From::Checkpoint(path) => Held::restore(config, &path, &mut guard, &interrupted.flag),
        };
        let held = held.map_err(ours)?;
        guard.holds(&held.hold);
        let ran = self.in_guest(config, &held, interrupted);
        // Whatever the program did: its guest ends.
        let ended = held.end(config);
        if ended.is_ok() {
            guard.done();
        }
        let code = ran?;
        ended.map_err(ours)?;
        Ok(ExitCode::from(code))
    }

    fn in_guest(
        &self,
        config: &Config,
        held: &Held,
        interrupted: Interruption,
    ) -> Result<u8, Failure> {
        let session = GuestSession::begin(config, &held.guest).map_err(ours)?;
        for file in &self.file {
            into_guest(&session, &file.from, &file.to, true).map_err(ours)?;
        }
        if interrupted.flag.load(Ordering::Relaxed) {
            return Err(Failure {
                code: INTERRUPTED,
                ..Failure::new(&"interrupted before the program ran", None)
            });
        }
        drop(interrupted);
        match &self.entrypoint {
            None => self
                .program
                .run(&session, ProgramChoice::OfImage, &self.command),
            Some(program) => {
                let words = [std::slice::from_ref(program), &self.command].concat();
                self.program.run(&session, ProgramChoice::Given, &words)
            }
        }
    }

    /// What the word means.
    fn place(&self, config: &Config) -> Result<From, Failure> {
        let as_checkpoint = |e: &dyn std::fmt::Display| {
            let hint = "`brood pool list` shows pools, `brood checkpoint list DIR` checkpoints";
            Failure::new(&e, Some(hint.to_owned()))
        };
        if !self.from.contains('/') {
            let pools = operations(config).run(|ops| ops.pools())?;
            if pools.iter().any(|pool| pool.settings.name == self.from) {
                return Ok(From::Pool(self.from.clone()));
            }
            if !Path::new(&format!("{}.ckp.brood", self.from)).exists() {
                let why = format!(
                    "there is no pool {0:?}, and no checkpoint {0} in this folder",
                    self.from
                );
                return Err(as_checkpoint(&why));
            }
        }
        let path = self.from.parse::<BundlePath>();
        path.map(From::Checkpoint).map_err(|e| as_checkpoint(&e))
    }
}

/// Where a guest comes from.
enum From {
    Pool(String),
    Checkpoint(BundlePath),
}

/// What a run has, that must end with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Hold {
    /// A guest, by its name.
    Guest(String),
    /// A claim, by its token.
    Claim(String),
}

impl Hold {
    /// Ends it.
    fn end(&self, config: &Config) -> Result<usize, Failure> {
        match self {
            Hold::Guest(name) => {
                let destroyed = operations(config).run(|ops| {
                    ops.destroy(DestroyTargets::Named {
                        guests: std::slice::from_ref(name),
                        ignore_missing: true,
                    })
                })?;
                match destroyed.left.first() {
                    None => Ok(destroyed.guests.len()),
                    Some(left) => Err(Failure::new(&left.error, None)),
                }
            }
            Hold::Claim(token) => {
                operations(config).run(|ops| ops.release(token))?;
                Ok(1)
            }
        }
    }
}

/// A guest of a run.
struct Held {
    hold: Hold,
    guest: String,
    renewal: Option<Renewal>,
}

impl Held {
    fn claim(config: &Config, pool: &str, wait: Duration) -> Result<Held, Failure> {
        let begin = Instant::now();
        let claim = operations(config).run(|ops| {
            let wanted = ClaimSpec {
                lease: Some(Duration::from_secs(LEASE_S.into())),
                timeout: None,
                wait: wait.saturating_sub(begin.elapsed()),
                place: None,
            };
            ops.claim(pool, &wanted)
        })?;
        Ok(Held {
            renewal: Some(Renewal::start(config.clone(), claim.token.clone())),
            hold: Hold::Claim(claim.token),
            guest: claim.guest,
        })
    }

    fn restore(
        config: &Config,
        path: &BundlePath,
        guard: &mut GuardProcess,
        cancelled: &AtomicBool,
    ) -> Result<Held, Failure> {
        let digits: [u8; 4] = random().map_err(|e| Failure::new(&e, None))?;
        let prefix = format!("run-{:08x}", u32::from_be_bytes(digits));
        let guest = format!("{prefix}-1");
        let hold = Hold::Guest(guest.clone());
        let mut ops = operations_to_restore(config, path)?;
        // Before it is there: this process may be killed while it is being restored.
        guard.holds(&hold);
        let defaults = &config.restore;
        let spec = RestoreSpec {
            checkpoint: path.to_string(),
            guests: 1,
            prefix: Some(prefix),
            private_limit: Some(defaults.private_limit.value),
            enforce_private_limit: defaults.enforce_private_limit.value,
            park_after: defaults.park_after.value.0,
            ..RestoreSpec::default()
        };
        let observe = &mut |_: &_| {};
        let report = ops.run(|ops| ops.restore(path, &spec, &Watch::new(cancelled, 1, observe)))?;
        if report.restored == 1 {
            return Ok(Held {
                hold,
                guest,
                renewal: None,
            });
        }
        // It is known that there is none.
        guard.done();
        if report.interrupted {
            return Err(Failure {
                code: INTERRUPTED,
                ..Failure::new(&"interrupted before the program ran", None)
            });
        }
        let why = report.failures.first().map(|failed| failed.error.clone());
        let why = why.unwrap_or_else(|| "no guest was restored".to_owned());
        Err(Failure::new(
            &format!("cannot restore a guest: {why}"),
            None,
        ))
    }

    fn end(self, config: &Config) -> Result<(), Failure> {
        drop(self.renewal);
        self.hold.end(config).map(drop)
    }
}

/// Renews a claim until this is dropped.
struct Renewal {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Renewal {
    fn start(config: Config, token: String) -> Renewal {
        let (stop, stopped) = mpsc::channel();
        let renew = move || {
            while stopped.recv_timeout(RENEW_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                // One that fails is tried again, twice before the lease ends.
                let _ = operations(&config).run(|ops| ops.renew(&token, LEASE_S));
            }
        };
        Renewal {
            stop: Some(stop),
            thread: Some(thread::spawn(renew)),
        }
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A flag that signals to end set, for as long as this lives.
struct Interruption {
    flag: Arc<AtomicBool>,
    ids: Vec<SigId>,
}

impl Interruption {
    fn watch() -> Interruption {
        let flag = Arc::<AtomicBool>::default();
        let signals = [SIGINT, SIGTERM, SIGHUP].into_iter();
        let ids = signals
            .filter_map(|signal| flag::register(signal, Arc::clone(&flag)).ok())
            .collect();
        Interruption { flag, ids }
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            low_level::unregister(id);
        }
    }
}

/// The process that ends what a run has left, when that was killed: its standard input ends then.
struct GuardProcess {
    child: Child,
    input: Option<ChildStdin>,
    done: bool,
}

impl GuardProcess {
    fn start(config: &Config) -> Result<GuardProcess, Failure> {
        let failed =
            |e: io::Error| Failure::new(&format!("cannot start the run's guard: {e}"), None);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .arg("--state-dir")
            .arg(config.state_dir()?)
            .arg("run-guard")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: setsid(2) is one system call, and allocates nothing.
        unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
        let mut child = command.spawn().map_err(failed)?;
        let input = child.stdin.take();
        let done = false;
        Ok(GuardProcess { child, input, done })
    }

    /// The run has this.
    fn holds(&mut self, hold: &Hold) {
        let text = serde_json::to_string(hold).expect("plain data");
        self.say(&text);
    }

    /// Nothing is left.
    fn done(&mut self) {
        self.say("done");
        self.done = true;
    }

    fn say(&mut self, text: &str) {
        // Without a guard a run is as good, unless it is killed.
        if let Some(input) = &mut self.input {
            let _ = writeln!(input, "{text}");
        }
    }
}

impl Drop for GuardProcess {
    fn drop(&mut self) {
        drop(self.input.take());
        // One that still has something to end takes its time.
        if self.done {
            let _ = self.child.wait();
        }
    }
}

/// Ends what a run that was killed has left
#[derive(Debug, Args)]
pub(in crate::cli) struct Guard {}

impl Guard {
    pub(in crate::cli) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let mut said = String::new();
        // Until the run has ended, in whatever way.
        let _ = io::stdin().read_to_string(&mut said);
        let last = said.lines().last().unwrap_or_default();
        let Ok(hold) = serde_json::from_str::<Hold>(last) else {
            return Ok(ExitCode::SUCCESS);
        };
        let begin = Instant::now();
        loop {
            let ended = hold.end(config);
            // A claim that is gone is no error of ours; a guest may still be on its way.
            let may_come = matches!(hold, Hold::Guest(_)) && !matches!(ended, Ok(1..));
            if !may_come || begin.elapsed() > GUARD_PATIENCE {
                return ended.map(|_| ExitCode::SUCCESS);
            }
            thread::sleep(Duration::from_millis(500));
        }
    }
}
