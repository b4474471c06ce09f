//! Resource limits of a guest's process, as rctl(8) rules.
//!
//! A rule belongs to the process: brood adds it before the process becomes bhyve, it stays through
//! execve(2), and it goes when the process does (`racct_proc_exit()` of sys/kern/kern_racct.c). So
//! there is nothing to remove, whichever process is killed when.

use std::{fmt, str::FromStr};

/// Resources that a rule can deny a guest (`RACCT_DENIABLE` of sys/kern/kern_racct.c), as far as a
/// bhyve process uses them.
const DENIED: [&str; 4] = ["nthr", "openfiles", "pcpu", "vmemoryuse"];
/// Resources that a rule can throttle (`RACCT_DECAYING`).
const THROTTLED: [&str; 4] = ["readbps", "readiops", "writebps", "writeiops"];
/// Resources that are only counted, for rules that send a signal or log.
const COUNTED: [&str; 3] = ["cputime", "memoryuse", "wallclock"];
/// Signals that end a process, or stop it, and that a guest cannot misread.
const SIGNALS: [&str; 3] = ["sigkill", "sigterm", "sigstop"];

/// Rules for each guest, `RESOURCE:ACTION=AMOUNT`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rctl(Vec<String>);

impl Rctl {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rules, without their subject.
    pub(super) fn rules(&self) -> &[String] {
        &self.0
    }
}

impl FromIterator<Self> for Rctl {
    fn from_iter<I: IntoIterator<Item = Self>>(all: I) -> Self {
        Self(all.into_iter().flat_map(|some| some.0).collect())
    }
}

impl fmt::Display for Rctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// Not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule:?} is no limit: {why}")]
pub struct ParseRctlError {
    rule: String,
    why: String,
}

impl FromStr for Rctl {
    type Err = ParseRctlError;

    /// Rules with commas between them, or nothing.
    fn from_str(text: &str) -> Result<Self, ParseRctlError> {
        let rules = text
            .split(',')
            .map(str::trim)
            .filter(|rule| !rule.is_empty());
        let checked = rules.map(|rule| match check(rule) {
            Ok(()) => Ok(rule.to_owned()),
            Err(why) => Err(ParseRctlError {
                rule: rule.to_owned(),
                why,
            }),
        });
        checked.collect::<Result<_, _>>().map(Self)
    }
}

/// Checks a rule, so that a faulty one is an error here and not at each start of a process.
fn check(rule: &str) -> Result<(), String> {
    let form = "write RESOURCE:ACTION=AMOUNT, such as pcpu:deny=100";
    let (resource, rest) = rule.split_once(':').ok_or(form)?;
    let (action, amount) = rest.split_once('=').ok_or(form)?;
    let digits = amount.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T']);
    let whole = digits.parse::<u64>().is_ok_and(|n| n > 0) && amount.len() - digits.len() <= 1;
    if !whole {
        return Err("its amount is a whole number above 0, such as 100 or 64M".to_owned());
    }
    let known = [&DENIED[..], &THROTTLED, &COUNTED].concat();
    if !known.contains(&resource) {
        return Err(format!("the resources are {}", known.join(", ")));
    }
    match action {
        "log" | "devctl" => Ok(()),
        "deny" if DENIED.contains(&resource) => Ok(()),
        "deny" if resource == "memoryuse" => Err(
            "it counts shared pages for each guest, and rctl(8) warns of thrashing; allow less \
             with --private-limit"
                .to_owned(),
        ),
        "deny" => Err(format!("only {} can be denied", DENIED.join(", "))),
        "throttle" if THROTTLED.contains(&resource) => Ok(()),
        "throttle" => Err(format!("only {} can be throttled", THROTTLED.join(", "))),
        signal if SIGNALS.contains(&signal) => Ok(()),
        _ => Err(format!(
            "the actions are deny, throttle, log, devctl, {}",
            SIGNALS.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_shown_alike() {
        let rules: Rctl = "pcpu:deny=50, writebps:throttle=10M,wallclock:sigterm=3600"
            .parse()
            .unwrap();
        assert_eq!(
            rules.to_string(),
            "pcpu:deny=50,writebps:throttle=10M,wallclock:sigterm=3600"
        );
        assert_eq!(rules.rules().len(), 3);
        let none: Rctl = "".parse().unwrap();
        assert!(none.is_empty());
        let both: Rctl = [rules.clone(), none, rules].into_iter().collect();
        assert_eq!(both.rules().len(), 6);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_before() {
        for (rule, why) in [
            ("pcpu", "RESOURCE:ACTION=AMOUNT"),
            ("pcpu:deny", "RESOURCE:ACTION=AMOUNT"),
            ("pcpu:deny=", "whole number"),
            ("pcpu:deny=0", "whole number"),
            ("pcpu:deny=5KK", "whole number"),
            ("pcpu:deny=5/user", "whole number"),
            ("swapuse:log=1", "the resources are"),
            ("cputime:deny=5", "can be denied"),
            ("pcpu:throttle=5", "can be throttled"),
            ("memoryuse:deny=5M", "--private-limit"),
            ("pcpu:forbid=5", "the actions are"),
            ("pcpu:sighup=5", "the actions are"),
            ("$(reboot):deny=5", "the resources are"),
        ] {
            let error = rule.parse::<Rctl>().unwrap_err().to_string();
            assert!(error.contains(why), "{rule}: {error}");
        }
    }
}
