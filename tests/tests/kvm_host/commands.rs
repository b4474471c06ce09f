//! Commands on a Linux of the KVM engine that need a host of their own: a `checkpoint make` that is
//! killed, and a console that somebody types on.

use std::path::Path;

use crate::{after, run_with};

#[test]
fn a_killed_make_leaves_nothing_and_a_console_is_typed_on() {
    let program = Path::new("/usr/bin/script");
    if !program.is_file() {
        return brood_tests::skip("no script(1)");
    }
    let files = [(program, "/usr/bin/script")];
    let image = ["--minimal", "tiny"];
    let Some(ran) = run_with(&["--memory", "3G"], COMMANDS, &image, &files) else {
        return;
    };
    for point in ["boot", "ready", "warm", "seal"] {
        assert_eq!(after(&ran, &format!("left-{point}")), "", "{}", ran.stdout);
    }
    assert_eq!(after(&ran, "alive"), "it runs on");
    let said = |line: &str| ran.stdout.lines().any(|said| said == line);
    for line in ["console 0", "logged 1", "left 0"] {
        assert!(said(line), "{line}: {}\n{}", ran.stdout, ran.stderr);
    }
}

/// Commands that are killed, with all that a guest can have: a disk of its own and a network device.
const COMMANDS: &str = r##"
head -c 1048576 /dev/urandom >/data.img
slow='mkdir -p /etc/brood/suspending.d; cd /etc/brood/suspending.d
    printf "#!/bin/sh\nsleep 4711\n" >slow; chmod +x slow'
# In the place of the shell that calls it.
make() {
    exec /brood checkpoint make tiny /ckp/made --memory 96M --timeout 10m --net tap \
        --disk reflink-or-copy:/data.img "$@"
}
# What there is of guests: files, disks, devices of the network and processes.
traces() {
    for folder in /state/run /ckp /brood-disks /ckp/brood-disks; do
        [ ! -e $folder ] || ls $folder
    done
    ls /sys/class/net | grep brood || true
    pidof brood || true
}
killed() {
    word=$1 said=$2
    shift 2
    make "$@" 2>/tmp/said &
    pid=$!
    until grep -q "$said" /tmp/said; do sleep 0.1; done
    kill -9 $pid
    wait $pid || true
    # The next command finds what is left.
    /brood list >&2
    printf 'left-%s "%s"\n' $word "$(traces | tr '\n' ' ')"
}
killed boot booting
killed ready 'has answered' --ready false
killed warm 'has answered' --warm 'sleep 4711'
killed seal sealing --warm "$slow"
(make) >&2
/brood restore /ckp/made -n 1 --prefix c >&2
mkfifo /tmp/keys
script -q -e -f -c '/brood console c-1' /tmp/typed </tmp/keys >/dev/null 2>&1 &
console=$!
exec 3>/tmp/keys
touch /tmp/typed
says() { until grep -q "$1" /tmp/typed; do sleep 0.1; done; }
says connected
printf '\n' >&3
says '#'
# More than the guest's port has room for.
printf 'echo $((40+2)) of %0200d\n' 7 >&3
says '^42 of 0*7'
printf '\035' >&3
code=0
wait $console || code=$?
echo console $code
value alive c-1 echo it runs on
echo logged $(/brood logs c-1 | grep -c '^42 of 0*7')
/brood destroy --all >&2
printf 'left %s\n' "$(ls /state/run | wc -l)"
"##;
