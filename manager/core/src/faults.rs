//! Fault points: the steps of the manager that a test can make fail, one at a time.
//!
//! `BROOD_FAULT=POINT[:NTH]=FAULT` has the NTH visit of a point (the first, when not told) fail as
//! it would when the system fails it, or ends the process there. `BROOD_FAULT_VISITS=FILE` writes
//! the name of each point that is visited to that file, so that a test knows all visits of a
//! command and tries every one. A name that is no point's ends the command with the list of all.
//!
//! Only builds with debug assertions have this: those are what end-to-end tests run, so that no
//! second build is needed, and no release has them. There, a point is nothing.
//!
//! A point stands *before* the step that it names. Where a process is to be killed between any two
//! system calls, whatever they are, `tests/src/tracer.rs` does it: that needs no point, and can
//! only kill.

#[cfg(not(debug_assertions))]
use std::io;

/// Environment variable that names a point and its fault.
pub const FAULT_VARIABLE: &str = "BROOD_FAULT";

/// Environment variable that names a file for the names of points that are visited.
pub const VISITS_VARIABLE: &str = "BROOD_FAULT_VISITS";

/// What a step needs of the file system, and so which faults make sense.
#[cfg(debug_assertions)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// It can find the disk full.
    Room,
    /// It writes bytes, of which half may be written.
    Bytes,
}

macro_rules! points {
    ($($(#[$meta:meta])* $point:ident = $name:literal $needs:ident,)*) => {
        /// A step that can fail.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[$meta])* $point,)*
        }

        impl Point {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// Its name in [`FAULT_VARIABLE`].
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }

            /// What it needs of the file system.
            #[cfg(debug_assertions)]
            fn needs(self) -> Needs {
                match self {
                    $(Self::$point => Needs::$needs,)*
                }
            }
        }
    };
}

points! {
    /// A change of the record.
    RecordChange = "record.change" Room,
    /// The sync that brings a change of the record to the disk.
    RecordSync = "record.sync" Room,
    /// A recovery file's content.
    RecoveryWrite = "recovery.write" Bytes,
    /// The name of a recovery file that is complete.
    RecoveryName = "recovery.name" Room,
    /// The removal of a recovery file.
    RecoveryRemove = "recovery.remove" Nothing,
    /// The restore lock.
    RestoreLock = "restore.lock" Room,
    /// The engine's session: on KVM a nursery.
    RestoreSession = "restore.session" Nothing,
    /// The clone of a guest's disk.
    RestoreDisk = "restore.disk" Room,
    /// An order for one guest.
    RestoreOrder = "restore.order" Nothing,
    /// What came of an order.
    RestoreOutcome = "restore.outcome" Nothing,
    /// The look at a guest's process.
    GuestLook = "guest.look" Nothing,
    /// The signal that stops a guest.
    GuestStop = "guest.stop" Nothing,
    /// The request that has a stopped guest run on.
    GuestWake = "guest.wake" Nothing,
    /// The engine's part of a suspend.
    SuspendWrite = "suspend.write" Room,
    /// The record of a guest's end by its suspend.
    SuspendEnded = "suspend.ended" Nothing,
    /// The signal that ends a guest.
    DestroyKill = "destroy.kill" Nothing,
    /// The removal of a guest's files.
    DestroyFiles = "destroy.files" Nothing,
    /// The removal of a guest's disk.
    DestroyDisk = "destroy.disk" Nothing,
    /// The lock and the files of a new bundle.
    BundleCreate = "bundle.create" Room,
    /// A bundle's CPU and device state.
    BundleKern = "bundle.kern" Bytes,
    /// A bundle's description for bhyve.
    BundleMeta = "bundle.meta" Bytes,
    /// The sync of a bundle's file.
    BundleSync = "bundle.sync" Room,
    /// A bundle's manifest.
    BundleManifest = "bundle.manifest" Bytes,
    /// The name of a bundle's file that is complete.
    BundleName = "bundle.name" Room,
    /// The sync of a bundle's folder.
    BundleFolder = "bundle.folder" Room,
    /// The removal of a name in a bundle's folder.
    BundleRemove = "bundle.remove" Nothing,
    /// A piece of memory that is copied from bundle to bundle.
    FlattenCopy = "flatten.copy" Room,
    /// The second name of a damaged database.
    RebuildAside = "rebuild.aside" Room,
    /// The new database's name.
    RebuildPlace = "rebuild.place" Room,
}

/// Fails when this visit of the point is to fail.
///
/// # Errors
/// The fault.
#[cfg(not(debug_assertions))]
#[inline(always)]
#[expect(clippy::inline_always, reason = "nothing may be left of it")]
pub fn at(_: Point) -> io::Result<()> {
    Ok(())
}

