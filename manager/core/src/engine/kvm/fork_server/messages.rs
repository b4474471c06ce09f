//! Messages of guests' processes to their nursery: that a guest is handed out, and why one cannot go
//! on.
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
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send as send_to,
        setsockopt, socketpair, sockopt,
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::engine::kvm::{exit_reason::ExitReason, fork_server::descriptors::own};

/// What a guest's process says.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) enum Message {
    /// It was handed out. Its guest's memory is mapped at this address.
    HandedOut { memory: u64 },
    /// It ends, for this reason.
    Ends(ExitReason),
}

/// More than any message takes.
const MESSAGE_MAX: usize = 1024;

/// The nursery's end.
#[derive(Debug)]
pub(crate) struct Messages {
    socket: OwnedFd,
    /// Why processes end that have not been waited for.
    reasons: HashMap<Pid, ExitReason>,
    /// Who was handed out last, and where its memory is.
    handed_out: Option<(Pid, u64)>,
}

impl Messages {
    /// Makes both ends; the other one is for guests.
    pub(crate) fn new() -> nix::Result<(Self, OwnedFd)> {
        let (heard, say) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        setsockopt(&heard, sockopt::PassCred, &true)?;
        let messages = Self {
            socket: own(heard)?,
            reasons: HashMap::new(),
            handed_out: None,
        };
        Ok((messages, say))
    }

    /// What shows that there is something to hear.
    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Reads all that was said; passes the reasons of those to `record` that have given none
    /// before. It says whether the speaker is a guest.
    pub(crate) fn hear(&mut self, mut record: impl FnMut(Pid, &ExitReason) -> bool) {
        let mut message = [0; MESSAGE_MAX];
        while let Some((sender, length)) = self.receive(&mut message) {
            match serde_json::from_slice(&message[..length]) {
                Ok(Message::Ends(reason)) => {
                    if !self.reasons.contains_key(&sender) && record(sender, &reason) {
                        self.reasons.insert(sender, reason);
                    }
                }
                Ok(Message::HandedOut { memory }) => self.handed_out = Some((sender, memory)),
                Err(_) => {}
            }
        }
    }

    fn receive(&self, message: &mut [u8; MESSAGE_MAX]) -> Option<(Pid, usize)> {
        let mut space = nix::cmsg_space!(libc::ucred);
        let mut data = [IoSliceMut::new(message)];
        let socket = self.socket.as_raw_fd();
        let received = recvmsg::<()>(socket, &mut data, Some(&mut space), MsgFlags::empty());
        let received = received.ok().filter(|received| received.bytes > 0)?;
        let sender = received.cmsgs().ok()?.find_map(|control| match control {
            ControlMessageOwned::ScmCredentials(sender) => Some(Pid::from_raw(sender.pid())),
            _ => None,
        })?;
        Some((sender, received.bytes))
    }

    /// Why a process has said that it ends.
    pub(crate) fn reason_of(&mut self, pid: Pid) -> Option<ExitReason> {
        self.reasons.remove(&pid)
    }

    /// Who was handed out since this was asked, and where its memory is; of several, the last.
    pub(crate) fn handed_out(&mut self) -> Option<(Pid, u64)> {
        self.handed_out.take()
    }
}

/// Says something to the nursery; `false` when there is no nursery, or it hears nothing.
pub(crate) fn send(nursery: &OwnedFd, message: &Message) -> bool {
    let bytes = serde_json::to_vec(message).expect("a message is plain data");
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send_to(nursery.as_raw_fd(), &bytes, flags).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALTED: Message = Message::Ends(ExitReason::Halted);

    #[test]
    fn messages_are_the_senders_and_garbage_is_none() {
        let (mut messages, nursery) = Messages::new().unwrap();
        let own = Pid::this();
        let _ = send_to(nursery.as_raw_fd(), b"garbage", MsgFlags::empty());
        messages.hear(|_, _| true);
        assert_eq!(messages.reason_of(own), None);
        assert!(send(&nursery, &HALTED));
        messages.hear(|pid, _| pid != own);
        assert_eq!(messages.reason_of(own), None, "it is no child");
        assert!(send(&nursery, &HALTED));
        messages.hear(|pid, reason| pid == own && *reason == ExitReason::Halted);
        assert_eq!(messages.reason_of(own), Some(ExitReason::Halted));
        assert_eq!(messages.reason_of(own), None);
        // Whoever says too much loses it, does not wait, and is heard once.
        let said = (0..10_000).filter(|_| send(&nursery, &HALTED));
        assert!(said.count() < 10_000);
        let mut heard = 0;
        messages.hear(|_, _| {
            heard += 1;
            true
        });
        let reason = messages.reason_of(own);
        assert_eq!((heard, reason), (1, Some(ExitReason::Halted)));
        drop(messages);
        assert!(!send(&nursery, &HALTED));
    }

    #[test]
    fn who_is_handed_out_is_told_once_and_ends_by_nothing() {
        let (mut messages, nursery) = Messages::new().unwrap();
        assert_eq!(messages.handed_out(), None);
        for memory in [0x1000, 0x7000_0000_0000] {
            assert!(send(&nursery, &Message::HandedOut { memory }));
        }
        messages.hear(|_, reason| panic!("{reason}"));
        let own = Pid::this();
        assert_eq!(messages.handed_out(), Some((own, 0x7000_0000_0000)));
        assert_eq!(messages.handed_out(), None);
        assert_eq!(messages.reason_of(own), None);
    }
}
