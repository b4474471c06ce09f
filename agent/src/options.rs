//! The command line. It is parsed by hand: a library for it would be a third of the program.

use std::{ffi::OsString, path::PathBuf};

use crate::port::Target;

const HELP: &str = "\
brood-agent: answers brood's host inside a guest

Usage: brood-agent --port PATH | --serial PATH | --socket PATH

  --port PATH    a virtio-serial port, such as /dev/virtio-ports/brood.agent
  --serial PATH  a serial line, such as /dev/ttyS1; it is set to raw bytes
  --socket PATH  a unix socket that the host listens on
  --version      print the version
  --help         print this

It opens the stream again whenever it ends, and runs until it is killed.
Exit codes: 2 bad command line.";

/// What the command line asks for.
pub(crate) enum Command {
    Serve(Target),
    Print(String),
}

pub(crate) struct Options;

impl Options {
    pub(crate) fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Command, String> {
        let Some(option) = words.next() else {
            return Err("no stream is named".to_owned());
        };
        let option = option.to_string_lossy().into_owned();
        let target: fn(PathBuf) -> Target = match option.as_str() {
            "--port" => Target::Port,
            "--serial" => Target::Serial,
            "--socket" => Target::Socket,
            "--version" | "-V" => {
                return Ok(Command::Print(
                    concat!("brood-agent ", env!("CARGO_PKG_VERSION")).into(),
                ));
            }
            "--help" | "-h" => return Ok(Command::Print(HELP.to_owned())),
            _ => return Err(format!("unknown option {option:?}")),
        };
        let Some(path) = words.next() else {
            return Err(format!("{option} needs a path"));
        };
        match words.next() {
            Some(word) => Err(format!("{word:?} is one word too many")),
            None => Ok(Command::Serve(target(path.into()))),
        }
    }
}