/// Writes bytes at a point, or only half of them when that is the fault.
///
/// # Errors
/// What writing answers, or the fault.
#[cfg(not(debug_assertions))]
#[inline(always)]
#[expect(clippy::inline_always, reason = "nothing may be left of it")]
pub fn writing(
    _: Point,
    bytes: &[u8],
    write: impl FnOnce(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    write(bytes)
}

#[cfg(debug_assertions)]
pub use injected::{Fault, at, writing};

#[cfg(debug_assertions)]
mod injected {
    use std::{
        env, fs,
        io::{self, Write},
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
        thread,
        time::Duration,
    };

    use nix::{
        libc,
        sys::signal::{Signal, raise},
    };

    use super::{FAULT_VARIABLE, Needs, Point, VISITS_VARIABLE};

    /// How long a step is held up: longer than other commands need beside it.
    const DELAY: Duration = Duration::from_secs(1);

    /// What becomes of a step.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Fault {
        /// The process is killed before it.
        Kill,
        /// It fails as of a bad disk, EIO.
        Error,
        /// It fails as of a full disk, ENOSPC.
        Enospc,
        /// Half of its bytes are written before it fails as of a full disk. A step that writes no
        /// bytes fails at once.
        Short,
        /// It begins a second later.
        Delay,
    }

    impl Fault {
        /// All of them.
        pub const ALL: [Self; 5] = [
            Self::Kill,
            Self::Error,
            Self::Enospc,
            Self::Short,
            Self::Delay,
        ];

        /// Its name in [`FAULT_VARIABLE`].
        #[must_use]
        pub fn name(self) -> &'static str {
            match self {
                Self::Kill => "kill",
                Self::Error => "error",
                Self::Enospc => "enospc",
                Self::Short => "short",
                Self::Delay => "delay",
            }
        }
    }

    impl Point {
        /// Whether the step can fail in this way.
        #[must_use]
        pub fn takes(self, fault: Fault) -> bool {
            match fault {
                Fault::Kill | Fault::Error | Fault::Delay => true,
                Fault::Enospc => self.needs() != Needs::Nothing,
                Fault::Short => self.needs() == Needs::Bytes,
            }
        }
    }

    /// The one visit that fails.
    #[derive(Debug, PartialEq, Eq)]
    pub(super) struct Plan {
        pub(super) point: Point,
        pub(super) nth: u64,
        pub(super) fault: Fault,
    }

    impl Plan {
        pub(super) fn parse(text: &str) -> Option<Self> {
            let (at, fault) = text.split_once('=')?;
            let (name, nth) = match at.split_once(':') {
                Some((name, nth)) => (name, nth.parse().ok().filter(|nth| *nth > 0)?),
                None => (at, 1),
            };
            let mut points = Point::ALL.iter().copied();
            let mut faults = Fault::ALL.into_iter();
            Some(Self {
                point: points.find(|point| point.name() == name)?,
                nth,
                fault: faults.find(|known| known.name() == fault)?,
            })
        }
    }

    static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| {
        let text = env::var(FAULT_VARIABLE).ok()?;
        let plan = Plan::parse(&text);
        Some(plan.unwrap_or_else(|| {
            let points: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
            let faults = Fault::ALL.map(Fault::name);
            panic!(
                "{FAULT_VARIABLE}={text} is not POINT[:NTH]=FAULT; points are {}; faults are {}",
                points.join(", "),
                faults.join(", ")
            )
        }))
    });
    static VISITS: LazyLock<Option<fs::File>> = LazyLock::new(|| {
        let path = env::var_os(VISITS_VARIABLE)?;
        let file = fs::File::options().append(true).create(true).open(path);
        Some(file.expect("a file for visits of fault points"))
    });
    /// Visits of the plan's point so far.
    static SEEN: AtomicU64 = AtomicU64::new(0);

    /// The fault of this visit.
    fn visit(point: Point) -> Option<Fault> {
        if let Some(mut file) = VISITS.as_ref() {
            let line = format!("{}\n", point.name());
            // One write: others append to it at the same time.
            file.write_all(line.as_bytes())
                .expect("a file for visits of fault points");
        }
        let plan = PLAN.as_ref().filter(|plan| plan.point == point)?;
        let nth = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
        (nth == plan.nth).then_some(plan.fault)
    }

    fn failed(fault: Fault) -> io::Result<()> {
        match fault {
            Fault::Kill => {
                let _ = raise(Signal::SIGKILL);
                Ok(())
            }
            Fault::Error => Err(io::Error::from_raw_os_error(libc::EIO)),
            Fault::Enospc | Fault::Short => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Fault::Delay => {
                thread::sleep(DELAY);
                Ok(())
            }
        }
    }

    /// Fails when this visit of the point is to fail.
    ///
    /// # Errors
    /// The fault.
    pub fn at(point: Point) -> io::Result<()> {
        visit(point).map_or(Ok(()), failed)
    }

    /// Writes bytes at a point, or only half of them when that is the fault.
    ///
    /// # Errors
    /// What writing answers, or the fault.
    pub fn writing(
        point: Point,
        bytes: &[u8],
        write: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        match visit(point) {
            None => write(bytes),
            Some(Fault::Short) => {
                write(&bytes[..bytes.len() / 2])?;
                failed(Fault::Short)
            }
            Some(fault) => {
                failed(fault)?;
                write(bytes)
            }
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::{
        Point,
        injected::{Fault, Plan},
    };

    #[test]
    fn a_plan_names_a_point_a_visit_and_a_fault() {
        let plan = |nth, fault| {
            let point = Point::BundleName;
            Some(Plan { point, nth, fault })
        };
        assert_eq!(Plan::parse("bundle.name=kill"), plan(1, Fault::Kill));
        assert_eq!(Plan::parse("bundle.name:3=short"), plan(3, Fault::Short));
        for wrong in [
            "",
            "bundle.name",
            "bundle.name=",
            "bundle.nam=kill",
            "bundle.name:0=kill",
            "bundle.name:x=kill",
        ] {
            assert_eq!(Plan::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn no_two_points_have_one_name() {
        let mut names: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
