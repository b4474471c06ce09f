//! Order of operations in vmm_vnode and in the hook, under any sequence of events.

use brood_tests::vnode_model::{Bug, FILE_PAGES, FailAt, World};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Event {
    Create(usize),
    Attach(usize, Option<FailAt>),
    AttachTooMuch(usize),
    MapGuest(usize, bool),
    UnmapGuest(usize),
    MapHost(usize),
    UnmapHost(usize),
    Guest(usize, usize, Option<u8>),
    Host(usize, usize, Option<u8>),
    OpenForWriting,
    WriteAndClose(usize, u8),
    Destroy(usize),
    Unload,
    Load,
}

fn event() -> impl Strategy<Value = Event> {
    let vm = || 0..4usize;
    let page = || 0..FILE_PAGES;
    let map = || 0..8usize;
    let value = || prop::option::of(100..200u8);
    let fail = prop::option::weighted(
        0.3,
        prop_oneof![
            Just(FailAt::VnodeGet),
            Just(FailAt::VnodeCheck),
            Just(FailAt::BackingAttach)
        ],
    );
    prop_oneof![
        3 => vm().prop_map(Event::Create),
        4 => (vm(), fail).prop_map(|(v, f)| Event::Attach(v, f)),
        1 => vm().prop_map(Event::AttachTooMuch),
        4 => (vm(), prop::bool::weighted(0.1)).prop_map(|(v, w)| Event::MapGuest(v, w)),
        2 => vm().prop_map(Event::UnmapGuest),
        3 => vm().prop_map(Event::MapHost),
        2 => map().prop_map(Event::UnmapHost),
        8 => (vm(), page(), value()).prop_map(|(v, p, x)| Event::Guest(v, p, x)),
        8 => (map(), page(), value()).prop_map(|(m, p, x)| Event::Host(m, p, x)),
        1 => Just(Event::OpenForWriting),
        2 => (page(), 200..255u8).prop_map(|(p, x)| Event::WriteAndClose(p, x)),
        2 => vm().prop_map(Event::Destroy),
        1 => Just(Event::Unload),
        1 => Just(Event::Load),
    ]
}

/// Applies the event, and checks what its outcome must be.
fn apply(world: &mut World, event: &Event, live: &mut usize) -> Result<(), String> {
    match *event {
        Event::Create(vm) => world.create(vm),
        Event::Attach(vm, fail) => {
            let (offset, len) = world.extent(vm);
            *live += usize::from(world.vv_attach(vm, offset, len, fail));
        }
        Event::AttachTooMuch(vm) => {
            if world.vv_attach(vm, 1, FILE_PAGES, None) || world.vv_attach(vm, 0, 0, None) {
                return Err("a range that is not in the file was attached".to_owned());
            }
        }
        Event::MapGuest(vm, wired) => {
            if world.vm_mmap_memseg(vm, wired) && wired {
                return Err("wired memory was mapped".to_owned());
            }
        }
        Event::UnmapGuest(vm) => world.vm_free_memmap(vm),
        Event::MapHost(vm) => world.vmmdev_mmap_single(vm),
        Event::UnmapHost(which) => world.munmap(which),
        Event::Guest(vm, page, value) => world.guest_access(vm, page, value),
        Event::Host(which, page, value) => world.host_access(which, page, value),
        Event::OpenForWriting => {
            if world.open_for_writing() && *live > 0 {
                return Err("a writer got in while a segment lives".to_owned());
            }
        }
        Event::WriteAndClose(page, value) => world.write_and_close(page, value),
        Event::Destroy(vm) => {
            *live -= usize::from(world.has_segment(vm));
            world.vm_destroy(vm);
        }
        Event::Unload => {
            // Refused exactly while a segment lives.
            if world.unload() != (*live == 0) {
                return Err("unload was decided wrongly".to_owned());
            }
        }
        Event::Load => world.load(),
    }
    world.invariants()
}

/// Runs the events, then lets everything go; the first thing that is wrong.
fn run(bug: Option<Bug>, events: &[Event]) -> Result<(), String> {
    let mut world = World::new(bug);
    let mut live = 0;
    for e in events {
        apply(&mut world, e, &mut live)?;
    }
    world.end();
    world.invariants()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_sequence_breaks_what_the_module_claims(events in prop::collection::vec(event(), 1..60)) {
        prop_assert_eq!(run(None, &events), Ok(()));
    }
}

/// The same run notices each mistake, so that passing says something.
#[test]
fn each_mistake_is_noticed() {
    use Event::{
        Attach, Create, Destroy, Guest, Host, MapGuest, MapHost, OpenForWriting, UnmapGuest,
    };
    let start = [Create(1), Attach(1, None), MapGuest(1, false)];
    let with = |more: &[Event]| [&start[..], more].concat();
    let cases = [
        (
            Bug::OneReference,
            with(&[Guest(1, 2, Some(100)), UnmapGuest(1)]),
            "reads something",
        ),
        (
            Bug::ClearedOnce,
            with(&[
                UnmapGuest(1),
                MapGuest(1, false),
                Guest(1, 2, Some(100)),
                UnmapGuest(1),
            ]),
            "reads something",
        ),
        (
            Bug::KeepTextMark,
            vec![Create(0), Attach(0, Some(FailAt::BackingAttach))],
            "text marks are not",
        ),
        (
            Bug::NoShootdown,
            with(&[MapHost(1), Guest(1, 3, None), Host(0, 3, Some(100))]),
            "Guest(1) of machine 1 reads something",
        ),
        (
            Bug::NoTextMark,
            with(&[OpenForWriting]),
            "text marks are not",
        ),
        (Bug::ListLast, with(&[Destroy(1)]), "freed object"),
        (Bug::NoReference, with(&[]), "without references"),
        (
            Bug::WriteThrough,
            with(&[Guest(1, 0, Some(100))]),
            "reached the file",
        ),
        (Bug::NoOffset, with(&[]), "reads something"),
    ];
    for (bug, events, wanted) in cases {
        assert_eq!(run(None, &events), Ok(()), "{bug:?} without the bug");
        let seen = run(Some(bug), &events).expect_err("not noticed");
        assert!(seen.contains(wanted), "{bug:?}: {seen}");
    }
}
