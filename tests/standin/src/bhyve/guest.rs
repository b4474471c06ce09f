//! Tiny guest that lives in the memory of its VM: a nonce of its first boot and a count of its
//! answers are in the first page, so that a restored guest shows where it comes from.
//!
//! On the first serial port it says `ready ...` when it begins to run, and answers lines:
//!
//! | line | answer |
//! |---|---|
//! | `ping` | `pong` and its identity: name, nonce, counter (one higher each time), generation |
//! | `identity [KEY=VALUE ...]` | its identity, counted as an answer; `name=` gives it a new name |
//! | `peek A`, `poke A N` | the 64-bit word at an address, read or written |
//! | `read S`, `write S N` | the first 64-bit word of a sector of the first disk that can be written |
//! | `dirty N` | writes to N pages after the first |
//! | `spin N` | `spin`, after N microseconds of processor time |
//! | `drive` | `drive`; a driver has programmed its ahci disks, which a checkpoint needs |
//! | `private` | how many pages of its memory are its own |
//! | `poweroff`, `reboot`, `halt` | it ends that way |
//! | `fault`, `crash` | a triple fault |
//! | `hang` | `hang`; then it answers nothing any more, and no power button either |
//!
//! A line `@TAG WORDS` is answered with `!TAG ANSWER`: the agent's protocol of docs/bhyve.md.

use std::{fs::File, io, os::unix::fs::FileExt, time::Duration};

use nix::time::{ClockId, clock_gettime};

use super::memory::Memory;
use crate::vm::Suspend;

const MAGIC: &[u8; 16] = b"stand-in guest 1";
const NONCE: usize = 16;
const COUNTER: usize = 24;
/// Whether a driver has programmed the ports of ahci.
const DRIVEN: usize = 32;
/// Flags of the agent at another port.
const FLAGS: usize = 40;
/// Bytes of a disk sector.
const SECTOR: u64 = 512;

/// The guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Its memory.
    pub(crate) memory: Memory,
    name: String,
    generation: u128,
    hung: bool,
    /// Its disk, if it can write to one.
    disk: Option<File>,
}

/// What the guest does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// It says this.
    Says(String),
    /// It ends.
    Ends(Suspend),
    /// Nothing.
    Nothing,
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Keeps a processor busy. Its own time counts, so that it takes long on a loaded machine too.
fn spin(busy: Duration) -> io::Result<()> {
    let used = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let end = used()? + busy;
    while used()? < end {}
    Ok(())
}

impl Guest {
    /// A guest in this memory. `name` is the VM's, from its firmware tables. The generation is new
    /// in every process, as vmgenc_init() makes it.
    ///
    /// # Errors
    /// When there is no randomness.
    pub(crate) fn new(name: &str, memory: Memory, disk: Option<File>) -> io::Result<Self> {
        Ok(Self {
            memory,
            name: name.to_owned(),
            generation: u128::from_le_bytes(random()?),
            hung: false,
            disk,
        })
    }

    /// Loads the guest's code, so to say: what the boot ROM does.
    ///
    /// # Errors
    /// When there is no randomness.
    pub(crate) fn boot(&mut self) -> io::Result<()> {
        self.memory.write(0, 0, MAGIC)?;
        self.memory.write(0, NONCE, &random::<8>()?)?;
        self.memory.write(0, COUNTER, &0_u64.to_le_bytes())?;
        self.set_flags(0)
    }

    fn word(&self, at: usize) -> io::Result<u64> {
        let page = self.memory.page(0)?;
        let mut word = [0; 8];
        word.copy_from_slice(&page[at..at + 8]);
        Ok(u64::from_le_bytes(word))
    }

    /// The flags of its agent, 0 after a boot.
    pub(crate) fn flags(&self) -> io::Result<u64> {
        self.word(FLAGS)
    }

    pub(crate) fn set_flags(&mut self, flags: u64) -> io::Result<()> {
        self.memory.write(0, FLAGS, &flags.to_le_bytes())
    }

    pub(crate) fn nonce(&self) -> io::Result<u64> {
        self.word(NONCE)
    }

    pub(crate) fn counter(&self) -> io::Result<u64> {
        self.word(COUNTER)
    }

    /// Gives it a name, unless that is empty.
    pub(crate) fn set_name(&mut self, name: &str) {
        if !name.is_empty() {
            name.clone_into(&mut self.name);
        }
    }

    fn identity(&self) -> io::Result<String> {
        Ok(format!(
            "name={} nonce={:016x} counter={} generation={:032x}",
            self.name,
            self.word(NONCE)?,
            self.word(COUNTER)?,
            self.generation
        ))
    }

    /// Whether a driver has programmed the ports of ahci, in this process or before a checkpoint.
    pub(crate) fn drives_ahci(&self) -> bool {
        self.word(DRIVEN).is_ok_and(|word| word == 1)
    }

    /// Begins to run, after a boot or a restore. Memory without the guest's code is a triple fault.
    ///
    /// # Errors
    /// When the checkpoint cannot be read.
    pub(crate) fn run(&self) -> io::Result<Does> {
        if self.memory.page(0)?.starts_with(MAGIC) {
            Ok(Does::Says(format!("ready {}\n", self.identity()?)))
        } else {
            Ok(Does::Ends(Suspend::TripleFault))
        }
    }

