//! Disks and network of Linux guests of the KVM engine.

use std::path::Path;

use brood_tests::{array, guest_program, passt, text, whole, write_layout};

use crate::{after, run_with};

#[test]
fn a_linux_has_disks_on_the_kvm_engine() {
    let Some(program) = guest_program() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    write_layout(&layout);
    let layout = layout.to_str().expect("plain letters");
    let programs = [
        (&*program, "/test-guest"),
        (Path::new("/usr/sbin/mke2fs"), "/sbin/mke2fs"),
    ];
    let image = ["--oci-layout", layout, "disks"];
    let Some(ran) = run_with(&["--memory", "3G"], DISKS, &image, &programs) else {
        return;
    };
    let inspected = after(&ran, "checkpoint");
    assert_eq!(inspected["linux"]["root"], true);
    assert_eq!(inspected["linux"]["disk"], 256 << 20);
    let devices: Vec<_> = array(&inspected["disks"])
        .iter()
        .map(|disk| text(&disk["device"]))
        .collect();
    assert_eq!(devices, ["root", "disk"]);
    for n in [1, 2] {
        assert_eq!(after(&ran, &format!("root-{n}")), "of the image");
        assert_eq!(after(&ran, &format!("mine-{n}")), format!("of-a-{n}"));
    }
    let shown = after(&ran, "shown");
    assert!(
        text(&shown["disk"]).starts_with("reflink-or-copy:/ckp/"),
        "{shown}"
    );
    assert!(
        text(&shown["disk_path"]).starts_with("/ckp/brood-disks/"),
        "{shown}"
    );
    // What is written lies in the file of this host, and what is discarded does not any more.
    let [before, with, freed] = ["before", "with", "freed"].map(|word| whole(&after(&ran, word)));
    assert!(with >= before + (30 << 10), "{before} {with} {freed}");
    assert!(freed <= before + (8 << 10), "{before} {with} {freed}");
    // A database that is written all the time and a stream go through suspends with memory and disk.
    for word in ["delta", "full"] {
        assert_eq!(after(&ran, &format!("{word}-mine")), "of-a-1");
        let heard = [1, 2].map(|n| {
            let lines = after(&ran, &format!("{word}-stream-{n}"));
            text(&lines).parse::<u64>().unwrap()
        });
        assert!(heard[1] > heard[0] && heard[0] > 0, "{heard:?}");
    }
    assert_eq!(after(&ran, "claimed"), "of the image");
    let said = |line: &str| ran.stdout.lines().any(|said| said == line);
    assert!(
        said("refused 1") && said("disks 0") && said("left 0"),
        "{}",
        ran.stdout
    );
    assert!(ran.stderr.contains("have a disk"), "{}", ran.stderr);
}

/// Guests with a root file system that they share, and a disk that each has to itself.
const DISKS: &str = r#"
# Busybox's would be found first.
rm -f /bin/mke2fs
/brood checkpoint make disks /ckp/disks --memory 128M --root disk --disk 256M >&2
say checkpoint checkpoint inspect /ckp/disks
/brood restore /ckp/disks -n 2 --prefix a >&2
for n in 1 2; do
    value root-$n a-$n cat /srv/of-image
    in_guest a-$n "echo of-a-$n >/srv/mine; sync"
done
for n in 1 2; do value mine-$n a-$n cat /srv/mine; done
say shown show a-1
file=$(/brood show a-2 --json | sed 's/.*"disk_path":"\([^"]*\)".*/\1/')
used() { printf '%s ' "$1"; du -k "$file" | cut -f 1; }
used before
in_guest a-2 'dd if=/dev/urandom of=/srv/big bs=1M count=40 2>/dev/null; sync'
used with
in_guest a-2 'rm /srv/big; sync; /usr/lib/brood/busybox fstrim /usr/lib/brood/disk; sync'
used freed
/brood cp /test-guest a-1:/srv/test-guest >&2
in_guest a-1 '/srv/test-guest write /srv/db </dev/null >/srv/log 2>&1 &'
in_guest a-1 'b=/usr/lib/brood/busybox; $b ip link set lo up
    ($b sleep 100000 | $b nc -l -p 7 >/run/heard) </dev/null >/dev/null 2>&1 &
    (n=0; while :; do n=$((n + 1)); echo $n; $b sleep 0.2; done) 2>/dev/null </dev/null |
    $b sh -c "until $b nc 127.0.0.1 7; do $b sleep 0.1; done" >/dev/null 2>&1 &'
