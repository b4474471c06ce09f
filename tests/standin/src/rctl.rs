//! rctl(8), for rules on single processes (usr.bin/rctl/rctl.c, sys/kern/kern_rctl.c).
//!
//! A rule belongs to the process: execve(2) keeps it, and it goes when the process does
//! (`racct_proc_exit()` of sys/kern/kern_racct.c). The stand-in enforces no rule.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::{
    errno::{EINVAL, EOPNOTSUPP, ESRCH, Errno},
    exit::{EX_SOFTWARE, Exit},
    fault, sysctl,
    world::World,
};

/// What may be denied (`racct_types` of sys/kern/kern_racct.c, `RACCT_DENIABLE`); so may
/// `memoryuse`, which is enforced in another way (`rctl_rule_add()`).
const DENIABLE: [&str; 10] = [
    "coredumpsize",
    "datasize",
    "maxproc",
    "memorylocked",
    "memoryuse",
    "nsemop",
    "nthr",
    "openfiles",
    "pcpu",
    "stacksize",
];
/// As well deniable, with a long name.
const ADDRESSES: &str = "vmemoryuse";
/// What may be throttled (`RACCT_DECAYING`, less `pcpu`).
const DECAYING: [&str; 4] = ["readbps", "readiops", "writebps", "writeiops"];
/// What is not accounted for each process (`RACCT_SLOPPY`), so that no rule can count it for one.
const SLOPPY: [&str; 8] = [
    "msgqqueued",
    "msgqsize",
    "nmsgq",
    "nsem",
    "nshm",
    "pseudoterminals",
    "shmsize",
    "swapuse",
];
/// The others of `resourcenames`.
const COUNTED: [&str; 2] = ["cputime", "wallclock"];
/// Of `actionnames`; signals beside them.
const ACTIONS: [&str; 4] = ["deny", "log", "devctl", "throttle"];
const SIGNALS: [&str; 31] = [
    "sighup",
    "sigint",
    "sigquit",
    "sigill",
    "sigtrap",
    "sigabrt",
    "sigemt",
    "sigfpe",
    "sigkill",
    "sigbus",
    "sigsegv",
    "sigsys",
    "sigpipe",
    "sigalrm",
    "sigterm",
    "sigurg",
    "sigstop",
    "sigtstp",
    "sigchld",
    "sigttin",
    "sigttou",
    "sigio",
    "sigxcpu",
    "sigxfsz",
    "sigvtalrm",
    "sigprof",
    "sigwinch",
    "siginfo",
    "sigusr1",
    "sigusr2",
    "sigthr",
];

/// A rule, and the process that it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rule {
    pid: i32,
    /// Tells a process from a later one with the same id.
    start: String,
    resource: String,
    action: String,
    amount: u64,
}

impl Rule {
    fn text(&self) -> String {
        let Self {
            pid,
            resource,
            action,
            amount,
            ..
        } = self;
        format!("process:{pid}:{resource}:{action}={amount}")
    }
}

/// A rule, or a filter: what is empty fits everything.
#[derive(Debug)]
struct Filter<'a> {
    pid: Option<i32>,
    resource: &'a str,
    action: &'a str,
    amount: Option<u64>,
}

impl Filter<'_> {
    fn fits(&self, rule: &Rule) -> bool {
        self.pid.is_none_or(|pid| pid == rule.pid)
            && (self.resource.is_empty() || self.resource == rule.resource)
            && (self.action.is_empty() || self.action == rule.action)
            && self.amount.is_none_or(|amount| amount == rule.amount)
    }
}

fn usage() -> Exit {
    Exit::saying(
        1,
        "usage: rctl [ -h ] [-a rule | -l filter | -r filter | -u filter | filter]\n",
    )
}

