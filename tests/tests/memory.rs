//! Guest memory of every size, and every edge of it.

use brood_tests::{HEAP, Home, USER, Words, whole};

/// Guests of `size` restore, and see the end and the whole of their memory as the file has it.
fn works(home: &Home, size: &str, bytes: u64) {
    let demo = home.demo(&format!("of-{size}"), size);
    let words = demo.words();
    assert_eq!(words.size(), bytes);
    let inspected = home.json(&["checkpoint", "inspect", &demo.path]);
    assert_eq!(inspected["memory"]["size"], bytes);
    home.restore(&demo, 2, size);
    let (one, other) = (format!("{size}-1"), format!("{size}-2"));
    for address in [0, 0x1000, USER, HEAP, bytes / 2, bytes - 4096, bytes - 8] {
        assert_eq!(
            home.peek(&one, address),
            words.at(address),
            "{size} at {address:#x}"
        );
    }
    refuses(home, &one, &format!("peek {bytes}"), "outside its memory");
    let _ = home.ask(&one, &format!("poke {} 42", bytes - 8));
    assert_eq!(home.peek(&one, bytes - 8), 42);
    assert_eq!(home.peek(&other, bytes - 8), words.at(bytes - 8));
    sums(home, &other, &words, (bytes / 1000) & !7);
    home.destroy_all();
    let _ = home.brood(&["checkpoint", "remove", &demo.path]).ok();
}

fn sums(home: &Home, guest: &str, words: &Words, stride: u64) {
    let length = words.size() - USER;
    let sum = home.ask(guest, &format!("sum {USER} {length} {stride}"));
    assert_eq!(sum["sum"], words.sum(USER, length, stride));
}

#[track_caller]
fn refuses(home: &Home, guest: &str, request: &str, why: &str) {
    let _ = home.brood(&["ask", guest, request]).exits(1).says(&[why]);
}

#[test]
fn small_and_odd_sizes_work() {
    let Some(home) = Home::with_kvm() else { return };
    works(&home, "4M", 4 << 20);
    works(&home, "5M", 5 << 20);
    // One page more than a whole number of memory slots of any size.
    works(&home, "4100K", 4100 << 10);
    works(&home, "7340032", 7 << 20);
    works(&home, "64M", 64 << 20);
}

#[test]
fn a_guest_of_one_gib_works() {
    let Some(home) = Home::with_kvm() else { return };
    works(&home, "1G", 1 << 30);
}

#[test]
fn a_guest_of_three_gib_works() {
    let Some(home) = Home::with_kvm() else { return };
    works(&home, "3G", 3 << 30);
}

#[test]
fn other_sizes_are_refused_and_leave_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let path = home.named("none").path;
    for size in [
        "0", "1M", "4092K", "3145732K", "4G", "1T", "4194305", "5000000",
    ] {
        let _ = home
            .brood(&["checkpoint", "demo", &path, "--memory", size])
            .exits(1)
            .says(&["cannot have", "4 MiB to 3 GiB", "whole pages"]);
    }
    for size in ["", "-1", "many", "4MM", "1.5G", "99999999999999999999G"] {
        let _ = home
            .brood(&["checkpoint", "demo", &path, "--memory", size])
            .exits(2);
    }
    assert_eq!(home.checkpoints().read_dir().unwrap().count(), 0);
}

#[test]
fn every_edge_of_memory_is_where_it_should_be() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "6M");
    let words = demo.words();
    let end = words.size();
    home.restore(&demo, 2, "m");
    for outside in [
        end,
        end - 7,
        end - 1,
        end + 4096,
        1 << 32,
        3 << 30,
        u64::MAX - 7,
        u64::MAX,
    ] {
        refuses(
            &home,
            "m-1",
            &format!("peek {outside}"),
            "outside its memory",
        );
        refuses(
            &home,
            "m-1",
            &format!("poke {outside} 1"),
            "outside its memory",
        );
    }
    // Below its first page for others the guest lives itself: to be read, not to be written.
    for own in [0, 0x1000, 0x8000, USER - 8, USER - 1] {
        let _ = home.peek("m-1", own);
        refuses(&home, "m-1", &format!("poke {own} 1"), "below 0x10000");
    }
    for range in [
        format!("sum {} 16", end - 8),
        format!("sum 0 {} 8", end + 8),
    ] {
        refuses(&home, "m-1", &range, "outside its memory");
    }
    assert_eq!(
        home.ask("m-1", &format!("sum {end} 0"))["sum"],
        "0000000000000000"
    );
    // The guest has lived through all that.
    assert_eq!(home.peek("m-1", end - 8), words.at(end - 8));
}

#[test]
fn words_across_pages_are_whole() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "6M");
    let words = demo.words();
    home.restore(&demo, 1, "m");
    // Page borders of every kind of address: within and across where a memory slot may begin,
    // first touched by reading or by writing.
    let borders = (1..=6).map(|n| n * 0x10_0000 - 0x1000);
    for (n, border) in (1_u64..).zip(borders.chain([0x11_0000, 0x20_0000, 0x28_0000, 0x40_0000])) {
        let across = border - 3;
        if n % 2 == 0 {
            assert_eq!(home.peek("m-1", across), words.at(across), "{across:#x}");
        }
        let value = 0x0102_0304_0506_0708 * n;
        let _ = home.ask("m-1", &format!("poke {across} {value}"));
        assert_eq!(home.peek("m-1", across), value, "{across:#x}");
        // Bytes around it are the file's.
        assert_eq!(home.peek("m-1", across - 8), words.at(across - 8));
        assert_eq!(home.peek("m-1", across + 8), words.at(across + 8));
    }
}

#[test]
fn a_walk_over_all_pages_of_a_large_guest_finds_them_in_place() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "256M");
    let words = demo.words();
    home.restore(&demo, 2, "m");
    sums(&home, "m-1", &words, 4096);
    // From the end to the beginning, in leaps: memory comes as it is asked for.
    for n in (1..=64).rev() {
        let address = n * (4 << 20) - 8 * n;
        assert_eq!(home.peek("m-2", address), words.at(address), "{address:#x}");
    }
    sums(&home, "m-2", &words, 4096 + 8);
}

#[test]
fn all_pages_of_the_heap_can_be_dirtied() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 2, "m");
    let pages = (demo.words().size() - HEAP) / 4096;
    refuses(&home, "m-1", &format!("dirty {}", pages + 1), "fewer pages");
    let answer = home.ask("m-1", &format!("dirty {pages}"));
    assert_eq!(
        (whole(&answer["pages"]), whole(&answer["address"])),
        (pages, HEAP)
    );
    let (private, _) = home.private_and_shared("m-1");
    assert!(private >= pages * 4096, "{private}");
    // Round and round: no page is added.
    let _ = home.ask("m-1", &format!("dirty {pages}"));
    let _ = home.ask("m-1", "dirty 5");
    assert_eq!(home.private_and_shared("m-1").0, private);
    // The memory of its sibling is as it was.
    sums(&home, "m-2", &demo.words(), 4096);
}
