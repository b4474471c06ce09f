//! Suspends: a guest's memory and its disk are sealed together, and come back together.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use brood_core::{
    checkpoint::{BundlePath, Checkpoint, manifest::EngineKind, unnoted, unwatched},
    disk::{self, Choice, Owner, Provider, Reflink, Source, Token},
    engine::{After, GuestRef, Suspend},
    guest_id::GuestId,
};

use crate::bench::{Alive, gone, on_every_engine, on_every_engine_with_disks};

#[test]
fn a_guest_is_suspended_and_restored_again() {
    on_every_engine(|bench| {
        let (id, Alive { process, nonce, .. }) = bench.restore(&bench.path, &["a"])[0];
        bench.keep(&id, 99);
        let from = Checkpoint::open(&bench.path).unwrap();
        let run_dir = bench.home.run_dir();
        // Onto itself it cannot be suspended, and goes on.
        let mut taken = 0;
        let onto_itself = bench.engine.suspend(
            GuestRef::new(&run_dir, &id),
            Suspend {
                name: "a",
                from: &from,
                to: &bench.path,
                delta: false,
                after: After::End,
                disks: &mut || {
                    taken += 1;
                    Ok(Vec::new())
                },
                note: &mut unnoted,
                progress: &unwatched,
            },
        );
        assert!(onto_itself.is_err());
        assert_eq!(
            taken, 0,
            "no snapshot is taken for a bundle that cannot be written"
        );
        bench.ask(&id, "ping").unwrap();
        let to: BundlePath = bench.home.named("to").path.parse().unwrap();
        let manifest = bench
            .engine
            .suspend(
                GuestRef::new(&run_dir, &id),
                Suspend {
                    name: "a",
                    from: &from,
                    to: &to,
                    delta: false,
                    after: After::End,
                    disks: &mut || {
                        taken += 1;
                        Ok(Vec::new())
                    },
                    note: &mut unnoted,
                    progress: &unwatched,
                },
            )
            .unwrap();
        assert_eq!(taken, 1);
        assert_eq!(manifest.guest, "a");
        gone(process);
        bench.engine.forget(GuestRef::new(&run_dir, &id)).unwrap();
        let (id, again) = bench.restore(&to, &["b"])[0];
        assert_eq!(again.nonce, nonce);
        assert_eq!(bench.kept(&id), 99);
        bench.end(&id, again.process);
    });
}

#[test]
fn a_disk_is_the_guests_own_and_is_sealed_with_its_memory() {
    on_every_engine_with_disks(|bench, image| {
        let run_dir = bench.home.run_dir();
        let owner = Owner::of(&run_dir);
        let from = Checkpoint::open(&bench.path).unwrap();
        // KVM's demo guest and the minimal Linux have no block device: their disk is a companion that
        // they do not read.
        let reads = bench.engine.reads_disk(&from).unwrap();
        assert_eq!(reads, bench.kind == EngineKind::Bhyve);
        let make = |disks: &dyn Provider, id: &GuestId| {
            disks.clone_for(id, &unwatched).unwrap();
            disks.location(id).unwrap()
        };
        let ninth = |disks: &dyn Provider, id: &GuestId| {
            let disk = File::open(disks.location(id).unwrap().unwrap()).unwrap();
            let mut word = [0; 8];
            disk.read_exact_at(&mut word, 9 * 512).unwrap();
            u64::from_le_bytes(word)
        };
        let write = |disks: &dyn Provider, id: &GuestId, word: u64| {
            if reads {
                bench.ask(id, &format!("write 9 {word}")).unwrap();
                assert_eq!(bench.ask(id, "read 9").unwrap()["value"], word);
            } else {
                let disk = disks.location(id).unwrap().unwrap();
                let disk = File::options().write(true).open(disk).unwrap();
                disk.write_all_at(&word.to_le_bytes(), 9 * 512).unwrap();
            }
        };
        let disks = Reflink::new(owner, image.to_owned(), true);
        let location = |id: &GuestId| make(&disks, id).filter(|_| reads);
        let guests = bench.restore_with(&bench.path, &["a", "b"], &location);
        let ((a, alive), (b, other)) = (guests[0], guests[1]);
        write(&disks, &a, 77);
        write(&disks, &b, 78);
        assert_eq!((ninth(&disks, &a), ninth(&disks, &b)), (77, 78));
        assert_eq!(fs::read(image).unwrap(), [0; 1 << 16]);
        bench.keep(&a, 99);

        let to: BundlePath = bench.home.named("to").path.parse().unwrap();
        let token = Token::random().unwrap();
        let manifest = bench
            .engine
            .suspend(
                GuestRef::new(&run_dir, &a),
                Suspend {
                    name: "a",
                    from: &from,
                    to: &to,
                    delta: false,
                    after: After::End,
                    disks: &mut || Ok(vec![disks.snapshot(&a, &to, &token, &unwatched)?]),
                    note: &mut unnoted,
                    progress: &unwatched,
                },
            )
            .unwrap();
        gone(alive.process);
        let device = manifest.disks[0].device.as_deref();
        assert_eq!(device, reads.then_some("virtio-blk@pci.0.2.0"));
        disk::verify(&to, &manifest.disks, &unwatched).unwrap();
        for (id, alive) in [(a, None), (b, Some(other))] {
            match alive {
                Some(alive) => bench.end(&id, alive.process),
                None => bench.engine.forget(GuestRef::new(&run_dir, &id)).unwrap(),
            }
            disks.release(&id).unwrap();
        }

        let sealed = Checkpoint::open(&to).unwrap();
        assert_eq!(bench.engine.reads_disk(&sealed).unwrap(), reads);
        let chosen = disk::choose(&to, &manifest.disks, &Choice::Sealed).unwrap();
        let Some((Source::Reflink { file, .. }, Some(_))) = chosen else {
            panic!("{chosen:?}");
        };
        let disks = Reflink::new(owner, file, true);
        let location = |id: &GuestId| make(&disks, id).filter(|_| reads);
        let (id, again) = bench.restore_with(&to, &["c"], &location)[0];
        assert_eq!(bench.kept(&id), 99);
        assert_eq!(ninth(&disks, &id), 77);
        if reads {
            assert_eq!(bench.ask(&id, "read 9").unwrap()["value"], 77);
        }
        bench.end(&id, again.process);
        disks.release(&id).unwrap();
    });
}
