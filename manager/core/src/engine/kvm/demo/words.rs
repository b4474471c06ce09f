//! Text protocol of the demo guest: requests and answers as people and scripts write them.

use std::fmt;

use serde_json::{Value, json};

use super::{
    layout as l,
    mailbox::{DemoAnswer, Request},
};
use crate::escaped;

/// The requests, for help and error messages.
pub const REQUESTS: &str = "\
ping [TEXT]               echo, with the boot nonce and the request counter
sum [ADDRESS [LENGTH [STRIDE]]]
                          checksum of memory: one 64-bit word in every STRIDE bytes (default 8)
                          of LENGTH bytes (default 64 KiB) from ADDRESS (default 0x100000)
dirty PAGES               write one word in each of the next PAGES pages of the heap
peek ADDRESS              read the 64-bit word there
poke ADDRESS VALUE        write it
identity                  what makes this clone this clone
random [WORDS]            numbers from the guest's own generator (default 4, at most 32)
time                      the guest's clock
spin ITERATIONS           keep the processor busy (about 0.2-2 million iterations a second here)
crash                     execute an undefined instruction, which kills the guest";

/// A request in words that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WordsError {
    /// No such request.
    #[error("the guest knows no request {0:?}; it knows:\n{REQUESTS}")]
    Unknown(String),
    /// Nothing was asked.
    #[error("nothing was asked; the guest knows:\n{REQUESTS}")]
    Nothing,
    /// The wrong number of arguments.
    #[error("{request} takes {takes}")]
    Arguments {
        /// The request.
        request: &'static str,
        /// What it takes.
        takes: &'static str,
    },
    /// An argument that is no number.
    #[error(
        "{0:?} is not a number: write it in decimal or, after 0x, in hexadecimal; K, M and G multiply by powers of 1024"
    )]
    Number(String),
    /// A number that the request cannot take.
    #[error("{0}")]
    Range(&'static str),
}

/// Which request an answer belongs to, to read it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ping,
    Sum,
    Dirty,
    Peek,
    Poke,
    Identity,
    Random,
    Time,
    Spin,
    Crash,
}

/// A request that was read from words.
#[derive(Clone, Debug)]
pub struct ParsedRequest {
    kind: Kind,
    /// As the guest takes it.
    pub request: Request,
}

/// Reads a request such as `sum 0x100000 64K`.
///
/// # Errors
/// When the words make no request.
pub fn parse(words: &[String]) -> Result<ParsedRequest, WordsError> {
    // Quoted as one argument or given as many: the same.
    let words: Vec<&str> = words.iter().flat_map(|w| w.split_whitespace()).collect();
    let (name, arguments) = words.split_first().ok_or(WordsError::Nothing)?;
    let numbers = |request, takes, counts: std::ops::RangeInclusive<usize>| {
        if !counts.contains(&arguments.len()) {
            return Err(WordsError::Arguments { request, takes });
        }
        arguments
            .iter()
            .map(|word| number(word))
            .collect::<Result<Vec<u64>, _>>()
    };
    let (kind, op, args) = match *name {
        "ping" => {
            let text = arguments.join(" ");
            if text.len() > l::PAYLOAD_SIZE {
                return Err(WordsError::Range("ping takes at most 256 bytes"));
            }
            let mut request = Request::new(l::OP_PING, &[text.len() as u64]);
            request.payload[..text.len()].copy_from_slice(text.as_bytes());
            return Ok(ParsedRequest {
                kind: Kind::Ping,
                request,
            });
        }
        "sum" => {
            let n = numbers("sum", "[ADDRESS [LENGTH [STRIDE]]]", 0..=3)?;
            (Kind::Sum, l::OP_SUM, sum_arguments(&n)?)
        }
        "dirty" => (Kind::Dirty, l::OP_DIRTY, numbers("dirty", "PAGES", 1..=1)?),
        "peek" => (Kind::Peek, l::OP_PEEK, numbers("peek", "ADDRESS", 1..=1)?),
        "poke" => (
            Kind::Poke,
            l::OP_POKE,
            numbers("poke", "ADDRESS VALUE", 2..=2)?,
        ),
        "identity" => (
            Kind::Identity,
            l::OP_IDENTITY,
            numbers("identity", "no argument", 0..=0)?,
        ),
        "random" => {
            let n = numbers("random", "[WORDS]", 0..=1)?;
            (
                Kind::Random,
                l::OP_RANDOM,
                vec![n.first().copied().unwrap_or(4)],
            )
        }
        "time" => (
            Kind::Time,
            l::OP_TIME,
            numbers("time", "no argument", 0..=0)?,
        ),
        "spin" => (
            Kind::Spin,
            l::OP_SPIN,
            numbers("spin", "ITERATIONS", 1..=1)?,
        ),
        "crash" => (
            Kind::Crash,
            l::OP_CRASH,
            numbers("crash", "no argument", 0..=0)?,
        ),
        other => return Err(WordsError::Unknown(other.to_owned())),
    };
    Ok(ParsedRequest {
        kind,
        request: Request::new(op, &args),
    })
}

