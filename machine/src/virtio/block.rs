//! Block device (virtio 1.2, section 5.2) over a file or another disk.
//!
//! Requests are done when they are notified, in their order. A flush answers when the host's storage
//! has everything; a discard gives the blocks back where the file can.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
        VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    },
    virtio_ids::VIRTIO_ID_BLOCK,
};
use virtio_queue::{DescriptorChain, Queue, QueueT, Reader, Writer};

use super::{Broken, Device, Used, give_back, next, outside};
use crate::memory::Memory;

const QUEUES: [u16; 1] = [128];
/// Unit of a disk's addresses.
pub const SECTOR: u64 = 512;
/// Most data segments of a request: the rest of a queue is its header and status.
const SEGMENTS_MAX: u32 = 126;
/// Most sectors of one discard.
const DISCARD_MAX: u32 = 1 << 22;
/// Bytes that are copied at a time.
const PART: usize = 64 * 1024;

/// Where a disk's bytes are.
pub trait Storage: Send {
    /// How many bytes it has.
    fn size(&self) -> u64;
    /// Reads all of these bytes.
    ///
    /// # Errors
    /// When it cannot.
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of these bytes.
    ///
    /// # Errors
    /// When it cannot.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Has what was written outlive a loss of power.
    ///
    /// # Errors
    /// When it cannot.
    fn flush(&self) -> io::Result<()>;
    /// Makes a range zero, without blocks of its own where it can.
    ///
    /// # Errors
    /// When it cannot.
    fn zero(&self, offset: u64, length: u64) -> io::Result<()>;
}

/// A file or device as a disk.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    size: u64,
}

impl FileDisk {
    /// A disk of all whole sectors that the file has.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn new(file: File) -> io::Result<Self> {
        // A device has no length.
        let size = (&file).seek(SeekFrom::End(0))? / SECTOR * SECTOR;
        Ok(Self { file, size })
    }
}

impl Storage for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        let overflow = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let from = libc::off_t::try_from(offset).map_err(overflow)?;
        let count = libc::off_t::try_from(length).map_err(overflow)?;
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the call takes a descriptor and numbers.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), punch, from, count) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let zeros = vec![0; PART];
                let mut at = offset;
                while at < offset + length {
                    let part = usize::try_from(offset + length - at).map_or(PART, |n| n.min(PART));
                    self.file.write_all_at(&zeros[..part], at)?;
                    at += part as u64;
                }
                Ok(())
            }
            e => Err(e),
        }
    }
}

/// The device.
pub struct Block {
    storage: Box<dyn Storage>,
    read_only: bool,
    serial: String,
    config: [u8; 60],
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").finish_non_exhaustive()
    }
}