/// Runs the command. Its exit code is how many rules it could not deal with.
pub(crate) fn main(world: &World, arguments: &[String]) -> Result<(), Exit> {
    let (mut what, mut rest) = (None, arguments.iter().peekable());
    while let Some(flags) = rest.next_if(|a| a.len() > 1 && a.starts_with('-')) {
        for flag in flags[1..].chars() {
            match flag {
                'a' | 'l' | 'r' if what.is_none() => what = Some(flag),
                'a' | 'l' | 'r' | 'u' => {
                    let text = "at most one of -a, -l, -r, or -u may be specified";
                    return Err(Exit::errx("rctl", 1, text));
                }
                'h' | 'n' => {}
                _ => return Err(usage()),
            }
        }
    }
    let given: Vec<&str> = rest.map(String::as_str).collect();
    let given = match (what, given.is_empty()) {
        (None, true) => vec!["::"],
        (Some(_), true) => return Err(usage()),
        _ => given,
    };
    // enosys(): each of the kernel's calls gives ENOSYS then.
    let enabled = sysctl::number(world, "kern.racct.enable");
    if enabled.map_err(|e| Exit::broken("read the sysctl values", &e))? == 0 {
        let text = "RACCT/RCTL present, but disabled; enable using kern.racct.enable=1 tunable";
        return Err(Exit::errx("rctl", 1, text));
    }
    let mut failed = 0;
    for rule in given {
        let result = match (what, parse(rule)?) {
            (_, Err(why)) => Err(format!("malformed rule '{rule}': {why}")),
            (Some('a'), Ok(filter)) => add(world, filter)?.map_err(|e| failure("add", rule, e)),
            (Some('r'), Ok(filter)) => {
                remove(world, filter)?.map_err(|e| failure("remove", rule, e))
            }
            (_, Ok(filter)) => show(world, filter)?.map_err(|e| failure("show rules for", rule, e)),
        };
        if let Err(text) = result {
            eprintln!("rctl: {text}");
            failed += 1;
        }
    }
    if failed > 0 {
        return Err(Exit::silent(failed));
    }
    Ok(())
}

fn failure(verb: &str, rule: &str, errno: Errno) -> String {
    let of = if verb.ends_with("for") { "" } else { " rule" };
    format!("failed to {verb}{of} '{rule}': {}", errno.text)
}

/// expand_rule() and rctl_string_to_rule(): what is wrong in words is rctl's, what is wrong by a
/// number the kernel's.
fn parse(rule: &str) -> Result<Result<Result<Filter<'_>, Errno>, String>, Exit> {
    let Some((subject, rest)) = rule.split_once(':') else {
        return Ok(Err("missing subject".to_owned()));
    };
    let (id, rest) = rest.split_once(':').unwrap_or((rest, ""));
    let (resource, rest) = rest.split_once(':').unwrap_or((rest, ""));
    let (rest, per) = rest.split_once('/').unwrap_or((rest, ""));
    let (action, amount) = rest.split_once('=').unwrap_or((rest, ""));
    let amount = match amount {
        "" => None,
        text => match expand(text) {
            Some(amount) => Some(amount),
            None => return Ok(Err(format!("invalid numeric value '{text}'"))),
        },
    };
    if !matches!(subject, "process" | "p" | "") || !matches!(per, "" | "process") {
        let text = "standin: rctl: only rules of processes are modelled\n";
        return Err(Exit::saying(EX_SOFTWARE, text));
    }
    let known = [
        &DENIABLE[..],
        &DECAYING,
        &SLOPPY,
        &COUNTED,
        &[ADDRESSES, ""],
    ]
    .concat();
    let actions = [&ACTIONS[..], &SIGNALS, &[""]].concat();
    let pid = match id {
        "" => None,
        _ if subject.is_empty() => return Ok(Ok(Err(EINVAL))),
        text => match text.parse() {
            Ok(pid) if start(pid).is_some() => Some(pid),
            Ok(_) => return Ok(Ok(Err(ESRCH))),
            Err(_) => return Ok(Ok(Err(EINVAL))),
        },
    };
    if !known.contains(&resource) || !actions.contains(&action) {
        return Ok(Ok(Err(EINVAL)));
    }
    Ok(Ok(Ok(Filter {
        pid,
        resource,
        action,
        amount,
    })))
}

