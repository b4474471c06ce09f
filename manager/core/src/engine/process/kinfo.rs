//! Layout of `struct kinfo_proc` of FreeBSD's `sys/user.h` on amd64.

use super::ProcessState;

/// `KINFO_PROC_SIZE`; the first field says it too.
const SIZE: usize = 1088;
/// Where `ki_uid` is, the effective user.
const USER: usize = 168;
/// Where `ki_cr_flags` is, an `unsigned int`.
const CREDENTIAL_FLAGS: usize = 588;
/// `KI_CRF_CAPABILITY_MODE`: it is in capability mode.
const CAPABILITY_MODE: u32 = 1;
/// Where `ki_start` is, a `struct timeval`.
const START: usize = 336;
/// Where `ki_stat` is, a `char`.
const STAT: usize = 388;
/// `SSTOP` of `sys/proc.h`: stopped by a signal or a debugger.
const SSTOP: u8 = 4;
/// `SZOMB` of `sys/proc.h`: ended, and not waited for yet.
const SZOMB: u8 = 5;

#[cfg(target_os = "freebsd")]
const _: () = {
    assert!(SIZE == size_of::<libc::kinfo_proc>());
    assert!(START == std::mem::offset_of!(libc::kinfo_proc, ki_start));
    assert!(STAT == std::mem::offset_of!(libc::kinfo_proc, ki_stat));
    assert!(USER == std::mem::offset_of!(libc::kinfo_proc, ki_uid));
    assert!(CREDENTIAL_FLAGS == std::mem::offset_of!(libc::kinfo_proc, ki_cr_flags));
    assert!(SSTOP == libc::SSTOP.cast_unsigned() && SZOMB == libc::SZOMB.cast_unsigned());
};

/// The needed fields of a process's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kinfo {
    /// What it does.
    pub(super) state: ProcessState,
    /// When it started, in microseconds since 1970 by the wall clock.
    pub(super) start: i64,
    /// Its user.
    pub(super) user: u32,
    /// Whether it is in Capsicum's capability mode.
    pub(super) in_capability_mode: bool,
}

impl Kinfo {
    /// Reads the first record; `None` when there is none, or it is laid out in another way.
    pub(super) fn parse(records: &[u8]) -> Option<Self> {
        let record: &[u8; SIZE] = records.first_chunk()?;
        if i32::from_ne_bytes(*record.first_chunk()?) != i32::try_from(SIZE).ok()? {
            return None;
        }
        let state = match record[STAT] {
            SZOMB => ProcessState::Gone,
            SSTOP => ProcessState::Stopped,
            _ => ProcessState::Running,
        };
        let start = microseconds(&record[START..])?;
        let word = |at: usize| record[at..].first_chunk().copied().map(u32::from_ne_bytes);
        Some(Self {
            state,
            start,
            user: word(USER)?,
            in_capability_mode: word(CREDENTIAL_FLAGS)? & CAPABILITY_MODE != 0,
        })
    }
}

/// A `struct timeval` in microseconds.
pub(super) fn microseconds(timeval: &[u8]) -> Option<i64> {
    let (seconds, rest) = timeval.split_first_chunk()?;
    let (microseconds, _) = rest.split_first_chunk()?;
    i64::from_ne_bytes(*seconds)
        .checked_mul(1_000_000)?
        .checked_add(i64::from_ne_bytes(*microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(stat: u8, seconds: i64, microseconds: i64) -> Vec<u8> {
        let mut record = vec![0xaa; SIZE];
        record[..4].copy_from_slice(&1088_i32.to_ne_bytes());
        record[START..START + 8].copy_from_slice(&seconds.to_ne_bytes());
        record[START + 8..START + 16].copy_from_slice(&microseconds.to_ne_bytes());
        record[STAT] = stat;
        record[USER..USER + 4].copy_from_slice(&1001_u32.to_ne_bytes());
        record[CREDENTIAL_FLAGS..CREDENTIAL_FLAGS + 4].copy_from_slice(&2_u32.to_ne_bytes());
        record
    }

    #[test]
    fn a_record_is_read() {
        let states = [1, 2, 3, SSTOP, SZOMB, 6, 7].map(|stat| {
            let kinfo = Kinfo::parse(&record(stat, 1_800_000_000, 250_001)).unwrap();
            assert_eq!(kinfo.start, 1_800_000_000_250_001);
            kinfo.state
        });
        use ProcessState::{Gone, Running, Stopped};
        assert_eq!(
            states,
            [Running, Running, Running, Stopped, Gone, Running, Running]
        );
    }

    #[test]
    fn a_user_and_capability_mode_are_read() {
        let mut record = record(2, 1, 1);
        let kinfo = Kinfo::parse(&record).unwrap();
        assert_eq!((kinfo.user, kinfo.in_capability_mode), (1001, false));
        record[CREDENTIAL_FLAGS] |= 1;
        assert!(Kinfo::parse(&record).unwrap().in_capability_mode);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        assert_eq!(Kinfo::parse(&[]), None);
        let whole = record(3, 1, 1);
        assert_eq!(Kinfo::parse(&whole[..SIZE - 1]), None);
        let mut other_layout = whole;
        other_layout[0] ^= 1;
        assert_eq!(Kinfo::parse(&other_layout), None);
        assert_eq!(microseconds(&[0; 15]), None);
        assert_eq!(Kinfo::parse(&record(3, i64::MAX, 0)), None, "no overflow");
    }
}
