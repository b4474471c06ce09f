//! Verdict of admission: every limit with its figures, and the one that binds first.

use serde::Serialize;

use crate::units::Bytes;

/// Unit of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Tasks.
    Pids,
    /// Bytes of memory.
    Bytes,
    /// Open files.
    Files,
    /// Processes.
    Processes,
    /// Virtual machines.
    Machines,
}

impl Unit {
    /// An amount as people read it.
    #[must_use]
    pub fn show(self, amount: u64) -> String {
        match self {
            Self::Pids if amount == 1 => "1 pid".to_owned(),
            Self::Pids => format!("{amount} pids"),
            Self::Bytes => Bytes(amount).to_string(),
            Self::Files if amount == 1 => "1 open file".to_owned(),
            Self::Files => format!("{amount} open files"),
            Self::Processes if amount == 1 => "1 process".to_owned(),
            Self::Processes => format!("{amount} processes"),
            Self::Machines if amount == 1 => "1 virtual machine".to_owned(),
            Self::Machines => format!("{amount} virtual machines"),
        }
    }
}

/// One limit of the host, held against a demand. Amounts are in [`Self::unit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdmissionLimit {
    /// The sysctl, resource limit, `/proc/meminfo` line, control group file or kind of memory.
    pub name: String,
    /// The counted unit.
    pub unit: Unit,
    /// The need of all the guests, the fixed part included.
    pub needed: u64,
    /// The part of `needed` that one guest adds.
    pub per_guest: u64,
    /// The part of `needed` that does not depend on the guests asked for now.
    pub fixed: u64,
    /// The amount left on the host now.
    pub available: u64,
    /// What the limit is set to, and how much of that is there: where both are told in its words.
    #[serde(skip)]
    pub set: Option<(u64, u64)>,
    /// The part of `available` that is reserved for others.
    pub reserve: u64,
    /// Whether `needed` is at most `available - reserve`.
    pub fits: bool,
    /// Whether this is about memory that guests may come to use, which an operator may overcommit.
    pub overcommittable: bool,
    /// What to change, if it does not fit.
    pub hint: Option<String>,
}

impl AdmissionLimit {
    pub(super) fn new(name: &str, unit: Unit) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            needed: 0,
            per_guest: 0,
            fixed: 0,
            available: 0,
            set: None,
            reserve: 0,
            fits: true,
            overcommittable: false,
            hint: None,
        }
    }

    pub(super) fn room(mut self, available: u64, reserve: u64) -> Self {
        (self.available, self.reserve) = (available, reserve);
        self
    }

    /// Room under a limit that is set to `limit`, of which `existing` are there.
    pub(super) fn room_beside(mut self, limit: u64, existing: u64) -> Self {
        self.set = Some((limit, existing));
        self.room(limit.saturating_sub(existing), 0)
    }

    pub(super) fn needs(mut self, guests: u64, per_guest: u64, fixed: u64) -> Self {
        // Wide, so that a demand past 2^64 is refused and not wrapped around.
        let needed = u128::from(guests) * u128::from(per_guest) + u128::from(fixed);
        (self.per_guest, self.fixed) = (per_guest, fixed);
        self.needed = u64::try_from(needed).unwrap_or(u64::MAX);
        self.fits = needed <= u128::from(self.left());
        self
    }

    pub(super) fn promise(mut self) -> Self {
        self.overcommittable = true;
        self
    }

    pub(super) fn remedy(mut self, hint: impl FnOnce(u64) -> String) -> Self {
        self.hint = (!self.fits).then(|| hint(self.needed));
        self
    }

    /// What guests and brood may use: `available - reserve`.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.available.saturating_sub(self.reserve)
    }

    /// How many guests fit under this limit alone.
    #[must_use]
    pub(crate) fn max_guests(&self) -> u64 {
        match self.left().checked_sub(self.fixed) {
            None => 0,
            Some(left) => left.checked_div(self.per_guest).unwrap_or(u64::MAX),
        }
    }
}

/// A demand held against every limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Guests that were asked for.
    pub guests: u64,
    /// Every limit that was looked at: machines and pids first, then files, then memory.
    pub limits: Vec<AdmissionLimit>,
}

