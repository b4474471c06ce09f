//! Last words: how a guest's process tells its nursery why it cannot go on.
//!
//! A guest's process opens no files, so its nursery writes the exit record, and then ends the
//! process: whoever finds the guest dead finds the reason, too. All guests send to one socket. The
//! kernel adds the sender's process id to each message, so that no guest speaks for another. What
//! does not fit any more is lost.

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

    /// Reads all that was said; passes the words of those to `record` that have not been heard
    /// before. It says whether the speaker is a guest.
    pub(crate) fn hear(&mut self, mut record: impl FnMut(Pid, &ExitReason) -> bool) {
        let mut words = [0; WORDS_MAX];
        while let Some((sender, length)) = self.receive(&mut words) {
            if let Ok(reason) = serde_json::from_slice(&words[..length])
                && !self.heard.contains_key(&sender)
                && record(sender, &reason)
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

/// Says to the nursery why this process ends; `false` when there is no nursery, or it hears
/// nothing.
pub(crate) fn say(nursery: &OwnedFd, reason: &ExitReason) -> bool {
    let words = serde_json::to_vec(reason).expect("a reason is plain data");
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(nursery.as_raw_fd(), &words, flags).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_senders_and_garbage_is_none() {
        let (mut words, nursery) = LastWords::new().unwrap();
        let own = Pid::this();
        let _ = send(nursery.as_raw_fd(), b"garbage", MsgFlags::empty());
        words.hear(|_, _| true);
        assert_eq!(words.of(own), None);
        assert!(say(&nursery, &ExitReason::Halted));
        words.hear(|pid, _| pid != own);
        assert_eq!(words.of(own), None, "it is no child");
        assert!(say(&nursery, &ExitReason::Halted));
        words.hear(|pid, reason| pid == own && *reason == ExitReason::Halted);
        assert_eq!(words.of(own), Some(ExitReason::Halted));
        assert_eq!(words.of(own), None);
        // Whoever says too much loses it, does not wait, and is heard once.
        let said = (0..10_000).filter(|_| say(&nursery, &ExitReason::Halted));
        assert!(said.count() < 10_000);
        let mut heard = 0;
        words.hear(|_, _| {
            heard += 1;
            true
        });
        assert_eq!((heard, words.of(own)), (1, Some(ExitReason::Halted)));
        drop(words);
        assert!(!say(&nursery, &ExitReason::Halted));
    }
}