/// What the guest takes for a sum: the address, how many words, and the stride.
fn sum_arguments(given: &[u64]) -> Result<Vec<u64>, WordsError> {
    let at = |i: usize, default| given.get(i).copied().unwrap_or(default);
    let (address, length, stride) = (at(0, l::HEAP), at(1, 64 << 10), at(2, 8));
    if address % 8 != 0 || length % 8 != 0 || stride < 8 || stride % 8 != 0 {
        return Err(WordsError::Range(
            "address, length and stride must be multiples of 8, and the stride not 0",
        ));
    }
    if address.checked_add(length).is_none() || stride > 1 << 40 {
        return Err(WordsError::Range("the range does not fit in 64 bits"));
    }
    Ok(vec![address, length.div_ceil(stride), stride])
}

fn number(word: &str) -> Result<u64, WordsError> {
    let bad = || WordsError::Number(word.to_owned());
    if let Some(hex) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).map_err(|_| bad());
    }
    let (digits, shift) = match word.char_indices().last() {
        Some((at, 'k' | 'K')) => (&word[..at], 10),
        Some((at, 'm' | 'M')) => (&word[..at], 20),
        Some((at, 'g' | 'G')) => (&word[..at], 30),
        _ => (word, 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(bad)
}

/// An answer together with its request.
#[derive(Clone, Debug)]
pub(crate) struct AnswerText {
    kind: Kind,
    answer: DemoAnswer,
}

impl AnswerText {
    /// Reads the guest's answer to `asked`; the error is the guest's refusal.
    ///
    /// # Errors
    /// When the guest refused the request.
    pub(crate) fn new(asked: &ParsedRequest, answer: DemoAnswer) -> Result<Self, &'static str> {
        match answer.status {
            l::STATUS_OK => Ok(Self {
                kind: asked.kind,
                answer,
            }),
            l::STATUS_RANGE => Err(match asked.kind {
                Kind::Poke => {
                    "the guest refused: the address is outside its memory or below 0x10000, where it lives itself"
                }
                Kind::Random => "the guest refused: at most 32 words at a time",
                Kind::Dirty => "the guest refused: its heap has fewer pages than that",
                _ => "the guest refused: the address or range is outside its memory",
            }),
            _ => Err("the guest does not know this request"),
        }
    }

    fn text(&self) -> String {
        let length = usize::try_from(self.answer.values[0])
            .unwrap_or(0)
            .min(l::PAYLOAD_SIZE);
        String::from_utf8_lossy(&self.answer.payload[..length]).into_owned()
    }

    fn words(&self) -> Vec<u64> {
        let count = usize::try_from(self.answer.values[0])
            .unwrap_or(0)
            .min(l::PAYLOAD_SIZE / 8);
        let word = |chunk: &[u8]| u64::from_le_bytes(chunk.try_into().expect("chunks of eight"));
        self.answer
            .payload
            .chunks_exact(8)
            .take(count)
            .map(word)
            .collect()
    }

    fn name(&self) -> String {
        String::from_utf8_lossy(&self.answer.payload[..l::NAME_SIZE])
            .trim_end_matches('\0')
            .to_owned()
    }

    fn mac(&self) -> String {
        let at = l::ID_MAC - l::ID_NAME;
        colons(&self.answer.payload[at..at + 6])
    }

    fn seed(&self) -> String {
        let at = l::ID_SEED - l::ID_NAME;
        hex(&self.answer.payload[at..at + 8])
    }

    fn generation(&self) -> String {
        let [low, high, ..] = self.answer.values;
        format!("{}{}", hex(&low.to_le_bytes()), hex(&high.to_le_bytes()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn colons(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

impl fmt::Display for AnswerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, ..] = self.answer.values;
        match self.kind {
            Kind::Ping => {
                let text = self.text();
                let DemoAnswer { nonce, counter, .. } = self.answer;
                write!(f, "pong nonce={nonce:016x} counter={counter}")?;
                if text.is_empty() {
                    Ok(())
                } else {
                    write!(f, " text={}", escaped::line(&text))
                }
            }
            Kind::Sum => write!(f, "sum={first:016x}"),
            Kind::Dirty => write!(f, "dirtied {first} pages from {:#x}", heap_page(second)),
            Kind::Peek => write!(f, "{first:#018x}"),
            Kind::Poke => f.write_str("written"),
            Kind::Identity => write!(
                f,
                "name={} generation={} mac={} seed={}",
                escaped::line(&self.name()),
                self.generation(),
                self.mac(),
                self.seed()
            ),
            Kind::Random => {
                let words: Vec<_> = self.words().iter().map(|w| format!("{w:016x}")).collect();
                f.write_str(&words.join(" "))
            }
            Kind::Time => write!(f, "{} up {:.3} s", timestamp(first), seconds(second)),
            Kind::Spin => f.write_str("done"),
            Kind::Crash => f.write_str("the guest survived its crash"),
        }
    }
}

/// Address of a page of the heap. The number is the guest's, and may be any.
fn heap_page(number: u64) -> u64 {
    l::HEAP.wrapping_add(number.wrapping_mul(4096))
}

impl crate::engine::Answer for AnswerText {
    fn to_json(&self) -> Value {
        let [first, second, ..] = self.answer.values;
        let mut json = match self.kind {
            Kind::Ping => json!({ "text": self.text() }),
            Kind::Sum => json!({ "sum": format!("{first:016x}") }),
            Kind::Dirty => json!({ "pages": first, "address": heap_page(second) }),
            Kind::Peek => json!({ "value": first }),
            Kind::Poke | Kind::Spin | Kind::Crash => json!({}),
            Kind::Identity => json!({
                "name": self.name(),
                "generation": self.generation(),
                "mac": self.mac(),
                "seed": self.seed(),
            }),
            Kind::Random => {
                let words: Vec<_> = self.words().iter().map(|w| format!("{w:016x}")).collect();
                json!({ "random": words })
            }
            Kind::Time => json!({
                "time": timestamp(first),
                "unix_seconds": seconds(first),
                "uptime_seconds": seconds(second),
            }),
        };
        json["nonce"] = format!("{:016x}", self.answer.nonce).into();
        json["counter"] = self.answer.counter.into();
        json
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds are shown")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn timestamp(ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map_or_else(|_| format!("{ns} ns"), |time| format!("{time:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<ParsedRequest, WordsError> {
        parse(&[text.to_owned()])
    }

    #[test]
    fn requests_are_read() {
        let sum = words("sum 0x100000 64K 4096").unwrap();
        assert_eq!(
            (sum.request.op, sum.request.args),
            (l::OP_SUM, [0x10_0000, 16, 4096, 0])
        );
        assert_eq!(
            parse(&["poke".into(), "65536".into(), "7".into()])
                .unwrap()
                .request
                .args,
            [65536, 7, 0, 0]
        );
        assert_eq!(&words("ping a b").unwrap().request.payload[..4], b"a b\0");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "fly",
            "peek",
            "peek x",
            "poke 1",
            "sum 1",
            "sum 0 8 0",
            "sum 0 8 4",
            "dirty -1",
            "sum 0xffffffffffffffff8",
            "sum 0xfffffffffffffff8 8",
            "identity 1",
            "dirty 99999999999999999999G",
        ] {
            assert!(words(bad).is_err(), "{bad:?}");
        }
        assert!(parse(&["ping".into(), "x".repeat(257)]).is_err());
    }
}
