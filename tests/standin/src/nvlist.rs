//! nvlist(9) on a socket, as libnv(3) sends and receives it: the protocol of bhyve's checkpoint
//! socket (sys/contrib/libnv/nvlist.c, bsd_nvpair.c; lib/libnv/msgio.c).
//!
//! A header (magic, version, flags, number of descriptors, length), then a header, a name and a
//! value for each pair, then a byte that carries the descriptors. Only the types that the socket
//! uses: bool, string and descriptor.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    unistd,
};

const MAGIC: u8 = b'l';
const HEADER: usize = 1 + 1 + 1 + 8 + 8;
const PAIR_HEADER: usize = 1 + 2 + 8 + 8;
const BIG_ENDIAN: u8 = 0x80;
const TYPE_BOOL: u8 = 2;
const TYPE_STRING: u8 = 4;
const TYPE_DESCRIPTOR: u8 = 6;
/// Longest list that is read; a checkpoint request has some 100 bytes.
const LONGEST: u64 = 64 * 1024;

/// A value.
#[derive(Debug)]
pub(crate) enum Value {
    Bool(bool),
    String(String),
    Descriptor(OwnedFd),
}

/// A list of named values.
#[derive(Debug, Default)]
pub(crate) struct Nvlist(Vec<(String, Value)>);

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn u64_at(bytes: &[u8], at: usize) -> io::Result<u64> {
    let field = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    field
        .map(u64::from_le_bytes)
        .ok_or_else(|| malformed("a cut off field"))
}

impl Nvlist {
    /// Adds a pair.
    pub(crate) fn add(&mut self, name: &str, value: Value) {
        self.0.push((name.to_owned(), value));
    }

    /// The string of this name.
    pub(crate) fn string(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|pair| match pair {
            (other, Value::String(text)) if other == name => Some(text.as_str()),
            _ => None,
        })
    }

    /// The bool of this name.
    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        self.0.iter().find_map(|pair| match pair {
            (other, Value::Bool(value)) if other == name => Some(*value),
            _ => None,
        })
    }

    /// The descriptor of this name.
    pub(crate) fn descriptor(&self, name: &str) -> Option<&OwnedFd> {
        self.0.iter().find_map(|pair| match pair {
            (other, Value::Descriptor(fd)) if other == name => Some(fd),
            _ => None,
        })
    }

    fn pack(&self) -> (Vec<u8>, Vec<RawFd>) {
        let (mut pairs, mut fds) = (Vec::new(), Vec::new());
        for (name, value) in &self.0 {
            let (kind, data) = match value {
                Value::Bool(value) => (TYPE_BOOL, vec![u8::from(*value)]),
                Value::String(text) => (TYPE_STRING, [text.as_bytes(), b"\0"].concat()),
                Value::Descriptor(fd) => {
                    // In place of the descriptor, its place among those that are sent.
                    let index = fds.len() as u64;
                    fds.push(fd.as_raw_fd());
                    (TYPE_DESCRIPTOR, index.to_le_bytes().to_vec())
                }
            };
            let name = [name.as_bytes(), b"\0"].concat();
            pairs.push(kind);
            pairs.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
            pairs.extend((data.len() as u64).to_le_bytes());
            pairs.extend(0_u64.to_le_bytes());
            pairs.extend(name);
            pairs.extend(data);
        }
        let mut bytes = vec![MAGIC, 0, 0];
        bytes.extend((fds.len() as u64).to_le_bytes());
        bytes.extend((pairs.len() as u64).to_le_bytes());
        bytes.extend(pairs);
        (bytes, fds)
    }

    /// nvlist_send(3).
    ///
    /// # Errors
    /// When the socket refuses.
    pub(crate) fn send(&self, mut socket: &UnixStream) -> io::Result<()> {
        let (bytes, fds) = self.pack();
        socket.write_all(&bytes)?;
        if !fds.is_empty() {
            let rights = [ControlMessage::ScmRights(&fds)];
            let byte = [IoSlice::new(&[0])];
            sendmsg::<()>(socket.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
        }
        Ok(())
    }

    /// nvlist_recv(3).
    ///
    /// # Errors
    /// When the other side is gone, or what it sent is no list.
    pub(crate) fn receive(mut socket: &UnixStream) -> io::Result<Self> {
        let mut header = [0; HEADER];
        socket.read_exact(&mut header)?;
        if header[0] != MAGIC || header[1] != 0 || header[2] & BIG_ENDIAN != 0 {
            return Err(malformed("not an nvlist"));
        }
        let (count, length) = (u64_at(&header, 3)?, u64_at(&header, 11)?);
        if length > LONGEST {
            return Err(malformed("an nvlist that is too long"));
        }
        let mut pairs = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        socket.read_exact(&mut pairs)?;
        let mut fds = if count == 0 {
            Vec::new()
        } else {
            receive_fds(socket)?
        };
        if fds.len() as u64 != count {
            return Err(malformed("another number of descriptors"));
        }
        Self::unpack(&pairs, &mut fds)
    }

    fn unpack(mut pairs: &[u8], fds: &mut [Option<OwnedFd>]) -> io::Result<Self> {
        let mut list = Self::default();
        while !pairs.is_empty() {
            let header = pairs
                .get(..PAIR_HEADER)
                .ok_or_else(|| malformed("a cut off pair"))?;
            let kind = header[0];
            let name_length = usize::from(u16::from_le_bytes([header[1], header[2]]));
            let length = usize::try_from(u64_at(header, 3)?).map_err(io::Error::other)?;
            let end = (PAIR_HEADER + name_length).saturating_add(length);
            let pair = pairs
                .get(..end)
                .ok_or_else(|| malformed("a cut off value"))?;
            let (name, data) = pair[PAIR_HEADER..].split_at(name_length);
            let value = match kind {
                TYPE_BOOL => Value::Bool(data == [1]),
                TYPE_STRING => Value::String(text(data)?),
                TYPE_DESCRIPTOR => {
                    let index = usize::try_from(u64_at(data, 0)?).map_err(io::Error::other)?;
                    let fd = fds.get_mut(index).and_then(Option::take);
                    Value::Descriptor(fd.ok_or_else(|| malformed("no such descriptor"))?)
                }
                _ => return Err(malformed("a type that is not used here")),
            };
            list.add(&text(name)?, value);
            pairs = &pairs[end..];
        }
        Ok(list)
    }
}