# The database is what its program knows of it, and each line of the stream comes once.
goes_on() {
    in_guest $2 '/srv/test-guest look /srv/db'
    for n in 1 2; do
        value $1-stream-$n $2 'b=/usr/lib/brood/busybox; was=$($b wc -l </run/heard)
            while [ $($b wc -l </run/heard) = $was ]; do $b sleep 0.1; done
            $b awk "NR != \$1 { exit 1 } END { print NR }" /run/heard'
    done
    value $1-mine $2 cat /srv/mine
}
in_guest a-1 '/srv/test-guest look /srv/db'
/brood suspend a-1 /ckp/delta --delta >&2
/brood restore /ckp/delta -n 1 --prefix b >&2
goes_on delta b-1
/brood suspend b-1 /ckp/full >&2
/brood checkpoint verify /ckp/full >&2
/brood restore /ckp/full -n 1 --prefix c >&2
goes_on full c-1
refused=0
/brood restore /ckp/full -n 1 --disk none >&2 || refused=$?
echo refused $refused
/brood pool create web /ckp/disks --hot 1 --max 2 >&2
claim=$(/brood pool claim web --json | sed 's/.*"guest":"\([^"]*\)".*/\1/')
value claimed $claim cat /srv/of-image
/brood pool remove web --force >&2
/brood destroy --all >&2
echo disks $(ls /ckp/brood-disks | wc -l)
printf 'left %s\n' "$(ls /state/run | wc -l)"
"#;

#[test]
fn disks_of_a_linux_share_blocks_where_the_file_system_can() {
    let tools = ["mkfs.xfs", "mke2fs"].map(|name| format!("/usr/sbin/{name}"));
    if let Some(missing) = tools.iter().find(|tool| !Path::new(tool).is_file()) {
        return brood_tests::skip(&format!("no {missing}"));
    }
    let programs = [
        (Path::new(&tools[0]), "/sbin/mkfs.xfs"),
        (Path::new(&tools[1]), "/sbin/mke2fs"),
    ];
    let options = ["--memory", "3G", "--module", "libcrc32c", "--module", "xfs"];
    let options = [&options[..], &["--module", "loop"]].concat();
    let image = ["--minimal", "tiny"];
    let Some(ran) = run_with(&options, REFLINKS, &image, &programs) else {
        return;
    };
    let shown = after(&ran, "shown");
    let disk = text(&shown["disk"]);
    assert!(disk.starts_with("reflink:/ckp/xfs/"), "{disk}");
    for n in 1..=3 {
        assert_eq!(after(&ran, &format!("mine-{n}")), format!("of-a-{n}"));
    }
    assert_eq!(after(&ran, "mine-of-clone"), "of-a-1");
    let sums = ["sum", "sum-of-clone"].map(|word| after(&ran, word));
    assert_eq!(sums[0], sums[1]);
    // Each disk has 30 MB in it, which are there once. A delta has its memory besides.
    let used = |word: &str| whole(&after(&ran, word));
    let [before, with, delta, clone] = ["used", "with", "delta", "clone"].map(used);
    assert!(before > 28 << 10, "{before}");
    assert!(with < before + (8 << 10), "{before} {with}");
    assert!(clone < delta + (8 << 10), "{delta} {clone}");
    let said = |line: &str| ran.stdout.lines().any(|said| said == line);
    assert!(said("disks 0") && said("left 0"), "{}", ran.stdout);
}