/// Why a restore is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A limit of the host is too low.
    #[error("cannot restore {guests} {}: {}", plural(*guests), .limit.shortfall(*max_guests))]
    DoesNotFit {
        /// Guests that were asked for.
        guests: u64,
        /// The limit that lets the fewest guests in.
        limit: Box<AdmissionLimit>,
        /// How many guests all limits together let in.
        max_guests: u64,
    },
}

impl Error {
    /// What to change.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        let Self::DoesNotFit { limit, .. } = self;
        limit.hint.as_deref()
    }
}

fn plural(guests: u64) -> &'static str {
    if guests == 1 { "guest" } else { "guests" }
}

impl AdmissionLimit {
    /// Available, needed and what to do, in one line.
    fn shortfall(&self, max_guests: u64) -> String {
        let Self { name, unit, .. } = self;
        let left = unit.show(self.left());
        let needed = unit.show(self.needed);
        let each = match (self.per_guest, unit) {
            (0, _) => String::new(),
            (n, Unit::Bytes) => format!(" ({} each)", unit.show(n)),
            (n, _) => format!(" ({n} each)"),
        };
        let whom = if self.per_guest == 0 {
            "brood"
        } else {
            "guests"
        };
        let fewer = match max_guests {
            0 => "; as it is, no guest fits".to_owned(),
            n => format!(", or restore at most {n} {}", plural(n)),
        };
        let hint = self.hint.as_deref().unwrap_or_default();
        if let Some((limit, existing)) = self.set {
            let exist = if existing == 1 { "exists" } else { "exist" };
            return format!("{name} is {limit} and {existing} {exist}; {hint}{fewer}");
        }
        format!("{name} leaves {left} for {whom}{each} and {needed} are needed; {hint}{fewer}")
    }
}

impl Verdict {
    pub(super) fn new(guests: u64, limits: Vec<AdmissionLimit>) -> Self {
        Self { guests, limits }
    }

    /// Whether the demand fits under every limit.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.limits.iter().all(|limit| limit.fits)
    }

    /// How many guests would fit in place of those asked for.
    #[must_use]
    pub(crate) fn max_guests(&self) -> u64 {
        self.binding(false)
            .map_or(u64::MAX, AdmissionLimit::max_guests)
    }

    /// The limit that lets the fewest guests in. With `overcommit`, limits on memory that guests
    /// may come to use are passed over.
    #[must_use]
    pub(crate) fn binding(&self, overcommit: bool) -> Option<&AdmissionLimit> {
        self.limits
            .iter()
            .filter(|limit| !(overcommit && limit.overcommittable))
            .min_by_key(|limit| (limit.max_guests(), limit.fits))
    }

    /// Passes or names the limit that binds first. With `overcommit`, memory that guests may come
    /// to use is not looked at; pids, files and the kernel's commit limit always are.
    ///
    /// # Errors
    ///
    /// [`Error::DoesNotFit`].
    pub fn check(&self, overcommit: bool) -> Result<(), Error> {
        match self.binding(overcommit) {
            Some(limit) if !limit.fits => Err(Error::DoesNotFit {
                guests: self.guests,
                limit: Box::new(limit.clone()),
                max_guests: limit.max_guests(),
            }),
            _ => Ok(()),
        }
    }

    /// What overcommitting this demand's memory risks, or none if the memory is there.
    #[must_use]
    pub fn memory_risk(&self) -> Option<String> {
        let limit = self
            .limits
            .iter()
            .filter(|limit| limit.overcommittable && !limit.fits)
            .min_by_key(|limit| limit.max_guests())?;
        let short = limit.needed.saturating_sub(limit.left());
        let who = if limit.name.starts_with('/') {
            "of this control group"
        } else {
            "on this host"
        };
        Some(format!(
            "if every guest comes to use what it is allowed, {} are needed and {} leaves {}: {} short; \
             then the kernel kills guests or other processes {who} to free memory. At most {} guests are safe",
            Bytes(limit.needed),
            limit.name,
            Bytes(limit.left()),
            Bytes(short),
            limit.max_guests(),
        ))
    }
}
