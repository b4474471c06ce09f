//! What fuzz targets need of this module's own functions.

use std::{io::Write, net::Shutdown, os::unix::net::UnixStream};

use serde_json::json;

use super::qmp::Qmp;

/// A monitor that says this and hangs up, whatever it is told: how many commands it has answered.
pub fn qmp(said: &[u8]) -> usize {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    // What does not fit would wait for the other end.
    let said = &said[..said.len().min(64 << 10)];
    theirs.write_all(said).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let Ok(mut qmp) = Qmp::over(ours) else {
        return 0;
    };
    let lines = said.split(|byte| *byte == b'\n').count();
    let mut answered = 1;
    while qmp.execute("query-status", &json!({})).is_ok() {
        answered += 1;
        assert!(answered < lines, "more answers than lines");
    }
    answered
}