/// expand_number(3).
fn expand(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// When a process started (proc_pid_stat(5), field 22); `None` when there is none, or only its
/// remains.
fn start(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18).unwrap_or_default().to_owned())
}

/// The rules of processes that live.
fn rules(world: &World) -> Result<Vec<Rule>, Exit> {
    let rules: Option<Vec<Rule>> = world
        .load("rctl")
        .map_err(|e| Exit::broken("read the rules", &e))?;
    let mut rules = rules.unwrap_or_default();
    rules.retain(|rule| start(rule.pid).as_deref() == Some(&rule.start));
    Ok(rules)
}

/// Changes the rules.
fn change(world: &World, change: impl FnOnce(&mut Vec<Rule>)) -> Result<(), Exit> {
    let broken = |e: std::io::Error| Exit::broken("write the rules", &e);
    let _guard = world.lock().map_err(broken)?;
    let mut rules = rules(world)?;
    change(&mut rules);
    world.store("rctl", &rules).map_err(broken)
}

type Filtered<'a> = Result<Filter<'a>, Errno>;

/// sys_rctl_add_rule() and rctl_rule_add().
fn add(world: &World, filter: Filtered<'_>) -> Result<Result<(), Errno>, Exit> {
    let filter = match filter {
        Ok(filter) => filter,
        Err(errno) => return Ok(Err(errno)),
    };
    // rctl_rule_fully_specified()
    let (Some(pid), Some(amount)) = (filter.pid, filter.amount) else {
        return Ok(Err(EINVAL));
    };
    let (resource, action) = (filter.resource, filter.action);
    if resource.is_empty() || action.is_empty() {
        return Ok(Err(EINVAL));
    }
    let denies = action == "deny" && !DENIABLE.contains(&resource) && resource != ADDRESSES;
    let throttles = action == "throttle" && !DECAYING.contains(&resource);
    if denies || throttles || SLOPPY.contains(&resource) {
        return Ok(Err(EOPNOTSUPP));
    }
    fault::pass(world, fault::RCTL_ADD)?;
    let rule = Rule {
        pid,
        start: start(pid).unwrap_or_default(),
        resource: resource.to_owned(),
        action: action.to_owned(),
        amount,
    };
    change(world, |rules| {
        rules.retain(|other| {
            let same = (other.pid, &other.resource, &other.action)
                == (rule.pid, &rule.resource, &rule.action);
            // Of those that deny, one differs from another by more than its amount.
            !(same && (rule.action == "deny" || other.amount == rule.amount))
        });
        rules.push(rule);
    })?;
    fault::pass(world, fault::RCTL_ADDED)?;
    Ok(Ok(()))
}

/// rctl_rule_remove()
fn remove(world: &World, filter: Filtered<'_>) -> Result<Result<(), Errno>, Exit> {
    let filter = match filter {
        Ok(filter) => filter,
        Err(errno) => return Ok(Err(errno)),
    };
    let mut found = false;
    change(world, |rules| {
        let before = rules.len();
        rules.retain(|rule| !filter.fits(rule));
        found = rules.len() < before;
    })?;
    Ok(if found { Ok(()) } else { Err(ESRCH) })
}

/// sys_rctl_get_rules() and, of one process, sys_rctl_get_limits().
fn show(world: &World, filter: Filtered<'_>) -> Result<Result<(), Errno>, Exit> {
    let filter = match filter {
        Ok(filter) => filter,
        Err(errno) => return Ok(Err(errno)),
    };
    for rule in rules(world)?.iter().filter(|rule| filter.fits(rule)) {
        println!("{}", rule.text());
    }
    Ok(Ok(()))
}
