//! Requests in words to a guest's agent (`brood ask`), and its answers.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use crate::{
    agent::{
        Agent, AgentError, CloneIdentity,
        protocol::{Ended, Exec, OsBytes},
    },
    engine::{self, Answer, Identity, Limit},
    escaped,
};

/// As much output of a program as an answer has room for.
const OUTPUT_MAX: usize = 1 << 20;
/// How long the agent may take to end a program whose time is over. A guest that stands still does
/// not.
const GRACE: Duration = Duration::from_secs(10);
/// Most pages that one request dirties.
const PAGES_MAX: u64 = 1 << 20;
/// What a guest tells of itself.
const IDENTITY: &str = "hostname; cat /etc/machine-id /run/brood/generation";

/// Why a guest did not answer.
#[derive(Debug)]
pub(in crate::engine) enum Error {
    /// The channel to the guest ended: it may have died.
    Lost(engine::Error),
    /// Anything else.
    Other(engine::Error),
}

impl Error {
    /// An agent's error, of a call that had so long.
    pub(in crate::engine) fn of(error: AgentError, limit: Duration) -> Self {
        match error {
            AgentError::NoAnswer { .. } => Self::Other(engine::Error::Timeout(limit)),
            AgentError::Lost { .. } => Self::Lost(engine::Error::Refused(error.to_string())),
            AgentError::Connect { source, .. } => Self::Other(engine::Error::Io {
                action: "connect to the guest's agent",
                source,
            }),
            other => Self::Other(engine::Error::Refused(other.to_string())),
        }
    }
}

/// Who a guest is now, as its agent is told; with a MAC address if it has a network card.
pub(in crate::engine) fn clone_identity(identity: &Identity, has_network: bool) -> CloneIdentity {
    let mut machine_id = [0; 16];
    machine_id[..8].copy_from_slice(&identity.seed);
    machine_id[8..].copy_from_slice(&identity.entropy[..8]);
    CloneIdentity {
        hostname: identity.name.clone(),
        mac: has_network.then_some(identity.mac),
        machine_id,
        generation: identity.generation,
    }
}

/// As much of a nonce as a record has room for.
pub(in crate::engine) fn short(nonce: &[u8; 16]) -> u64 {
    let (first, _) = nonce.split_at(8);
    first
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Request {
    /// Whether the guest is there.
    Ping,
    /// Its names.
    Identity,
    /// Memory, load and uptime.
    Facts,
    /// Runs a program.
    Exec(Vec<String>),
    /// Writes so many pages.
    Dirty(u64),
}

/// What can be asked.
const KNOWN: &str =
    "a guest with brood-agent is asked: ping, identity, facts, dirty PAGES, exec PROGRAM ...";

/// A request, from its words.
pub(in crate::engine) fn parse(words: &[String]) -> Result<Request, engine::Error> {
    let unknown = || engine::Error::Refused(KNOWN.to_owned());
    let split: Vec<String> = match words {
        [one] => one.split_whitespace().map(str::to_owned).collect(),
        many => many.to_vec(),
    };
    let (verb, rest) = split.split_first().ok_or_else(unknown)?;
    match (&verb[..], rest) {
        ("ping", _) => Ok(Request::Ping),
        ("identity", []) => Ok(Request::Identity),
        ("facts", []) => Ok(Request::Facts),
        ("exec", [_, ..]) => Ok(Request::Exec(rest.to_vec())),
        ("dirty", [pages]) => match pages.parse() {
            Ok(pages) if pages <= PAGES_MAX => Ok(Request::Dirty(pages)),
            _ => Err(unknown()),
        },
        _ => Err(unknown()),
    }
}

impl Request {
    /// Whether others must not wait for its answer.
    pub(in crate::engine) fn is_long(&self) -> bool {
        matches!(self, Self::Exec(_))
    }

    /// Puts it to an agent.
    pub(in crate::engine) fn put(
        self,
        agent: &Agent,
        limit: Limit<'_>,
    ) -> Result<Box<dyn Answer>, Error> {
        let failed = |e| Error::of(e, limit.timeout);
        let answer = match self {
            Self::Ping => {
                let ready = agent.ready().map_err(failed)?;
                let nonce = short(&ready.nonce);
                Words::of(
                    format!("pong nonce={nonce:016x} counter={}", ready.counter),
                    json!({ "nonce": format!("{nonce:016x}"), "counter": ready.counter }),
                )
            }
            Self::Identity => {
                let said = run(agent, &["/bin/sh", "-c", IDENTITY], limit)?;
                let text = String::from_utf8_lossy(&said.output).into_owned();
                let mut lines = text.lines().map(str::trim);
                let mut next = || lines.next().unwrap_or_default().to_owned();
                let (name, machine_id, generation) = (next(), next(), next());
                Words::of(
                    format!("name={name} machine-id={machine_id} generation={generation}"),
                    json!({ "name": name, "machine_id": machine_id, "generation": generation }),
                )
            }
            Self::Facts => {
                let facts = agent.facts().map_err(failed)?;
                let (total, free) = (facts.memory_total, facts.memory_available);
                Words::of(
                    format!(
                        "memory={total} available={free} uptime_ms={} tasks={}",
                        facts.uptime_ms, facts.tasks
                    ),
                    json!({
                        "memory": total, "available": free,
                        "uptime_ms": facts.uptime_ms, "tasks": facts.tasks,
                    }),
                )
            }
            Self::Exec(argv) => {
                let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
                run(agent, &argv, limit)?.into_words()
            }
            Self::Dirty(pages) => {
                let count = format!("count={pages}");
                // /dev/shm is memory, and what is left there by one is written again by the next.
                let argv = [
                    "dd",
                    "if=/dev/zero",
                    "of=/dev/shm/dirty",
                    "bs=4096",
                    "conv=notrunc",
                ];
                let said = run(agent, &[&argv[..], &[&count]].concat(), limit)?;
                if said.code != json!(0) {
                    let why = String::from_utf8_lossy(&said.error).trim().to_owned();
                    return Err(Error::Other(engine::Error::Refused(why)));
                }
                Words::of(format!("wrote {pages} pages"), json!({ "pages": pages }))
            }
        };
        Ok(Box::new(answer))
    }
}

/// What became of a program.
struct Ran {
    code: Value,
    how: Option<String>,
    output: Vec<u8>,
    error: Vec<u8>,
}

impl Ran {
    fn into_words(self) -> Words {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (output, error) = (text(&self.output), text(&self.error));
        let mut shown = format!("{output}{error}").trim_end().to_owned();
        if let Some(how) = &self.how {
            shown = format!("{shown}\n({how})").trim_start().to_owned();
        }
        if shown.is_empty() {
            "(it wrote nothing)".clone_into(&mut shown);
        }
        Words::of(
            shown,
            json!({ "code": self.code, "output": output, "error": error }),
        )
    }
}

/// Runs a program to its end; when it fails, what it said.
#[cfg(target_os = "linux")]
pub(in crate::engine) fn run_program(
    agent: &Agent,
    argv: &[&str],
    limit: Limit<'_>,
) -> Result<Result<(), String>, Error> {
    match run(agent, argv, limit) {
        Ok(Ran { how: None, .. }) => Ok(Ok(())),
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.error).trim().to_owned();
            Ok(Err(format!("{}: {said}", ran.how.unwrap_or_default())))
        }
        Err(Error::Other(e)) => Ok(Err(e.to_string())),
        Err(lost) => Err(lost),
    }
}