/// Guests with disks on XFS.
const REFLINKS: &str = r#"
# Busybox's would be found first.
rm -f /bin/mke2fs
truncate -s 400M /xfs.img
/sbin/mkfs.xfs -q /xfs.img
mkdir /ckp/xfs
mount -t xfs -o loop /xfs.img /ckp/xfs
used() { sync; printf '%s ' $1; df -k /ckp/xfs | awk 'END { print $(NF - 3) }'; }
/brood checkpoint make tiny /ckp/xfs/x --memory 96M --disk 64M     --warm 'head -c 30000000 /dev/urandom >/data/big; sync' >&2
used used
/brood restore /ckp/xfs/x -n 3 --prefix a >&2
say shown show a-1
for n in 1 2 3; do in_guest a-$n "echo of-a-$n >/data/mine; sync"; done
for n in 1 2 3; do value mine-$n a-$n cat /data/mine; done
value sum a-2 'md5sum </data/big'
used with
/brood suspend a-1 /ckp/xfs/d --delta >&2
used delta
/brood restore /ckp/xfs/d -n 1 --prefix d >&2
value mine-of-clone d-1 cat /data/mine
value sum-of-clone d-1 'md5sum </data/big'
used clone
/brood destroy --all >&2
echo disks $(ls /ckp/xfs/brood-disks | wc -l)
printf 'left %s
' "$(ls /state/run | wc -l)"
"#;

#[test]
fn a_linux_has_a_network_on_the_kvm_engine() {
    let Some(passt) = passt() else {
        return;
    };
    let programs = [(&*passt, "/bin/passt")];
    let image = ["--minimal", "tiny"];
    let script = format!("{OWN_ROOT}{NETWORK}");
    let Some(ran) = run_with(&["--memory", "3G"], &script, &image, &programs) else {
        return;
    };
    assert_eq!(after(&ran, "checkpoint")["linux"]["network"], "user");
    for guest in ["a-1", "a-2", "d-1"] {
        assert_eq!(after(&ran, &format!("host-{guest}")), "from the host");
    }
    for n in [1, 2] {
        let shown = after(&ran, &format!("shown-{n}"));
        assert_eq!(after(&ran, &format!("mac-{n}")), shown["mac"]);
        assert_eq!(shown["published"][0]["port"], 9000 + n, "{shown}");
        // The address that both have is each one's own.
        assert_eq!(after(&ran, &format!("itself-{n}")), format!("I am a-{n}"));
        assert_eq!(
            after(&ran, &format!("published-{n}")),
            format!("I am a-{n}")
        );
    }
    // More than the host's socket takes at once.
    for way in ["down", "up"] {
        assert_eq!(after(&ran, way), "4194304");
    }
    assert_eq!(after(&ran, "cut-off"), "nothing");
    assert_eq!(after(&ran, "plain"), "lo");
    let said = |line: &str| ran.stdout.lines().any(|said| said == line);
    for line in ["taken 1", "no-card 1", "networks 0", "left 0"] {
        assert!(said(line), "{line}: {}", ran.stdout);
    }
    for why in ["publish port 9001", "no network card"] {
        assert!(ran.stderr.contains(why), "{why}: {}", ran.stderr);
    }
}

#[test]
fn a_linux_has_a_tap_on_the_kvm_engine() {
    let image = ["--minimal", "tiny"];
    let Some(ran) = run_with(&["--memory", "3G"], TAP, &image, &[]) else {
        return;
    };
    assert_eq!(after(&ran, "checkpoint")["linux"]["network"], "tap");
    let addresses = [1, 2].map(|n| {
        let tap = &after(&ran, &format!("shown-{n}"))["tap"];
        assert!(text(&tap["name"]).starts_with("brood"), "{tap}");
        text(&tap["address"]).to_owned()
    });
    assert_ne!(addresses[0], addresses[1]);
    for n in [1, 2] {
        assert_eq!(after(&ran, &format!("host-a-{n}")), "from the host");
        assert_eq!(after(&ran, &format!("direct-{n}")), format!("I am a-{n}"));
        // The address that both have is each one's own, also where the host passes packets on.
        for to in ["inner", "other"] {
            let expected = match to {
                "inner" => format!("I am a-{n}"),
                _ => "nothing".to_owned(),
            };
            assert_eq!(after(&ran, &format!("{to}-{n}")), expected);
        }
    }
    for way in ["down", "up"] {
        assert_eq!(after(&ran, way), "4194304");
    }
    assert_eq!(after(&ran, "claimed"), "from the host");
    assert_eq!(after(&ran, "user-card"), "nothing");
    // A stream of the guest's goes through a suspend: nobody has taken its tap meanwhile.
    let heard = [1, 2].map(|n| whole(&after(&ran, &format!("stream-{n}"))));
    assert!(heard[1] > heard[0] && heard[0] > 0, "{heard:?}");
    let said = |line: &str| ran.stdout.lines().any(|said| said == line);
    for line in ["published 1", "no-right 1", "devices 0", "left 0"] {
        assert!(said(line), "{line}: {}\n{}", ran.stdout, ran.stderr);
    }
    for why in ["--publish is for --net user", "capability CAP_NET_ADMIN"] {
        assert!(ran.stderr.contains(why), "{why}: {}", ran.stderr);
    }
}

