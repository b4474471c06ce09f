//! `brood-agent` of the stand-in guest: the frames of docs/agent.md at any serial port but the
//! first. What it has to remember lies in the guest's memory, so a clone remembers it, too.
//!
//! A program of this guest is a line of [`super::guest`]: its answer is the program's output, and an
//! answer that begins with `error` ends it with 1. It has a few programs of its own:
//!
//! | program | what it does |
//! |---|---|
//! | `frozen` | says `yes` or `no`: whether its file systems are frozen |
//! | `hook-fails` | from now on its hook `restored.d/50-key` ends with 3 |
//! | `silent` | from now on the agent answers nothing |
//! | `meet` | waits until it runs a second time, then both say `met` |
//! | `waits` | says `yes` or `no`: whether a `meet` waits |

use std::io;

use brood_agent_protocol::{
    AgentHello, ClockState, Decoder, Ended, Event, Exec, Failure, FailureKind, HookEnd, HookResult,
    OsBytes, Reply, Request, RequestId, SessionId, Stream, ToGuest, ToHost, encode,
    limits::VERSION,
};

use super::{
    files::Files,
    guest::{Does, Guest},
};

/// Bit of the guest's flags: its file systems are frozen.
const FROZEN: u64 = 1;
/// Bit of the guest's flags: its hook fails.
const HOOK_FAILS: u64 = 2;
/// Bit of the guest's flags: its agent is silent.
const SILENT: u64 = 4;

/// The agent at one port.
#[derive(Debug, Default)]
pub(crate) struct FramedAgent {
    decoder: Decoder<ToGuest>,
    session: Option<SessionId>,
    /// The `meet` that waits.
    meets: Option<RequestId>,
    files: Files,
}

impl FramedAgent {
    /// Takes bytes from the port; what it writes back, and what the guest does then.
    ///
    /// # Errors
    /// When the guest's memory cannot be read.
    pub(crate) fn take(
        &mut self,
        guest: &mut Guest,
        mut bytes: &[u8],
    ) -> io::Result<(Vec<u8>, Does)> {
        let (mut out, mut does) = (Vec::new(), Does::Nothing);
        while let Some(received) = self.decoder.next(&mut bytes) {
            if guest.flags()? & SILENT != 0 {
                continue;
            }
            let (session, request) = (received.session, received.request);
            let mut say_of = |request: RequestId, message: ToHost| {
                encode(session, request, &message, &mut out).map_err(io::Error::other)
            };
            let mut say = |message: ToHost| say_of(request, message);
            match received.message {
                Ok(ToGuest::Hello(_)) => {
                    // The programs of the session before end with it.
                    (self.session, self.meets) = (Some(session), None);
                    self.files.begin_session();
                    let mut instance = [0; 16];
                    instance[..8].copy_from_slice(&guest.nonce()?.to_be_bytes());
                    say(ToHost::Hello(AgentHello {
                        version: VERSION,
                        instance,
                        agent: "stand-in".to_owned(),
                        system: "standin".to_owned(),
                    }))?;
                }
                Ok(ToGuest::Request(asked)) if self.session == Some(session) => match asked {
                    Request::Exec(exec) | Request::RunImage(exec)
                        if exec.argv == [OsBytes::from("meet")] =>
                    {
                        say(ToHost::Event(Event::Started { pid: 1 }))?;
                        let Some(other) = self.meets.take() else {
                            self.meets = Some(request);
                            continue;
                        };
                        for one in [other, request] {
                            Self::end("met\n", &mut |message| say_of(one, message))?;
                        }
                    }
                    Request::Exec(exec) if exec.argv == [OsBytes::from("waits")] => {
                        say(ToHost::Event(Event::Started { pid: 1 }))?;
                        let waits = self.meets.map_or("no\n", |_| "yes\n");
                        Self::end(waits, &mut say)?;
                    }
                    // No image is said to be its own.
                    Request::Exec(exec) | Request::RunImage(exec) => {
                        does = Self::exec(guest, &exec, &mut say)?;
                    }
                    asked => match self.files.ask(request, &asked) {
                        Some(messages) => messages.into_iter().try_for_each(say)?,
                        None => say(ToHost::Done(Self::answer(guest, asked)?))?,
                    },
                },
                Ok(ToGuest::Data(bytes)) if self.session == Some(session) => {
                    let messages = self.files.take(request, &bytes);
                    messages.into_iter().try_for_each(say)?;
                }
                Ok(ToGuest::Cancel) if self.meets == Some(request) => {
                    self.meets = None;
                    say(ToHost::Done(Ok(Reply::Ended(Ended::Signal(9)))))?;
                }
                // Its other programs are over before anybody could cancel them, and none reads input.
                _ => {}
            }
        }
        Ok((out, does))
    }

