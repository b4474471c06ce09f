//! Programs in guests over the API, and what is answered about one.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use axum::{Json as Answer, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    extract::{Json, Path},
    guests::{TIMEOUT, limit},
    permits::PermitKind,
    problem::Problem,
};
use brood_core::agent::{
    Agent, AgentError, GuestProcess, Output, ProgramChoice,
    protocol::{self, Ended, FailureKind, OsBytes, Stream},
};
use brood_core::engine::NEVER;

/// As much of each stream as an answer has room for.
const OUTPUT_MAX: usize = 1 << 20;
/// How long the agent may take to end a program whose time is over.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// How often a wait is looked at again.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// A program that has ended.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ExecAnswer {
    /// Its exit code; 128 and the number of the signal that ended it; 124 when its time was over.
    #[schema(example = 0)]
    pub(crate) code: u8,
    /// What it wrote, with what is no UTF-8 replaced.
    pub(crate) output: String,
    /// What it wrote as errors.
    pub(crate) error: String,
}

impl ExecAnswer {
    /// Waits for the end of a program without input, which is killed after this time.
    ///
    /// # Errors
    /// The guest does not answer; or it wrote more than there is room for.
    pub(crate) fn of(process: &GuestProcess, limit: Option<Duration>) -> Result<Self, AgentError> {
        collect(process, limit.map(|limit| limit + GRACE), &NEVER).map(Self::from)
    }

    fn with_input(
        agent: &Agent,
        (choice, exec): (ProgramChoice, protocol::Exec),
        input: &[u8],
        cancelled: &AtomicBool,
    ) -> Result<Self, AgentError> {
        let limit = exec.limit_ms.map(|ms| Duration::from_millis(ms.into()));
        let takes_input = exec.input;
        let process = agent.start(choice, exec)?;
        let ended = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            if takes_input {
                scope.spawn(|| write_input(&process, input, &ended));
            }
            let written = collect(&process, limit.map(|limit| limit + GRACE), cancelled);
            ended.store(true, Ordering::Relaxed);
            written
        });
        written.map(Self::from)
    }
}

impl From<Collected> for ExecAnswer {
    fn from((ended, output, error): Collected) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: code_of(ended),
            output: text(output),
            error: text(error),
        }
    }
}

/// Writes all of a program's input, until that has ended.
fn write_input(process: &GuestProcess, mut input: &[u8], ended: &AtomicBool) {
    while !input.is_empty() && !ended.load(Ordering::Relaxed) {
        match process.write_part(input, PATIENCE) {
            Ok(Some(length)) => input = &input[length..],
            Err(AgentError::NoAnswer { .. }) => {}
            Ok(None) | Err(_) => return,
        }
    }
    let _ = process.close_input();
}

type Collected = (Ended, Vec<u8>, Vec<u8>);

/// Waits for a program's end, and keeps what it writes.
fn collect(
    process: &GuestProcess,
    limit: Option<Duration>,
    cancelled: &AtomicBool,
) -> Result<Collected, AgentError> {
    let begin = Instant::now();
    let (mut output, mut error) = (Vec::new(), Vec::new());
    loop {
        let (to, bytes) = match process.next(Some(PATIENCE)) {
            Ok(Output::Data(Stream::Error, bytes)) => (&mut error, bytes),
            Ok(Output::Data(_, bytes)) => (&mut output, bytes),
            Ok(Output::Ended(ended)) => return Ok((ended, output, error)),
            Err(e @ AgentError::NoAnswer { .. }) => {
                let late = limit.is_some_and(|limit| begin.elapsed() > limit);
                match late || cancelled.load(Ordering::Relaxed) {
                    true => return Err(e),
                    false => continue,
                }
            }
            Err(e) => return Err(e),
        };
        if to.len() + bytes.len() > OUTPUT_MAX {
            return Err(AgentError::TooMuchOutput { limit: OUTPUT_MAX });
        }
        to.extend(bytes);
    }
}

/// The exit code of a command whose program ended so.
pub(crate) fn code_of(ended: Ended) -> u8 {
    match ended {
        Ended::Code(code) => u8::try_from(code).unwrap_or(u8::MAX),
        Ended::Signal(signal) => u8::try_from(signal).map_or(u8::MAX, |n| n.saturating_add(128)),
        Ended::TimedOut => TIMED_OUT,
    }
}

/// The exit code of a command whose program was killed as its time was over.
pub(crate) const TIMED_OUT: u8 = 124;

/// A program to run in a guest.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExecRequest {
    /// The program and its arguments. By default it is the one that the guest's OCI image is for: its
    /// entry point.
    #[serde(default)]
    #[schema(example = json!(["uname", "-a"]))]
    command: Vec<String>,
    /// Without `command`: arguments of the image's entry point, in place of those that the image has;
    /// of an image without an entry point, the program and its arguments.
    #[serde(default)]
    args: Vec<String>,
    /// Variables of its environment, beside PATH, HOME, USER, LOGNAME, SHELL and the image's.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Folder that it starts in; the image's by default, or its user's home.
    cwd: Option<String>,
    /// A user of the guest by name or number; the image's by default, or root.
    user: Option<String>,
    /// Its input; it has none by default.
    input: Option<String>,
    /// It is killed after so many seconds, with its process group.
    #[schema(default = 60.0, exclusive_minimum = 0.0, maximum = 3600.0)]
    timeout_s: Option<f64>,
}

/// How long a program may run, where nothing else is said.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

