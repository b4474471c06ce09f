//! Agent protocol: the requests of the manager to a guest's agent, and its answers (docs/bhyve.md).

use std::fmt;

use serde_json::{Map, Value};

use super::config::mac;
use crate::{
    engine::{Answer, Identity},
    escaped,
};

/// Longest request: what an agent must be able to read as one line.
pub(super) const REQUEST_MAX: usize = 1024;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The request by which a clone learns who it is.
pub(super) fn identity(identity: &Identity) -> String {
    format!(
        "identity name={} generation={} mac={} seed={} entropy={}",
        identity.name,
        hex(&identity.generation),
        mac(identity.mac, 0),
        hex(&identity.seed),
        hex(&identity.entropy),
    )
}

/// `key=value` among the words of an answer.
fn value<'a>(answer: &'a str, key: &str) -> Option<&'a str> {
    answer
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .find_map(|(k, v)| (k == key).then_some(v))
}

/// The nonce and the counter in an answer; 0 for a missing one.
pub(super) fn counters(answer: &str) -> (u64, u64) {
    let nonce = value(answer, "nonce").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let counter = value(answer, "counter").and_then(|n| n.parse().ok());
    (nonce.unwrap_or(0), counter.unwrap_or(0))
}

/// What an agent answered.
#[derive(Debug)]
pub(super) struct Words(pub(super) String);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What a guest says must not act on the terminal that it is shown on.
        f.write_str(&escaped::line(&self.0))
    }
}

impl Answer for Words {
    /// The text, and each `key=value` in it: decimal numbers as numbers.
    fn to_json(&self) -> Value {
        let mut object = Map::new();
        for (key, value) in self.0.split_whitespace().filter_map(|w| w.split_once('=')) {
            let plain = value == "0" || !value.starts_with('0');
            let number = value
                .parse::<u64>()
                .ok()
                .filter(|_| plain && key != "nonce");
            object.insert(
                key.to_owned(),
                number.map_or_else(|| value.into(), Value::from),
            );
        }
        object.insert("answer".to_owned(), self.to_string().into());
        Value::Object(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_one_line_of_words() {
        let words = identity(&Identity {
            name: "web-7".to_owned(),
            generation: [1; 16],
            mac: [2, 0, 0, 0, 0, 7],
            seed: [3; 8],
            entropy: [4; 32],
        });
        assert_eq!(value(&words, "name"), Some("web-7"));
        assert_eq!(value(&words, "mac"), Some("02:00:00:00:00:07"));
        assert_eq!(value(&words, "entropy"), Some(&*"04".repeat(32)));
        assert!(words.len() < REQUEST_MAX && !words.contains('\n'));
    }

    #[test]
    fn answers_are_taken_apart() {
        let answer = Words("pong name=a nonce=00ff counter=12 \u{1b}[2J".to_owned());
        assert_eq!(counters(&answer.0), (255, 12));
        let json = answer.to_json();
        assert_eq!(json["counter"], 12);
        assert_eq!(json["nonce"], "00ff");
        assert_eq!(json["name"], "a");
        assert!(!answer.to_string().contains('\u{1b}'));
        assert_eq!(counters("nothing"), (0, 0));
    }
}
