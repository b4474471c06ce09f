//! What a later kernel than Debian 12's own does, as a guest's and as its host's: in a clone it learns
//! by the VM generation id that it is one, and reseeds its random generator; and a host's maps the
//! working set of clones ahead.

use brood_tests::{image_builder, later_kernel, text, whole};

use crate::{TINY, after, run_with_image};

#[test]
fn a_later_kernel_knows_its_clones_and_maps_their_working_set() {
    let (Some((_, mut packages)), Some(kernel)) = (image_builder(), later_kernel()) else {
        return;
    };
    let host = kernel.to_str().expect("plain letters").to_owned();
    packages[0] = kernel;
    let image = (&TINY[..], &packages[..]);
    let options = ["--memory", "3G", "--deb", &host];
    let Some(ran) = run_with_image(&options, LATER, image, &[]) else {
        return;
    };
    let number = |word: &str| whole(&after(&ran, word));
    let id = |word: &str| {
        let id = after(&ran, word);
        let bytes = text(&id).split_whitespace();
        let halves = bytes.map(|half| u64::from_str_radix(half.trim_start_matches("0x"), 16));
        let halves: Vec<u64> = halves.collect::<Result<_, _>>().unwrap();
        let [low, high] = halves[..] else {
            panic!("{word}: {id}");
        };
        // As they lie in memory.
        u128::from(low.swap_bytes()) << 64 | u128::from(high.swap_bytes())
    };
    let ids = ["template", "id-1", "id-2", "id-d"].map(id);
    for (n, one) in ids.iter().enumerate() {
        assert!(*one != 0 && !ids[..n].contains(one), "{ids:x?}");
    }
    // It is the one that programs of the clone are told.
    for (word, id) in [("told-1", ids[1]), ("told-2", ids[2])] {
        assert_eq!(text(&after(&ran, word)), format!("{id:032x}"));
    }
    // Each clone's kernel has reseeded once, and the clone's clone once more.
    let reseeded = ["reseeds-1", "reseeds-2", "reseeds-d"].map(number);
    assert_eq!(reseeded, [1, 1, 2]);
    // One that was stopped, or had no virtual machine for a while, is the same guest.
    assert_eq!([id("resumed"), id("unparked")], [ids[1], ids[2]]);
    assert_eq!(["still-1", "still-2"].map(number), [1, 1]);
    // The nursery has learned from the first guest what the last one uses.
    let [first, last] = ["faults-first", "faults-last"].map(number);
    assert!(last > 0 && last * 2 < first, "{first} {last}");
    assert!(ran.stdout.lines().any(|line| line == "left 0"));
}

/// The id is read where the driver reads it; `machine/src/layout.rs` says where.
const LATER: &str = r#"
read='echo $(devmem 0xd0008000 64) $(devmem 0xd0008008 64)'
reseeds='dmesg | grep -c "crng reseeded due to virtual machine fork"'
# The kernel takes the interrupt while it runs on.
settled() { in_guest $1 "n=0; until [ \$($reseeds) -ge $2 ] || [ \$n -gt 300 ]; do sleep 0.1; n=\$((n + 1)); done"; }
/brood checkpoint make tiny /ckp/tiny --memory 160M --warm "$read >/run/template" >&2
/brood restore /ckp/tiny -n 1 --prefix g >&2
/brood restore /ckp/tiny -n 1 --prefix h --park-after 0.5 >&2
value template g-1 cat /run/template
for guest in g-1:1 h-1:2; do
    n=${guest#*:} guest=${guest%:*}
    settled $guest 1
    value id-$n $guest "$read"
    value told-$n $guest cat /run/brood/generation
    value reseeds-$n $guest "$reseeds" | tr -d '"'
done
/brood pause g-1 >&2
/brood resume g-1 >&2
value resumed g-1 "$read"
value still-1 g-1 "$reseeds" | tr -d '"'
pid=$(/brood show h-1 --json | sed 's/.*"pid":\([0-9]*\).*/\1/')
n=0
while ls -l /proc/$pid/fd | grep -q kvm-vm; do
    n=$((n + 1))
    [ $n -lt 240 ] || exit 1
    sleep 0.5
done
value unparked h-1 "$read"
value still-2 h-1 "$reseeds" | tr -d '"'
/brood suspend g-1 /ckp/delta --delta >&2
/brood restore /ckp/delta -n 1 --prefix d >&2
settled d-1 2
value id-d d-1 "$read"
value reseeds-d d-1 "$reseeds" | tr -d '"'
mount -t debugfs none /sys/kernel/debug
faults() {
    pid=$(/brood show $1 --json | sed 's/.*"pid":\([0-9]*\).*/\1/')
    cat /sys/kernel/debug/kvm/$pid-*/pf_taken
}
/brood restore /ckp/tiny -n 8 -c 1 --prefix f >&2
echo faults-first $(faults f-1)
echo faults-last $(faults f-8)
/brood destroy --all >&2
printf 'left %s\n' "$(ls /state/run | wc -l)"
"#;
