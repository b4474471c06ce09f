//! Last words: how a guest's process tells its nursery why it cannot go on.
//!
//! A guest's process opens no files, so its nursery writes the exit record. All guests send to one
//! socket. The kernel adds the sender's process id to each message, so that no guest speaks for
//! another. What does not fit any more is lost, and nobody waits.

use std::{
    collections::HashMap,
    io::IoSliceMut,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send,
        setsockopt, socketpair, sockopt,
    },
    unistd::Pid,
};

use crate::engine::kvm::{exit_reason::ExitReason, fork_server::descriptors::own};

/// More than any reason takes.
const WORDS_MAX: usize = 1024;

/// The nursery's end.
#[derive(Debug)]
pub(crate) struct LastWords {
    socket: OwnedFd,
    /// What was heard of processes that have not been waited for.
    heard: HashMap<Pid, ExitReason>,
}

impl LastWords {
    /// Makes both ends; the other one is for guests.
    pub(crate) fn new() -> nix::Result<(Self, OwnedFd)> {
        let (heard, say) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        setsockopt(&heard, sockopt::PassCred, &true)?;
        let words = Self {
            socket: own(heard)?,
            heard: HashMap::new(),
        };
        Ok((words, say))
    }

    /// What shows that there is something to hear.
    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Reads all that was said by processes that `is_child` knows.
    pub(crate) fn hear(&mut self, is_child: impl Fn(Pid) -> bool) {
        let mut words = [0; WORDS_MAX];
        while let Some((sender, length)) = self.receive(&mut words) {
            if let Ok(reason) = serde_json::from_slice(&words[..length])
                && is_child(sender)
            {
                self.heard.insert(sender, reason);
            }
        }
    }

    fn receive(&self, words: &mut [u8; WORDS_MAX]) -> Option<(Pid, usize)> {
        let mut space = nix::cmsg_space!(libc::ucred);
        let mut data = [IoSliceMut::new(words)];
        let socket = self.socket.as_raw_fd();
        let received = recvmsg::<()>(socket, &mut data, Some(&mut space), MsgFlags::empty());
        let received = received.ok().filter(|received| received.bytes > 0)?;
        let sender = received.cmsgs().ok()?.find_map(|control| match control {
            ControlMessageOwned::ScmCredentials(sender) => Some(Pid::from_raw(sender.pid())),
            _ => None,
        })?;
        Some((sender, received.bytes))
    }

    /// The last words of a process, if they were heard.
    pub(crate) fn of(&mut self, pid: Pid) -> Option<ExitReason> {
        self.heard.remove(&pid)
    }
}

/// Says to the nursery why this process ends.
pub(crate) fn say(nursery: &OwnedFd, reason: &ExitReason) {
    let words = serde_json::to_vec(reason).expect("a reason is plain data");
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let _ = send(nursery.as_raw_fd(), &words, flags);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_senders_and_garbage_is_none() {
        let (mut words, nursery) = LastWords::new().unwrap();
        let own = Pid::this();
        let _ = send(nursery.as_raw_fd(), b"garbage", MsgFlags::empty());
        words.hear(|_| true);
        assert_eq!(words.of(own), None);
        say(&nursery, &ExitReason::Halted);
        words.hear(|pid| pid != own);
        assert_eq!(words.of(own), None, "it is no child");
        say(&nursery, &ExitReason::Halted);
        words.hear(|pid| pid == own);
        assert_eq!(words.of(own), Some(ExitReason::Halted));
        assert_eq!(words.of(own), None);
        // Whoever says too much loses it, and does not wait.
        for _ in 0..10_000 {
            say(&nursery, &ExitReason::Halted);
        }
        words.hear(|_| true);
        assert_eq!(words.of(own), Some(ExitReason::Halted));
    }
}
