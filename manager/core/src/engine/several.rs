//! Several engines as one: a checkpoint is restored by the engine that made it, and each guest is
//! handled by the engine that runs it. One state folder so holds guests of all of them.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{
    Answer, ConsoleLine, Engine, Error, GuestNetwork, GuestRef, Limit, MemoryMap, Process,
    ProcessDescription, Session, SessionTerms, Stray, Suspend, Tap, UnsealedSuspend, Usage,
};
use crate::{
    agent::Agent,
    checkpoint::{
        BundlePath, Checkpoint, FileStamp,
        manifest::{EngineKind, Manifest},
    },
    guest_id::GuestId,
    host::{
        self,
        facts::{HostFacts, System},
    },
};

/// The engines.
#[derive(Debug)]
pub struct Several {
    /// The first has the guests that no other one has.
    first: Box<dyn Engine>,
    others: Vec<Box<dyn Engine>>,
    /// The only one whose checkpoints are restored, if not all are.
    only: Option<EngineKind>,
}

impl Several {
    /// These engines. All of them handle the guests that they run; with `only`, no other one gets a
    /// new guest.
    #[must_use]
    pub fn new(
        first: Box<dyn Engine>,
        others: Vec<Box<dyn Engine>>,
        only: Option<EngineKind>,
    ) -> Self {
        Self {
            first,
            others,
            only,
        }
    }

    fn all(&self) -> impl Iterator<Item = &dyn Engine> {
        std::iter::once(&*self.first).chain(self.others.iter().map(|engine| &**engine))
    }

    /// The engine of this kind, or else the first.
    fn of_kind(&self, kind: Option<EngineKind>) -> &dyn Engine {
        let found = kind.and_then(|kind| self.all().find(|engine| engine.kind() == kind));
        found.unwrap_or(&*self.first)
    }

    /// The engine that restores a checkpoint, or else one that refuses it by the name of its maker.
    fn restorer(&self, checkpoint: &Checkpoint) -> &dyn Engine {
        let manifest = checkpoint.manifest();
        let kind = self.only.unwrap_or(manifest.engine);
        let mut of_kind = self.all().filter(|engine| engine.kind() == kind);
        let found = of_kind.find(|engine| engine.restores(manifest));
        found.unwrap_or_else(|| self.of_kind(Some(kind)))
    }

    /// The engine that runs a guest.
    fn runner(&self, guest: GuestRef<'_>) -> &dyn Engine {
        let is_of = |kind| guest.engine.is_none_or(|wanted| wanted == kind);
        let mut others = self.others.iter().filter(|engine| is_of(engine.kind()));
        match others.find(|engine| engine.has(guest)) {
            Some(engine) => &**engine,
            None => self.of_kind(guest.engine),
        }
    }
}

impl Engine for Several {
    fn kind(&self) -> EngineKind {
        self.of_kind(self.only).kind()
    }

    fn kinds(&self) -> Vec<EngineKind> {
        match self.only {
            Some(kind) => vec![kind],
            None => {
                let mut kinds: Vec<_> = self.all().map(Engine::kind).collect();
                // Two engines may be of one kind, for guests that differ.
                kinds.dedup();
                kinds
            }
        }
    }

    fn restores(&self, manifest: &Manifest) -> bool {
        self.all().any(|engine| engine.restores(manifest))
    }

    fn kind_of(&self, guest: GuestRef<'_>) -> EngineKind {
        self.runner(guest).kind()
    }

    fn host(&self) -> host::HostSource {
        self.first.host()
    }

    fn examine(&self, facts: &mut HostFacts) {
        let kinds = self.kinds();
        for engine in self.all().filter(|engine| kinds.contains(&engine.kind())) {
            engine.examine(facts);
        }
        if let System::Linux(linux) = &mut facts.system {
            linux.engines = kinds;
        }
    }

    fn can_network(&self, checkpoint: &Checkpoint, wanted: &GuestNetwork) -> Result<(), Error> {
        self.restorer(checkpoint).can_network(checkpoint, wanted)
    }

    fn reads_disk(&self, checkpoint: &Checkpoint) -> Result<bool, Error> {
        self.restorer(checkpoint).reads_disk(checkpoint)
    }

    fn reads_overlays(&self, checkpoint: &Checkpoint) -> bool {
        self.restorer(checkpoint).reads_overlays(checkpoint)
    }

    fn copies_disks(&self, checkpoint: &Checkpoint) -> bool {
        self.restorer(checkpoint).copies_disks(checkpoint)
    }

    fn can_do_without_disk(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        self.restorer(checkpoint).can_do_without_disk(checkpoint)
    }

    fn own_disk(&self, guest: GuestRef<'_>) -> Result<Option<PathBuf>, Error> {
        self.runner(guest).own_disk(guest)
    }

    fn tap(&self, guest: GuestRef<'_>) -> Result<Option<Tap>, Error> {
        self.runner(guest).tap(guest)
    }

    fn unsealed(&self, guest: GuestRef<'_>) -> Result<Option<UnsealedSuspend>, Error> {
        self.runner(guest).unsealed(guest)
    }

