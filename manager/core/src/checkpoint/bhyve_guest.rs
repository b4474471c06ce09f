//! Checkpoint's record of a bhyve guest: its configuration, how it learns that it is a new clone,
//! and how it shows that it is ready.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A bhyve guest. The engine checks what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BhyveGuest {
    /// Its configuration when it was suspended, as `bhyve_config(5)` has it.
    pub config: BTreeMap<String, String>,
    /// Number of the serial port at which the guest's agent listens; `null` when it has none.
    pub agent: Option<u8>,
    /// Protocol of that agent.
    #[serde(default, skip_serializing_if = "AgentProtocol::is_lines")]
    pub agent_protocol: AgentProtocol,
    /// The sign that a clone is ready.
    pub readiness: Readiness,
}

/// Protocol of an agent at a serial port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentProtocol {
    /// Lines of text (docs/bhyve.md), which a shell script can speak.
    #[default]
    Lines,
    /// Frames (docs/agent.md), which `brood-agent` speaks.
    Frames,
}

impl AgentProtocol {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_lines(&self) -> bool {
        *self == Self::Lines
    }
}

/// What the guest itself must do to be counted as restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Readiness {
    /// Its agent takes the identity and answers.
    Agent,
    /// It writes these words on a serial port.
    Console {
        /// Number of the port.
        com: u8,
        /// The words.
        words: String,
    },
    /// It accepts a connection.
    Tcp {
        /// `HOST:PORT`; `%(name)` stands for the guest's name.
        address: String,
    },
    /// A command on the host says so by its exit code, 0. It is run again until it does.
    Command {
        /// The program and its arguments; `%(name)` stands for the guest's name.
        argv: Vec<String>,
    },
}
