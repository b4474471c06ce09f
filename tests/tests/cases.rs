//! Cases: small programs in `tests/cases`. Each tries one thing with the binary that `BROOD` names.
//! It exits with 0 when the product behaves right, and with 2 when this machine cannot try it.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use brood_tests::{brood, skip, without_kvm};

/// Runs one program of `tests/cases`.
#[track_caller]
fn case(name: &str) {
    if without_kvm() {
        return;
    }
    let program = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("cases")
        .join(name);
    let output = Command::new("bash")
        .arg(&program)
        .env("BROOD", brood())
        .env("BROOD_CONFIG", "/dev/null")
        .output()
        .expect("bash runs");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    match output.status.code() {
        Some(0) => {
            if let Some(line) = said.lines().find(|line| line.starts_with("skipped: ")) {
                skip(line.trim_start_matches("skipped: "));
            }
        }
        Some(2) => skip(said.lines().last().unwrap_or("it cannot be tried here")),
        _ => panic!("{name}: {}\n{said}", output.status),
    }
}

/// One test for each program, and the list of them.
macro_rules! cases {
    ($($test:ident = $program:literal,)*) => {
        $(#[test]
        fn $test() {
            case($program);
        })*

        const PROGRAMS: &[&str] = &[$($program),*];
    };
}

// In the order of their names, a line each.
cases! {
    attack_01_silent_guest_holds_all_pools = "attack/01-silent-guest-holds-all-pools.sh",
    attack_02_silent_guest_wedges_daemon = "attack/02-silent-guest-wedges-daemon.sh",
    attack_05_idle_connections_starve_daemon = "attack/05-idle-connections-starve-daemon.sh",
    attack_07_claim_tokens_are_world_readable = "attack/07-claim-tokens-are-world-readable.sh",
    attack_10_full_disk_stops_destroy = "attack/10-full-disk-stops-destroy.sh",
    attack_14_one_lost_bundle_stops_all_sweeping = "attack/14-one-lost-bundle-stops-all-sweeping.sh",
    attack_15_stopped_command_holds_all_pools = "attack/15-stopped-command-holds-all-pools.sh",
    attack_16_guest_process_is_not_confined = "attack/16-guest-process-is-not-confined.sh",
    attack_17_claim_timeout_is_not_kept = "attack/17-claim-timeout-is-not-kept.sh",
    attack_18_orphaned_silent_restore_is_never_ended = "attack/18-orphaned-silent-restore-is-never-ended.sh",
    attack_20_guest_holds_nursery_pipe = "attack/20-guest-holds-nursery-pipe.sh",
    attack_21_starved_daemon_makes_living_guests_dead = "attack/21-starved-daemon-makes-living-guests-dead.sh",
    bugs_01_hardlink_makes_each_guest_read_the_checkpoint = "bugs/01-hardlink-makes-each-guest-read-the-checkpoint.sh",
    bugs_02_full_stdout_loses_the_token = "bugs/02-full-stdout-loses-the-token.sh",
    bugs_03_umask_077_checkpoint_readable_by_all = "bugs/03-umask-077-checkpoint-readable-by-all.sh",
    bugs_04_remove_parent_of_resting_claim = "bugs/04-remove-parent-of-resting-claim.sh",
    bugs_05_remove_parent_of_delta_elsewhere = "bugs/05-remove-parent-of-delta-elsewhere.sh",
    bugs_06_destroy_all_stops_at_one_that_cannot_be_killed = "bugs/06-destroy-all-stops-at-one-that-cannot-be-killed.sh",
    bugs_08_lost_socket_told_as_dead_process = "bugs/08-lost-socket-told-as-dead-process.sh",
    bugs_09_touch_ends_all_guests = "bugs/09-touch-ends-all-guests.sh",
    bugs_11_list_in_another_pid_namespace_loses_guests = "bugs/11-list-in-another-pid-namespace-loses-guests.sh",
    bugs_12_broken_stderr_panics = "bugs/12-broken-stderr-panics.sh",
    bugs_13_ctrl_c_in_a_suspend = "bugs/13-ctrl-c-in-a-suspend.sh",
    bugs_14_killed_for_want_of_memory_has_no_reason = "bugs/14-killed-for-want-of-memory-has-no-reason.sh",
    bugs_17_import_of_a_guest_with_uefi_variables = "bugs/17-import-of-a-guest-with-uefi-variables.sh",
    bugs_19_one_entry_that_cannot_be_killed_stops_its_pool = "bugs/19-one-entry-that-cannot-be-killed-stops-its-pool.sh",
    bugs_20_daemon_whose_log_cannot_be_written = "bugs/20-daemon-whose-log-cannot-be-written.sh",
    bugs_22_daemon_out_of_descriptors_makes_guests_dead = "bugs/22-daemon-out-of-descriptors-makes-guests-dead.sh",
}

#[test]
fn every_program_is_a_test() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut found = BTreeSet::new();
    for folder in ["attack", "bugs"] {
        for entry in fs::read_dir(dir.join(folder)).expect("a folder of cases") {
            let name = entry.expect("an entry").file_name();
            let name = name.to_str().expect("a name in UTF-8");
            if name.starts_with(|c: char| c.is_ascii_digit()) {
                found.insert(format!("{folder}/{name}"));
            }
        }
    }
    let named: BTreeSet<String> = PROGRAMS.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, named);
}