    /// Takes a line from the serial port.
    ///
    /// # Errors
    /// When the checkpoint cannot be read.
    pub(crate) fn line(&mut self, line: &str) -> io::Result<Does> {
        if self.hung {
            return Ok(Does::Nothing);
        }
        let Some((tag, words)) = line.strip_prefix('@').and_then(|l| l.split_once(' ')) else {
            return self.words(line);
        };
        Ok(match self.words(words)? {
            Does::Says(text) => Does::Says(format!("!{tag} {text}")),
            other => other,
        })
    }

    /// Page, and offset in it, of the word at an address.
    fn address(&self, text: &str) -> Option<(u64, usize)> {
        let address = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok()?,
            None => text.parse().ok()?,
        };
        let (page, offset) = (address / super::memory::PAGE, address % super::memory::PAGE);
        let inside = address % 8 == 0 && address < self.memory.length();
        inside.then_some((page, usize::try_from(offset).ok()?))
    }

    /// The first word of a sector of its disk, after `new` was written there.
    fn sector(&self, sector: &str, new: Option<u64>) -> io::Result<u64> {
        let sector: u64 = sector.parse().map_err(io::Error::other)?;
        let disk = self.disk.as_ref();
        let disk = disk.ok_or_else(|| io::Error::other("there is no disk to write to"))?;
        if let Some(new) = new {
            disk.write_all_at(&new.to_le_bytes(), sector * SECTOR)?;
        }
        let mut word = [0; 8];
        disk.read_exact_at(&mut word, sector * SECTOR)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Counts an answer.
    pub(crate) fn count(&mut self) -> io::Result<()> {
        let counter = self.word(COUNTER)? + 1;
        self.memory.write(0, COUNTER, &counter.to_le_bytes())
    }

    fn words(&mut self, line: &str) -> io::Result<Does> {
        let mut words = line.split_whitespace();
        Ok(match (words.next(), words.next()) {
            (None, _) => Does::Nothing,
            (Some("ping"), _) => {
                self.count()?;
                Does::Says(format!("pong {}\n", self.identity()?))
            }
            (Some("identity"), first) => {
                for word in first.into_iter().chain(words) {
                    if let Some(name) = word.strip_prefix("name=") {
                        name.clone_into(&mut self.name);
                    }
                }
                self.count()?;
                Does::Says(format!("identity {}\n", self.identity()?))
            }
            (Some("peek"), Some(address)) => match self.address(address) {
                Some((page, offset)) => {
                    let mut word = [0; 8];
                    word.copy_from_slice(&self.memory.page(page)?[offset..offset + 8]);
                    Does::Says(format!("peek value={}\n", u64::from_le_bytes(word)))
                }
                None => Does::Says("error: there is no word at that address\n".to_owned()),
            },
            (Some("poke"), Some(address)) => {
                let value = words.next().and_then(|text| text.parse::<u64>().ok());
                match (self.address(address), value) {
                    (Some((page, offset)), Some(value)) => {
                        self.memory.write(page, offset, &value.to_le_bytes())?;
                        Does::Says("poke\n".to_owned())
                    }
                    _ => Does::Says("error: there is no word at that address\n".to_owned()),
                }
            }
            (Some("read"), Some(sector)) => match self.sector(sector, None) {
                Ok(value) => Does::Says(format!("read value={value}\n")),
                Err(e) => Does::Says(format!("error: {e}\n")),
            },
            (Some("write"), Some(sector)) => {
                let value = words.next().and_then(|text| text.parse().ok());
                match self.sector(sector, value) {
                    Ok(_) => Does::Says("write\n".to_owned()),
                    Err(e) => Does::Says(format!("error: {e}\n")),
                }
            }
            (Some("dirty"), Some(count)) => {
                let pages = self.memory.length() / super::memory::PAGE;
                match count.parse::<u64>() {
                    Ok(count) if count < pages => {
                        for page in 1..=count {
                            let byte = self.memory.page(page)?[0].wrapping_add(1);
                            self.memory.write(page, 0, &[byte])?;
                        }
                        Does::Says(format!("dirty {count}\n"))
                    }
                    _ => Does::Says(format!("error: {} pages at most\n", pages - 1)),
                }
            }
            (Some("drive"), _) => {
                self.memory.write(0, DRIVEN, &1_u64.to_le_bytes())?;
                Does::Says("drive\n".to_owned())
            }
            (Some("spin"), Some(micros)) => match micros.parse() {
                Ok(micros) => {
                    spin(Duration::from_micros(micros))?;
                    Does::Says("spin\n".to_owned())
                }
                Err(e) => Does::Says(format!("error: {e}\n")),
            },
            (Some("private"), _) => Does::Says(format!("private {}\n", self.memory.private())),
            (Some("poweroff"), _) => Does::Ends(Suspend::Poweroff),
            (Some("reboot"), _) => Does::Ends(Suspend::Reset),
            (Some("halt"), _) => Does::Ends(Suspend::Halt),
            (Some("fault" | "crash"), _) => Does::Ends(Suspend::TripleFault),
            (Some("hang"), _) => {
                self.hung = true;
                Does::Says("hang\n".to_owned())
            }
            (Some(word), _) => Does::Says(format!("error: {word} is not a word of this guest\n")),
        })
    }

    /// The power button was pressed.
    pub(crate) fn power_button(&self) -> Does {
        if self.hung {
            Does::Nothing
        } else {
            Does::Ends(Suspend::Poweroff)
        }
    }
}