/// Guests that have a network device of the host each.
const TAP: &str = r#"
/brood checkpoint make tiny /ckp/tap --memory 128M --net tap >&2
say checkpoint checkpoint inspect /ckp/tap
nc -ll -p 8000 -e echo from the host &
nc -ll -p 8001 -e head -c 4194304 /dev/zero &
nc -ll -p 8002 -e sh -c 'head -c 4194304 | wc -c' &
/brood restore /ckp/tap -n 2 --prefix a >&2
echo 1 >/proc/sys/net/ipv4/ip_forward
address() { /brood show $1 --json | sed 's/.*"address":"\([^"]*\)".*/\1/'; }
fetch='nc -w 60 10.0.2.2 8000 </dev/null'
for n in 1 2; do
    say shown-$n show a-$n
    value host-a-$n a-$n "$fetch"
    in_guest a-$n "nc -ll -p 7 -e echo I am a-$n >/dev/null 2>&1 </dev/null &"
    value inner-$n a-$n 'until nc 10.0.2.15 7 </dev/null 2>/dev/null; do sleep 0.1; done'
    printf 'direct-%s "%s"\n' $n "$(nc -w 60 $(address a-$n) 7 </dev/null)"
done
for n in 1 2; do
    value other-$n a-$n "nc -w 5 $(address a-$((3 - n))) 7 </dev/null 2>/dev/null || echo nothing"
done
value down a-1 'nc 10.0.2.2 8001 </dev/null | wc -c'
value up a-1 'head -c 4194304 /dev/zero | nc 10.0.2.2 8002'
sleep 100000 | nc -l -p 8003 >/tmp/heard &
in_guest a-1 '(n=0; while :; do n=$((n + 1)); echo $n; sleep 0.2; done 2>/dev/null |
    sh -c "until nc 10.0.2.2 8003; do sleep 0.1; done") >/dev/null 2>&1 </dev/null &'
# Each line comes once, and in its place.
goes_on() {
    was=$(wc -l </tmp/heard)
    while [ $(wc -l </tmp/heard) = $was ]; do sleep 0.1; done
    printf '%s ' $1
    awk 'NR != $1 { exit 1 } END { print NR }' /tmp/heard
}
goes_on stream-1
/brood suspend a-1 /ckp/delta --delta >&2
/brood restore /ckp/delta -n 1 --prefix d >&2
goes_on stream-2
/brood pool create web /ckp/tap --hot 1 --max 2 --net tap >&2
claim=$(/brood pool claim web --json | sed 's/.*"guest":"\([^"]*\)".*/\1/')
value claimed $claim "$fetch"
/brood pool remove web --force >&2
/brood restore /ckp/tap -n 1 --prefix n --net none >&2
value user-card n-1 "nc -w 3 10.0.2.2 8000 </dev/null 2>/dev/null || echo nothing"
fails() { word=$1; shift; code=0; "$@" >&2 || code=$?; echo $word $code; }
fails published /brood restore /ckp/tap -n 1 --prefix x --publish 9001:7
fails no-right unshare -U -r /brood restore /ckp/tap -n 1 --prefix y
# A command that is killed leaves no device behind.
/brood restore /ckp/tap -n 20 --prefix k >&2 &
killed=$!
until [ -e /sys/class/net/brood3 ]; do sleep 0.1; done
kill -9 $killed
wait $killed || true
/brood destroy --all >&2
# Each ends with its guest.
while ls /sys/class/net | grep -q brood; do sleep 0.1; done
echo devices 0
printf 'left %s\n' "$(ls /state/run | wc -l)"
"#;