fn text(bytes: &[u8]) -> io::Result<String> {
    let bytes = bytes
        .strip_suffix(b"\0")
        .ok_or_else(|| malformed("no end of a string"))?;
    String::from_utf8(bytes.to_vec()).map_err(io::Error::other)
}

fn receive_fds(socket: &UnixStream) -> io::Result<Vec<Option<OwnedFd>>> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            for fd in raw {
                // Opened anew, which is enough for the folder that it is.
                let file = File::open(format!("/proc/self/fd/{fd}"));
                unistd::close(fd)?;
                fds.push(Some(file?.into()));
            }
        }
    }
    Ok(fds)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;

    fn request() -> Nvlist {
        let mut list = Nvlist::default();
        list.add("cmd", Value::String("checkpoint".to_owned()));
        list.add("suspend", Value::Bool(true));
        let folder = File::open("/").expect("a folder");
        list.add("fddir", Value::Descriptor(folder.into()));
        list
    }

    /// The bytes as the structures of libnv lay them out, put down by hand.
    #[test]
    fn the_bytes_are_those_of_libnv() {
        let expected = [
            // Magic, version, flags; one descriptor; 95 bytes of pairs.
            &b"l\0\0"[..],
            b"\x01\0\0\0\0\0\0\0",
            b"\x5f\0\0\0\0\0\0\0",
            // Type, length of the name, length of the value, number of items; name; value.
            b"\x04\x04\0\x0b\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"cmd\0checkpoint\0",
            b"\x02\x08\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"suspend\0\x01",
            b"\x06\x06\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"fddir\0\0\0\0\0\0\0\0\0",
        ]
        .concat();
        let (bytes, fds) = request().pack();
        assert_eq!(bytes, expected);
        assert_eq!(fds.len(), 1);
    }

    #[test]
    fn what_is_sent_is_received() {
        let (here, there) = UnixStream::pair().expect("sockets");
        request().send(&here).expect("sent");
        let list = Nvlist::receive(&there).expect("received");
        assert_eq!(list.string("cmd"), Some("checkpoint"));
        assert_eq!((list.bool("suspend"), list.bool("cmd")), (Some(true), None));
        let folder = list.descriptor("fddir").expect("a descriptor").as_fd();
        let stat = nix::sys::stat::fstat(folder).expect("a file");
        let root = nix::sys::stat::stat("/").expect("a folder");
        assert_eq!((stat.st_dev, stat.st_ino), (root.st_dev, root.st_ino));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_list_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(list) = Nvlist::unpack(&bytes, &mut []) {
                prop_assert!(list.pack().0.len() - HEADER <= bytes.len());
            }
        }

        #[test]
        fn a_list_that_is_cut_off_is_an_error(length in 0_usize..95) {
            let (bytes, _) = request().pack();
            let list = Nvlist::unpack(&bytes[HEADER..HEADER + length], &mut []);
            // Between two pairs it ends well, with fewer of them.
            prop_assert!(list.is_err() || [0, 34, 62].contains(&length), "{length}: {list:?}");
        }
    }
}