    fn suspending(&self, guest: GuestRef<'_>) -> Result<Option<BundlePath>, Error> {
        self.runner(guest).suspending(guest)
    }

    fn suits(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        self.restorer(checkpoint).suits(checkpoint)
    }

    fn session(
        &self,
        checkpoint: &Checkpoint,
        run_dir: &Path,
        lock: &File,
        terms: &SessionTerms,
    ) -> Result<Box<dyn Session>, Error> {
        self.restorer(checkpoint)
            .session(checkpoint, run_dir, lock, terms)
    }

    fn note_whole(&self, run_dir: &Path, stamp: &FileStamp, sha256: &str) {
        for engine in self.all() {
            engine.note_whole(run_dir, stamp, sha256);
        }
    }

    fn can_enforce_limits(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        self.restorer(checkpoint).can_enforce_limits(checkpoint)
    }

    fn find(&self, guest: GuestRef<'_>) -> Result<Option<Process>, Error> {
        self.runner(guest).find(guest)
    }

    fn has(&self, guest: GuestRef<'_>) -> bool {
        self.all().any(|engine| engine.has(guest))
    }

    fn guest_in(&self, name: &str) -> Option<GuestId> {
        self.all().find_map(|engine| engine.guest_in(name))
    }

    fn strays(&self, run_dir: &Path) -> Result<Vec<Stray>, Error> {
        let mut found = Vec::new();
        for engine in self.all() {
            found.extend(engine.strays(run_dir)?);
        }
        Ok(found)
    }

    /// The process of a stray has ended, and its folder may have gone: each engine looks for parts
    /// of its own.
    fn forget_stray(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        self.all().try_for_each(|engine| engine.forget_stray(guest))
    }

    fn sweep_templates(&self, run_dir: &Path) -> Result<Vec<GuestId>, Error> {
        let mut templates = Vec::new();
        for engine in self.all() {
            templates.extend(engine.sweep_templates(run_dir)?);
        }
        Ok(templates)
    }

    fn describe(
        &self,
        guest: GuestRef<'_>,
        process: Process,
    ) -> Result<Option<ProcessDescription>, Error> {
        self.runner(guest).describe(guest, process)
    }

    fn ask(
        &self,
        guest: GuestRef<'_>,
        words: &[String],
        limit: Limit<'_>,
    ) -> Result<Box<dyn Answer>, Error> {
        self.runner(guest).ask(guest, words, limit)
    }

    fn agent(&self, guest: GuestRef<'_>, limit: Limit<'_>) -> Result<Agent, Error> {
        self.runner(guest).agent(guest, limit)
    }

    fn console(&self, guest: GuestRef<'_>) -> Result<PathBuf, Error> {
        self.runner(guest).console(guest)
    }

    fn open_console(&self, guest: GuestRef<'_>) -> Result<ConsoleLine, Error> {
        self.runner(guest).open_console(guest)
    }

    fn suspend(&self, guest: GuestRef<'_>, suspend: Suspend<'_>) -> Result<Manifest, Error> {
        self.runner(guest).suspend(guest, suspend)
    }

    fn writes_deltas(&self, guest: GuestRef<'_>) -> bool {
        self.runner(guest).writes_deltas(guest)
    }

    fn stop(&self, guest: GuestRef<'_>, process: Process) -> io::Result<bool> {
        self.runner(guest).stop(guest, process)
    }

    fn lost(&self) -> Vec<(GuestId, String)> {
        self.all().flat_map(Engine::lost).collect()
    }

    fn unfreeze(&self, guest: GuestRef<'_>, process: Process) -> io::Result<bool> {
        self.runner(guest).unfreeze(guest, process)
    }

    fn resume(&self, guest: GuestRef<'_>, process: Process, limit: Limit<'_>) -> Result<(), Error> {
        self.runner(guest).resume(guest, process, limit)
    }

    fn usage(&self, guest: GuestRef<'_>, process: Process) -> Result<Usage, Error> {
        self.runner(guest).usage(guest, process)
    }

    fn memory_map(
        &self,
        guest: GuestRef<'_>,
        process: Process,
        cells: u32,
    ) -> Result<Option<MemoryMap>, Error> {
        self.runner(guest).memory_map(guest, process, cells)
    }

    fn ended(&self, guest: GuestRef<'_>) -> Result<Option<String>, Error> {
        self.runner(guest).ended(guest)
    }

    fn forget(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        self.runner(guest).forget(guest)
    }
}

#[cfg(test)]
mod tests {
    /// A method with a default would otherwise answer for all engines.
    #[test]
    fn each_method_of_an_engine_is_handed_on() {
        let of_trait = include_str!("mod.rs").split("pub trait Engine").nth(1);
        let methods = of_trait.unwrap().split("\n    fn ").skip(1);
        let names = methods.map(|method| method.split('(').next().unwrap());
        let here = include_str!("several.rs");
        let missing: Vec<_> = names
            // It asks for the names of all.
            .filter(|name| *name != "seen")
            .filter(|name| !here.contains(&format!("\n    fn {name}(")))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
