//! Disks of a Linux guest: files that its process is given, for it opens none.

use std::{
    fs::File,
    io,
    sync::{Arc, OnceLock},
};

use brood_machine::virtio::block::{Block, FileDisk, Storage};

use crate::{
    engine::guest_disks::{DISK, ROOT},
    units::Bytes,
};

/// The disks of a machine.
#[derive(Debug, Default)]
pub(super) struct Disks {
    /// The file with the root file system.
    pub(super) root: Option<File>,
    /// The disk that the guest has to itself.
    pub(super) own: Option<OwnDisk>,
}

impl Disks {
    /// The devices, in the order that the guest finds them in.
    pub(super) fn devices(&self) -> io::Result<Vec<Block>> {
        let mut devices = Vec::new();
        if let Some(root) = &self.root {
            let disk = FileDisk::new(root.try_clone()?)?;
            devices.push(Block::new(Box::new(disk), true, ROOT));
        }
        if let Some(own) = &self.own {
            devices.push(Block::new(Box::new(own.clone()), false, DISK));
        }
        Ok(devices)
    }
}

/// The disk that a guest has to itself. Its file comes when the guest begins.
#[derive(Clone, Debug)]
pub(super) struct OwnDisk {
    size: Bytes,
    file: Arc<OnceLock<FileDisk>>,
}

impl OwnDisk {
    /// A disk of this size.
    pub(super) fn new(size: Bytes) -> Self {
        Self {
            size,
            file: Arc::default(),
        }
    }

    /// Takes the disk's file.
    pub(super) fn set_file(&self, file: File) -> Result<(), String> {
        let disk = FileDisk::new(file).map_err(|e| format!("cannot use the guest's disk: {e}"))?;
        let (size, found) = (self.size, Bytes(disk.size()));
        if size != found {
            return Err(format!("the guest's disk has {found}, and not {size}"));
        }
        let set = self.file.set(disk);
        set.map_err(|_| "the guest has its disk already".to_owned())
    }

    /// Has what the guest wrote outlive a loss of power.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file()?.flush()
    }

    fn file(&self) -> io::Result<&FileDisk> {
        self.file.get().ok_or(io::ErrorKind::NotConnected.into())
    }
}

impl Storage for OwnDisk {
    fn size(&self) -> u64 {
        self.size.0
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file()?.read(bytes, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file()?.write(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        Self::flush(self)
    }

    fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file()?.zero(offset, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_there_when_its_file_has_come_and_is_of_its_size() {
        let disk = OwnDisk::new(Bytes(4096));
        let file = |length| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            file
        };
        let unplugged = disk.write(&[7; 512], 0).unwrap_err();
        assert_eq!(unplugged.kind(), io::ErrorKind::NotConnected);
        assert!(disk.set_file(file(8192)).unwrap_err().contains("8 KiB"));
        disk.set_file(file(4096)).unwrap();
        assert!(disk.set_file(file(4096)).is_err());
        disk.write(&[7; 512], 512).unwrap();
        let mut bytes = [1; 1024];
        disk.read(&mut bytes, 0).unwrap();
        assert_eq!((bytes[0], bytes[512]), (0, 7));
        disk.zero(512, 512).unwrap();
        disk.read(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 1024]);
        disk.flush().unwrap();
    }
}
