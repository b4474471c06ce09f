//! End of a command: its exit code, and its last words on standard error.

use std::io;

use crate::errno::Errno;

/// sysexits(3): the command was used wrongly.
pub(crate) const EX_USAGE: i32 = 64;
/// sysexits(3): the input was wrong.
pub(crate) const EX_DATAERR: i32 = 65;
/// sysexits(3): an internal error. Here also: the stand-in itself cannot go on.
pub(crate) const EX_SOFTWARE: i32 = 70;
/// sysexits(3): the system refused.
pub(crate) const EX_OSERR: i32 = 71;

/// The end of a command that goes no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code.
    pub(crate) code: i32,
    /// What to say on standard error, with its newlines; often nothing.
    pub(crate) message: String,
}

impl Exit {
    /// Ends without a word.
    pub(crate) fn silent(code: i32) -> Self {
        Self::saying(code, "")
    }

    /// Ends with these words as they are.
    pub(crate) fn saying(code: i32, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }

    /// errx(3): the program's name and the words.
    pub(crate) fn errx(program: &str, code: i32, what: &str) -> Self {
        Self::saying(code, format!("{program}: {what}\n"))
    }

    /// err(3): the program's name, the words and the error.
    pub(crate) fn err(program: &str, code: i32, what: &str, errno: Errno) -> Self {
        Self::errx(program, code, &format!("{what}: {}", errno.text))
    }

    /// The stand-in's own world is not as it must be; no command of FreeBSD says this.
    pub(crate) fn broken(what: &str, error: &io::Error) -> Self {
        Self::saying(
            EX_SOFTWARE,
            format!("standin: cannot {what}: {error}; is BROOD_STANDIN_ROOT a world?\n"),
        )
    }
}
