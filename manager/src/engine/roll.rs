//! Who works at a restore: lines in the file that all of them hold locked. So whoever finds the
//! lock held knows whose it is, and whether there is still a manager behind it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::Process;

/// One who works at a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Worker {
    /// It gives out orders and records what comes of them.
    Manager(Process),
    /// It forks guests, and ends by itself when its manager is gone.
    Nursery(Process),
}

/// Adds a line to the file.
pub(crate) fn sign(mut file: &File, worker: Worker) -> io::Result<()> {
    let mut line = serde_json::to_vec(&worker)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// All who have signed; a line that was cut off is none.
pub(crate) fn read(path: &Path) -> Vec<Worker> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_signed_is_read_and_half_a_line_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(read(file.path()), []);
        let process = |pid| Process { pid, start_time: 7 };
        let workers = [Worker::Manager(process(1)), Worker::Nursery(process(2))];
        for worker in workers {
            sign(file.as_file(), worker).unwrap();
        }
        file.as_file()
            .write_all(b"{\"nursery\":{\"pid\":3")
            .unwrap();
        assert_eq!(read(file.path()), workers);
    }
}
