//! Streams of a program in a guest over a websocket: its input, its output as it comes, signals, and
//! the size of its terminal.
//!
//! Nothing here grows with what either end sends. A client that reads slowly stops the program's
//! output, and a program that reads slowly stops the client's input: each direction holds a few parts,
//! and then waits.

mod messages;
mod program;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use axum::{
    Extension,
    body::Bytes,
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    http::StatusCode,
    response::Response,
};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    App,
    connections::{Client, Upgraded},
    extract::Path,
    problem::Problem,
    programs::session_problem,
    request::STREAM_PROTOCOL,
};
use brood_core::agent::{
    AgentError, GuestProcess, Output, ProgramChoice,
    protocol::{self, Stream},
};
use program::{Input, Program, Said};

pub(super) use messages::{ExecEvent, ExecMessage};

/// How long a client may take to say what is to run.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Longest message of a client.
const MESSAGE_MAX: usize = 1 << 20;
/// What waits to be written to a client, in bytes.
const WRITE_MAX: usize = 1 << 20;
/// How often a client is written to that may have gone.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long a client may take to read why its stream is over, and to answer that.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// The first byte of a message with output, and with error output.
const OUTPUT: u8 = 1;
const ERROR: u8 = 2;

/// Runs a program in a guest, with its streams, over a websocket
///
/// The subprotocol is `brood.exec`. A client that can set no header, such as a page, sends the
/// daemon's token as a second one: `brood.token.` and the token's bytes as hexadecimal digits.
///
/// Text messages are JSON: the client's are `ExecMessage`, the daemon's are `ExecEvent`. The client's
/// first message is `start`, within 10 seconds. Its binary messages are the program's input, of 1 MiB
/// each at most. The daemon's binary messages are output: a first byte 1, or 2 for error output, and
/// bytes as the program wrote them. The last message is `exited` or `failed`.
///
/// The program waits when the client does not read, and the client's messages wait when the program
/// does not take its input. When the client closes the connection, the program is killed with its
/// process group. The guest needs brood-agent.
#[utoipa::path(
    get, path = "/guests/{guest}/exec", tag = "guests", operation_id = "execStream",
    params(("guest" = String, Path, description = "Name or id")),
    responses((status = 101, description = "The websocket is open"))
)]
pub(in crate::api) async fn stream(
    State(app): State<App>,
    Path(name): Path<String>,
    Extension(client): Extension<Arc<Client>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|e| {
        Problem::bad_request(format!("the request opens no websocket: {}", e.body_text()))
            .with_hint(
                "POST to the same path runs a program to its end, and answers with its output",
            )
    })?;
    let upgraded = client.upgrade()?;
    let upgrade = upgrade
        .protocols([STREAM_PROTOCOL])
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .max_write_buffer_size(WRITE_MAX);
    let span = tracing::Span::current();
    Ok(upgrade.on_upgrade(move |socket| {
        use tracing::Instrument;
        serve(app, name, socket, upgraded).instrument(span)
    }))
}

/// Why a stream is over.
enum Over {
    /// The client has gone.
    HungUp,
    /// All was said.
    Exited,
    /// What the client is still to be told.
    Failed(Problem),
}

type Sink = SplitSink<WebSocket, Message>;

async fn serve(app: App, guest: String, mut socket: WebSocket, upgraded: Upgraded) {
    let _upgraded = upgraded;
    let started = timeout(START_LIMIT, started(&mut socket)).await;
    let started = started.unwrap_or_else(|_| {
        let detail = format!(
            "the client did not say what to run within {} s",
            START_LIMIT.as_secs()
        );
        Some(Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "no-start",
            detail,
        )))
    });
    let (mut sink, mut stream) = socket.split();
    let over = match started {
        None => return,
        Some(Err(problem)) => Over::Failed(problem),
        Some(Ok(exec)) => match Program::start(&app, &guest, exec).await {
            Ok(program) => program.stream(&app, &mut sink, &mut stream).await,
            Err(problem) => Over::Failed(problem),
        },
    };
    let (told, code) = match over {
        // What it has said last may want an answer.
        Over::HungUp => return drop(timeout(CLOSE_LIMIT, sink.close()).await),
        Over::Exited => (None, close_code::NORMAL),
        Over::Failed(problem) => {
            tracing::info!(kind = problem.kind, "{}", problem.detail);
            let of_client = problem.status().is_client_error();
            let code = if of_client {
                close_code::POLICY
            } else {
                close_code::ERROR
            };
            (Some(ExecEvent::Failed { problem }.message()), code)
        }
    };
    let close = Message::Close(Some(CloseFrame {
        code,
        reason: "".into(),
    }));
    let _ = timeout(CLOSE_LIMIT, async {
        for message in told.into_iter().chain([close]) {
            sink.send(message).await?;
        }
        sink.flush().await?;
        // A client answers a close by its own. Where nobody is left to hear that, it may take all for
        // a broken connection, and lose what it has not read yet.
        while let Some(Ok(message)) = stream.next().await {
            if matches!(message, Message::Close(_)) {
                break;
            }
        }
        Ok::<(), axum::Error>(())
    })
    .await;
}