    fn answer(guest: &mut Guest, asked: Request) -> io::Result<Result<Reply, Failure>> {
        let flags = guest.flags()?;
        Ok(Ok(match asked {
            Request::Ready => {
                guest.count()?;
                let mut nonce = [0; 16];
                nonce[..8].copy_from_slice(&guest.nonce()?.to_be_bytes());
                let counter = guest.counter()?;
                Reply::Ready(brood_agent_protocol::Ready { nonce, counter })
            }
            Request::Identity(identity) => {
                guest.set_name(identity.hostname.as_deref().unwrap_or_default());
                Reply::Nothing
            }
            Request::Reseed { .. } | Request::Sync => Reply::Nothing,
            Request::Clock { set } => {
                let now = set.unwrap_or_default();
                Reply::Clock(ClockState {
                    before_ns: 0,
                    after_ns: now,
                })
            }
            Request::Freeze { .. } => {
                guest.set_flags(flags | FROZEN)?;
                Reply::Nothing
            }
            Request::Thaw => {
                guest.set_flags(flags & !FROZEN)?;
                Reply::Nothing
            }
            Request::Hooks(hooks) => Reply::Hooks(vec![HookResult {
                name: OsBytes::from("50-key"),
                end: HookEnd::Code(if flags & HOOK_FAILS != 0 && hooks.occasion == "restored" {
                    3
                } else {
                    0
                }),
                output: b"no key".to_vec(),
                took_ms: 1,
            }]),
            _ => {
                let why = "the stand-in guest cannot";
                return Ok(Err(Failure::new(FailureKind::Unsupported, why)));
            }
        }))
    }

    fn exec(
        guest: &mut Guest,
        exec: &Exec,
        say: &mut dyn FnMut(ToHost) -> io::Result<()>,
    ) -> io::Result<Does> {
        let words: Vec<_> = exec
            .argv
            .iter()
            .map(|word| String::from_utf8_lossy(word.as_bytes()))
            .collect();
        let flags = guest.flags()?;
        say(ToHost::Event(Event::Started { pid: 1 }))?;
        let does = match &*words.join(" ") {
            "frozen" => {
                let is = if flags & FROZEN == 0 { "no" } else { "yes" };
                Does::Says(format!("{is}\n"))
            }
            "hook-fails" => {
                guest.set_flags(flags | HOOK_FAILS)?;
                Does::Nothing
            }
            "silent" => {
                guest.set_flags(flags | SILENT)?;
                Does::Nothing
            }
            line => guest.line(line)?,
        };
        let (text, does) = match does {
            Does::Says(text) => (text, Does::Nothing),
            other => (String::new(), other),
        };
        Self::end(&text, say)?;
        Ok(does)
    }

    /// A program ends, and has written this.
    fn end(text: &str, say: &mut dyn FnMut(ToHost) -> io::Result<()>) -> io::Result<()> {
        let failed = text.starts_with("error");
        for stream in [Stream::Output, Stream::Error] {
            if stream == Stream::Output && !text.is_empty() {
                say(ToHost::Data(stream, text.as_bytes().to_vec()))?;
            }
            say(ToHost::Data(stream, Vec::new()))?;
        }
        let ended = Ended::Code(i32::from(failed));
        say(ToHost::Done(Ok(Reply::Ended(ended))))
    }
}