/// A host whose root is no initramfs: passt changes its root, which that cannot be.
const OWN_ROOT: &str = r#"
if [ ! -e /moved ]; then
    mkdir /n
    mount -t tmpfs n /n
    for file in /*; do
        case $file in
            /n | /proc | /sys | /dev | /tmp) mkdir -p "/n$file" ;;
            *) cp -a "$file" /n ;;
        esac
    done
    for folder in proc sys dev tmp; do mount --rbind /$folder /n/$folder; done
    touch /n/moved
    cd /n
    mount --move . /
    exec chroot . /bin/busybox sh /script
fi
echo 'nobody:x:65534:65534::/:/bin/false' >/etc/passwd
"#;

/// Guests with a network card.
const NETWORK: &str = r#"
/brood checkpoint make tiny /ckp/net --memory 128M --net user >&2
/brood checkpoint make tiny /ckp/plain --memory 128M >&2
say checkpoint checkpoint inspect /ckp/net
nc -ll -p 8000 -e echo from the host &
nc -ll -p 8001 -e head -c 4194304 /dev/zero &
nc -ll -p 8002 -e sh -c 'head -c 4194304 | wc -c' &
/brood restore /ckp/net -n 2 --prefix a --publish '900{n}:7' >&2
# Debian 12's passt loses the host's end of a connection whose other end the guest has closed: here
# the guest's stays open.
fetch='[ -e /run/open ] || mkfifo /run/open; nc -w 30 10.0.2.2 8000 <>/run/open'
for n in 1 2; do
    value host-a-$n a-$n "$fetch"
    value mac-$n a-$n cat /sys/class/net/eth0/address
    say shown-$n show a-$n
    in_guest a-$n "nc -ll -p 7 -e echo I am a-$n >/dev/null 2>&1 </dev/null &"
done
for n in 1 2; do
    value itself-$n a-$n 'until nc 10.0.2.15 7 </dev/null; do sleep 0.1; done'
    # It is accepted before the guest is asked.
    said=
    while [ -z "$said" ]; do said=$(nc 127.0.0.1 900$n </dev/null || true); done
    printf 'published-%s "%s"\n' $n "$said"
done
value down a-1 'nc 10.0.2.2 8001 <>/run/open | wc -c'
in_guest a-1 '((head -c 4194304 /dev/zero; sleep 100000) | nc 10.0.2.2 8002 >/run/count) </dev/null >/dev/null 2>&1 &'
value up a-1 'until [ -s /run/count ]; do sleep 0.1; done; cat /run/count'
/brood suspend a-2 /ckp/delta --delta >&2
/brood restore /ckp/delta -n 1 --prefix d >&2
value host-d-1 d-1 "$fetch"
/brood restore /ckp/net -n 1 --prefix n --net none >&2
value cut-off n-1 "nc -w 3 10.0.2.2 8000 </dev/null 2>/dev/null || echo nothing"
/brood restore /ckp/plain -n 1 --prefix p >&2
value plain p-1 ls /sys/class/net
fails() { word=$1; shift; code=0; "$@" >&2 || code=$?; echo $word $code; }
fails taken /brood restore /ckp/net -n 1 --prefix x --publish 9001:7
fails no-card /brood restore /ckp/plain -n 1 --prefix x --net user
/brood destroy --all >&2
# Each ends with its guest.
while pidof passt >/dev/null; do sleep 0.1; done
echo networks 0
printf 'left %s\n' "$(ls /state/run | wc -l)"
"#;