/// What a client wants to run; none when it goes.
async fn started(
    socket: &mut WebSocket,
) -> Option<Result<(ProgramChoice, protocol::Exec), Problem>> {
    loop {
        match socket.recv().await? {
            Ok(Message::Text(text)) => {
                return Some(message(&text).and_then(|message| match message {
                    ExecMessage::Start(start) => start.request(),
                    _ => Err(Problem::bad_request("the first message is not start")),
                }));
            }
            Ok(Message::Binary(_)) => {
                return Some(Err(Problem::bad_request("input came before the start")));
            }
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(Message::Close(_)) => return None,
            Err(e) => return Some(Err(unreadable(&e))),
        }
    }
}

fn message(text: &str) -> Result<ExecMessage, Problem> {
    serde_json::from_str(text)
        .map_err(|e| Problem::bad_request(format!("a message is none that there is: {e}")))
}

fn unreadable(error: &axum::Error) -> Problem {
    Problem::bad_request(format!("a message cannot be read: {error}"))
}

impl Program {
    /// Joins it to a client until either ends.
    async fn stream(
        mut self,
        app: &App,
        sink: &mut Sink,
        stream: &mut SplitStream<WebSocket>,
    ) -> Over {
        let from_client = Listening {
            process: &self.process,
            input: self.input.take(),
            has_terminal: self.has_terminal,
        };
        let told = tell(sink, self.pid, &mut self.said);
        let lost = tokio::select! {
            over = from_client.listen(stream) => return over,
            told = told => match told {
                Ok(over) => return over,
                Err(lost) => lost,
            },
        };
        Over::Failed(session_problem(app, &self.guest, lost).await)
    }
}

/// What a client may say to a program.
struct Listening<'a> {
    process: &'a Weak<GuestProcess>,
    input: Option<mpsc::Sender<Input>>,
    has_terminal: bool,
}

impl Listening<'_> {
    async fn listen(mut self, stream: &mut SplitStream<WebSocket>) -> Over {
        loop {
            let heard = match stream.next().await {
                None | Some(Ok(Message::Close(_))) => return Over::HungUp,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
                Some(Ok(Message::Binary(bytes))) => self.input(bytes).await,
                Some(Ok(Message::Text(text))) => match message(&text) {
                    Ok(message) => self.hear(message).await,
                    Err(problem) => Err(problem),
                },
                Some(Err(e)) => Err(unreadable(&e)),
            };
            if let Err(problem) = heard {
                return Over::Failed(problem);
            }
        }
    }

    async fn input(&self, bytes: Bytes) -> Result<(), Problem> {
        let Some(input) = &self.input else {
            return Err(
                Problem::bad_request("the program has no input, or that has ended")
                    .with_hint("start it with \"input\": true"),
            );
        };
        // A program that has ended needs none.
        let _ = input.send(Input::Bytes(bytes)).await;
        Ok(())
    }

    async fn hear(&mut self, message: ExecMessage) -> Result<(), Problem> {
        match message {
            ExecMessage::Start(_) => Err(Problem::bad_request("the program runs already")),
            ExecMessage::EndOfInput => {
                if let Some(input) = self.input.take() {
                    let _ = input.send(Input::End).await;
                }
                Ok(())
            }
            ExecMessage::Signal { signal } => {
                if !(1..=64).contains(&signal) {
                    return Err(Problem::bad_request("signal must be from 1 to 64"));
                }
                self.control(move |process| process.signal(signal)).await
            }
            ExecMessage::Resize(_) if !self.has_terminal => {
                Err(Problem::bad_request("the program has no terminal")
                    .with_hint("start it with \"terminal\": { \"rows\": 24, \"columns\": 80 }"))
            }
            ExecMessage::Resize(terminal) => {
                let size = terminal.size()?;
                self.control(move |process| process.resize(size)).await
            }
        }
    }

    /// Tells the agent something of the program. One that has just ended needs it no more.
    async fn control(
        &self,
        act: impl FnOnce(&GuestProcess) -> Result<(), AgentError> + Send + 'static,
    ) -> Result<(), Problem> {
        let process = Weak::clone(self.process);
        let told = tokio::task::spawn_blocking(move || {
            let process = process.upgrade()?;
            act(&process).err()
        });
        if let Ok(Some(e)) = told.await {
            tracing::debug!("{e}");
        }
        Ok(())
    }
}

/// Tells a client what its program does, until that has ended.
async fn tell(
    sink: &mut Sink,
    pid: u32,
    said: &mut mpsc::Receiver<Said>,
) -> Result<Over, AgentError> {
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if sink
        .send(ExecEvent::Started { pid }.message())
        .await
        .is_err()
    {
        return Ok(Over::HungUp);
    }
    loop {
        let said = tokio::select! {
            said = said.recv() => said,
            // A client that is gone is found also while nothing is read from it.
            _ = pings.tick() => match sink.send(Message::Ping(Bytes::new())).await {
                Ok(()) => continue,
                Err(_) => return Ok(Over::HungUp),
            },
        };
        let (message, over) = match said {
            Some(Ok(Output::Data(stream, bytes))) => {
                let kind = if stream == Stream::Error {
                    ERROR
                } else {
                    OUTPUT
                };
                let mut part = Vec::with_capacity(1 + bytes.len());
                part.push(kind);
                part.extend(bytes);
                (Message::Binary(part.into()), false)
            }
            Some(Ok(Output::Ended(ended))) => (ExecEvent::exited(ended).message(), true),
            Some(Err(e)) => return Err(e),
            None => return Ok(Over::Failed(Problem::internal())),
        };
        match sink.send(message).await {
            Err(_) => return Ok(Over::HungUp),
            Ok(()) if over => return Ok(Over::Exited),
            Ok(()) => {}
        }
    }
}