fn run(agent: &Agent, argv: &[&str], limit: Limit<'_>) -> Result<Ran, Error> {
    let exec = Exec {
        argv: argv.iter().map(|word| OsBytes::from(*word)).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        input: false,
        terminal: None,
        limit_ms: u32::try_from(limit.timeout.as_millis()).ok(),
        keep: false,
    };
    let failed = |e| Error::of(e, limit.timeout);
    let process = agent.exec(exec).map_err(failed)?;
    let captured = process.capture_within(OUTPUT_MAX, limit.timeout + GRACE);
    let captured = captured.map_err(failed)?;
    let (code, how) = match captured.ended {
        Ended::Code(0) => (json!(0), None),
        Ended::Code(code) => (json!(code), Some(format!("exit code {code}"))),
        Ended::Signal(signal) => (json!(128 + signal), Some(format!("signal {signal}"))),
        Ended::TimedOut => return Err(Error::Other(engine::Error::Timeout(limit.timeout))),
    };
    Ok(Ran {
        code,
        how,
        output: captured.output,
        error: captured.error,
    })
}

/// An answer in words.
#[derive(Debug)]
struct Words {
    shown: String,
    json: Value,
}

impl Words {
    fn of(shown: String, json: Value) -> Self {
        Self { shown, json }
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What a guest says must not act on the terminal that it is shown on.
        f.write_str(&escaped::lines(&self.shown))
    }
}

impl Answer for Words {
    fn to_json(&self) -> Value {
        self.json.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_make_a_request_or_none() {
        let parse = |words: &[&str]| {
            parse(
                &words
                    .iter()
                    .map(|word| (*word).to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(parse(&["ping x"]).unwrap(), Request::Ping);
        assert_eq!(parse(&["dirty", "3"]).unwrap(), Request::Dirty(3));
        let exec = Request::Exec(vec!["sh".into(), "-c".into(), "a b".into()]);
        assert_eq!(parse(&["exec", "sh", "-c", "a b"]).unwrap(), exec);
        let words = Request::Exec(vec!["uname".into(), "-a".into()]);
        assert_eq!(parse(&["exec uname -a"]).unwrap(), words);
        for bad in [&["nonsense"][..], &[], &[""], &["exec"], &["dirty", "-1"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