impl ExecRequest {
    /// The agent's request for it.
    pub(super) fn request(&self) -> Result<(ProgramChoice, protocol::Exec), Problem> {
        let limit = limit(self.timeout_s)?.unwrap_or(DEFAULT_LIMIT);
        let words = ExecWords {
            command: &self.command,
            args: &self.args,
            env: &self.env,
            cwd: self.cwd.as_ref(),
            user: self.user.as_ref(),
        };
        let (choice, exec) = words.request()?;
        let exec = protocol::Exec {
            input: self.input.is_some(),
            limit_ms: u32::try_from(limit.as_millis()).ok(),
            ..exec
        };
        Ok((choice, exec))
    }
}

/// What a client says of a program that is to run, in whatever way.
pub(super) struct ExecWords<'a> {
    pub(super) command: &'a [String],
    pub(super) args: &'a [String],
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) cwd: Option<&'a String>,
    pub(super) user: Option<&'a String>,
}

impl ExecWords<'_> {
    /// The agent's request for it, without input, terminal and time limit.
    pub(super) fn request(&self) -> Result<(ProgramChoice, protocol::Exec), Problem> {
        let (choice, argv) = match (self.command, self.args) {
            ([], args) => (ProgramChoice::OfImage, args),
            (command, []) => (ProgramChoice::Given, command),
            _ => {
                let detail = "command has the program and its arguments, and args has those of the \
                              image's program: one of them must be empty";
                return Err(Problem::bad_request(detail));
            }
        };
        let texts = argv.iter().chain(self.cwd);
        let texts = texts.chain(self.env.iter().flat_map(|(key, value)| [key, value]));
        if texts.into_iter().any(|text| text.contains('\0')) {
            return Err(Problem::bad_request("a word has a zero byte in it"));
        }
        if self
            .env
            .keys()
            .any(|key| key.is_empty() || key.contains('='))
        {
            return Err(Problem::bad_request(
                "a variable has no name, or one with =",
            ));
        }
        let text = |text: &String| OsBytes::from(&**text);
        let exec = protocol::Exec {
            argv: argv.iter().map(text).collect(),
            env: self.env.iter().map(|(k, v)| (text(k), text(v))).collect(),
            cwd: self.cwd.map(text),
            user: self.user.cloned(),
            ..protocol::Exec::default()
        };
        Ok((choice, exec))
    }
}

/// An error of a guest's agent, or how the guest ended when the session ended with it.
pub(super) async fn session_problem(app: &App, guest: &str, error: AgentError) -> Problem {
    if let AgentError::Lost { .. } = error {
        let name = guest.to_owned();
        let lives = app.look_at_guests(move |guests| Ok(guests.outlives_its_channel(&name)?));
        if let Err(ended) = lives.await {
            return ended;
        }
    }
    problem(guest, &error)
}

/// An error of a guest's agent.
pub(super) fn problem(guest: &str, error: &AgentError) -> Problem {
    let detail = format!("guest {guest}: {error}");
    let (status, kind) = match (error, error.failure()) {
        (_, Some(FailureKind::NotFound)) => (StatusCode::NOT_FOUND, "not-in-guest"),
        (_, Some(FailureKind::Denied)) => (StatusCode::FORBIDDEN, "not-permitted-in-guest"),
        (_, Some(FailureKind::Invalid)) => (StatusCode::BAD_REQUEST, "bad-request"),
        (_, Some(FailureKind::Busy)) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
        (_, Some(FailureKind::Full)) => (StatusCode::INSUFFICIENT_STORAGE, "no-space-in-guest"),
        (AgentError::NoAnswer { .. }, _) => (StatusCode::GATEWAY_TIMEOUT, "no-answer"),
        (AgentError::TooMuchOutput { .. }, _) => (StatusCode::CONFLICT, "too-much-output"),
        (AgentError::Unsendable { .. }, _) => (StatusCode::BAD_REQUEST, "bad-request"),
        _ => (StatusCode::CONFLICT, "program-failed"),
    };
    Problem::new(status, kind, detail)
}

/// Runs a program in a guest to its end; answers with all that it wrote, 1 MiB each at most
///
/// What is run, and as whom, is as `brood exec` has it, and without `command` as `brood run` has it.
/// When the client disconnects, the program is killed with its process group. The guest needs
/// brood-agent.
#[utoipa::path(
    post, path = "/guests/{guest}/exec", tag = "guests", operation_id = "execInGuest",
    params(("guest" = String, Path, description = "Name or id")),
    request_body = ExecRequest,
    responses((status = 200, description = "It has ended, with whatever code", body = ExecAnswer))
)]
pub(super) async fn exec(
    State(app): State<App>,
    Path(name): Path<String>,
    Json(asked): Json<ExecRequest>,
) -> Result<Answer<ExecAnswer>, Problem> {
    let exec = asked.request()?;
    let permit = app.take(&[PermitKind::programs(&name)], TIMEOUT).await?;
    let found = name.clone();
    let agent = app
        .on_guests(permit.clone(), move |guests| {
            Ok(guests.agent(&found, TIMEOUT)?)
        })
        .await?;
    let ran = app.operate(permit, move |ops| {
        let input = asked.input.unwrap_or_default();
        let input = input.as_bytes();
        Ok(ExecAnswer::with_input(&agent, exec, input, ops.cancelled()))
    });
    match ran.await? {
        Ok(answer) => Ok(Answer(answer)),
        Err(e) => Err(session_problem(&app, &name, e).await),
    }
}