impl Block {
    /// A disk with a serial number, of which the guest sees 20 bytes.
    #[must_use]
    pub fn new(storage: Box<dyn Storage>, read_only: bool, serial: &str) -> Self {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(storage.size() / SECTOR).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        // Discard: most sectors, most ranges, alignment; write zeroes: most sectors, most ranges,
        // and that it may give blocks back.
        put(36, &DISCARD_MAX.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &8_u32.to_le_bytes());
        put(48, &DISCARD_MAX.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        Self {
            storage,
            read_only,
            serial: serial.to_owned(),
            config,
        }
    }

    /// Does one request; how many bytes of the guest's were written.
    fn request(&mut self, chain: &DescriptorChain<&Memory>, ram: &Memory) -> Result<usize, Broken> {
        let mut reader = chain.clone().reader(ram).map_err(outside)?;
        let mut writer = chain.clone().writer(ram).map_err(outside)?;
        let Some(room) = writer.available_bytes().checked_sub(1) else {
            return Err(Broken("a request has no place for its status"));
        };
        let mut status = writer.split_at(room).map_err(outside)?;
        let mut header = [0; 16];
        let done = match reader.read_exact(&mut header) {
            Ok(()) => self.act(&header, &mut reader, &mut writer),
            Err(_) => Err(io::ErrorKind::InvalidInput.into()),
        };
        let told = match &done {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(e) if e.kind() == io::ErrorKind::Unsupported => VIRTIO_BLK_S_UNSUPP,
            Err(_) => VIRTIO_BLK_S_IOERR,
        };
        let told = u8::try_from(told).unwrap_or(u8::MAX);
        status.write_all(&[told]).map_err(outside)?;
        Ok(writer.bytes_written() + 1)
    }

    fn act(
        &mut self,
        header: &[u8; 16],
        reader: &mut Reader<'_>,
        writer: &mut Writer<'_>,
    ) -> io::Result<()> {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = *header;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let at = u64::from_le_bytes(sector).checked_mul(SECTOR);
        let at = at.ok_or(io::ErrorKind::InvalidInput)?;
        match kind {
            VIRTIO_BLK_T_IN => self.read(at, writer),
            VIRTIO_BLK_T_FLUSH => self.storage.flush(),
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
                let length = self.serial.len().min(id.len());
                id[..length].copy_from_slice(&self.serial.as_bytes()[..length]);
                let room = writer.available_bytes().min(id.len());
                writer.write_all(&id[..room])
            }
            _ if self.read_only => Err(io::ErrorKind::Unsupported.into()),
            VIRTIO_BLK_T_OUT => self.write(at, reader),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.zero(reader),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Makes sure that a range lies on the disk, in whole sectors.
    fn on_disk(&self, at: u64, length: u64) -> io::Result<()> {
        let end = at.checked_add(length);
        let is_there = end.is_some_and(|end| end <= self.storage.size());
        if is_there && length.is_multiple_of(SECTOR) {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }

    fn read(&self, mut at: u64, writer: &mut Writer<'_>) -> io::Result<()> {
        let mut left = writer.available_bytes();
        self.on_disk(at, left as u64)?;
        let mut bytes = vec![0; left.min(PART)];
        while left > 0 {
            let part = left.min(PART);
            self.storage.read(&mut bytes[..part], at)?;
            writer.write_all(&bytes[..part])?;
            at += part as u64;
            left -= part;
        }
        Ok(())
    }

    fn write(&mut self, mut at: u64, reader: &mut Reader<'_>) -> io::Result<()> {
        let mut left = reader.available_bytes();
        self.on_disk(at, left as u64)?;
        let mut bytes = vec![0; left.min(PART)];
        while left > 0 {
            let part = left.min(PART);
            reader.read_exact(&mut bytes[..part])?;
            self.storage.write(&bytes[..part], at)?;
            at += part as u64;
            left -= part;
        }
        Ok(())
    }

    fn zero(&mut self, reader: &mut Reader<'_>) -> io::Result<()> {
        let mut range = [0; 16];
        reader.read_exact(&mut range)?;
        let [at @ .., c0, c1, c2, c3, _, _, _, _] = range;
        let at = u64::from_le_bytes(at).checked_mul(SECTOR);
        let at = at.ok_or(io::ErrorKind::InvalidInput)?;
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        if count > DISCARD_MAX || reader.available_bytes() > 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = u64::from(count) * SECTOR;
        self.on_disk(at, length)?;
        self.storage.zero(at, length)
    }
}

impl Device for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX;
        if self.read_only {
            always | 1 << VIRTIO_BLK_F_RO
        } else {
            always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn queues(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn reset(&mut self) {}

    fn notify(&mut self, _: usize, queues: &mut [Queue], ram: &Memory) -> Result<Used, Broken> {
        let queue = &mut queues[0];
        let mut used = Used(false);
        for _ in 0..queue.size() {
            let Some(chain) = next(queue, ram)? else {
                break;
            };
            let written = self.request(&chain, ram)?;
            used |= give_back(queue, ram, chain.head_index(), written)?;
        }
        Ok(used)
    }
}
