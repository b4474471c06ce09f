//! Log of a guest's console: the end of what it said, and the file and the line that the rest goes to.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::sys::socket::{MsgFlags, send};

use crate::escaped;

/// As much of the end is kept in memory as can hold a guest's last words.
const TAIL: usize = 4096;
/// Length at which the first half of the file goes.
const FILE_MAX: u64 = 1 << 20;

/// A log, which the serial port writes and the guest's process reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(Arc<Mutex<Output>>);

/// Where the output goes.
#[derive(Debug, Default)]
struct Output {
    tail: VecDeque<u8>,
    file: Option<LogFile>,
    /// Somebody who is connected to the console.
    line: Option<Arc<UnixStream>>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what follows, and what is kept of what was said, to a file that is empty.
    pub(super) fn set_file(&self, file: File) {
        let mut output = self.lock();
        let mut file = LogFile { file, length: 0 };
        let (first, second) = output.tail.as_slices();
        // On a full disk the console goes unrecorded.
        let _ = file.add(first).and_then(|()| file.add(second));
        output.file = Some(file);
    }

    /// Writes what follows to a line, too. What it does not take at once is lost to it.
    pub(super) fn set_line(&self, line: Option<Arc<UnixStream>>) {
        self.lock().line = line;
    }

    /// The last line that was said.
    pub(super) fn last_line(&self) -> Option<String> {
        let text = self.text();
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        Some(escaped::line(last).chars().take(300).collect())
    }

    /// The line by which the guest's kernel said that it died.
    pub(super) fn panic(&self) -> Option<String> {
        let text = self.text();
        let line = text.lines().rfind(|line| line.contains("Kernel panic"))?;
        let from = line.find("Kernel panic").unwrap_or_default();
        Some(
            escaped::line(line[from..].trim())
                .chars()
                .take(300)
                .collect(),
        )
    }

    fn text(&self) -> String {
        let tail: Vec<u8> = self.lock().tail.iter().copied().collect();
        String::from_utf8_lossy(&tail).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut output = self.lock();
        let over = (output.tail.len() + bytes.len()).saturating_sub(TAIL);
        let over = over.min(output.tail.len());
        output.tail.drain(..over);
        output
            .tail
            .extend(&bytes[bytes.len().saturating_sub(TAIL)..]);
        if let Some(file) = &mut output.file {
            let _ = file.add(bytes);
        }
        if let Some(line) = &output.line {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = send(line.as_raw_fd(), bytes, flags);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that stays short.
#[derive(Debug)]
struct LogFile {
    file: File,
    length: u64,
}

impl LogFile {
    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length + bytes.len() as u64 > FILE_MAX {
            self.drop_first_half()?;
        }
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn drop_first_half(&mut self) -> io::Result<()> {
        let mut part = [0; 4096];
        let (mut from, mut to) = (self.length / 2, 0);
        while from < self.length {
            let length = self.file.read_at(&mut part, from)?;
            if length == 0 {
                break;
            }
            self.file.write_all_at(&part[..length], to)?;
            from += length as u64;
            to += length as u64;
        }
        self.file.set_len(to)?;
        self.length = to;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_the_file_stays_short() {
        let mut log = Log::default();
        log.write_all(b"before\n").unwrap();
        let file = tempfile::tempfile().unwrap();
        log.set_file(file.try_clone().unwrap());
        let line = [b'x'; 99];
        for n in 0..30_000 {
            log.write_all(&line).unwrap();
            if n == 5 {
                let mut start = [0; 8];
                file.read_exact_at(&mut start, 0).unwrap();
                assert_eq!(&start, b"before\nx");
            }
            assert!(file.metadata().unwrap().len() <= FILE_MAX);
        }
        assert!(file.metadata().unwrap().len() >= FILE_MAX / 2 - 4096);
        log.write_all(b"\r\n[ 12.3] Kernel panic - not syncing: \x1b[2Jcrash\r\nbye\r\n")
            .unwrap();
        assert!(
            log.panic()
                .unwrap()
                .starts_with("Kernel panic - not syncing")
        );
        assert!(!log.panic().unwrap().contains('\x1b'));
        assert_eq!(log.last_line().unwrap(), "bye");
        let length = file.metadata().unwrap().len();
        let mut end = [0; 5];
        file.read_exact_at(&mut end, length - 5).unwrap();
        assert_eq!(&end, b"bye\r\n");
        assert_eq!(log.lock().tail.len(), TAIL);
    }
}
