//! Model of the objects behind guest memory on FreeBSD, for the order of operations in
//! `kmod/vmm_vnode.c` and in the hook.
//!
//! It has pages, references and flags, and no locks: every step is atomic, and a check of the
//! invariants runs between any two of them. Steps have C's names and C's order, so that a change
//! there is a change here. [`Bug`] leaves a step out or moves it, which the invariants must notice.

mod memory;

use std::collections::{BTreeMap, BTreeSet};

/// Pages of the checkpoint file.
pub const FILE_PAGES: usize = 8;

/// A mistake in the code under test, made on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The module keeps no reference of its own on the shadow.
    OneReference,
    /// As before, but `OBJ_ONEMAPPING` is cleared once, when the segment is made.
    ClearedOnce,
    /// The text mark is not taken back when attaching fails late.
    KeepTextMark,
    /// No text mark is set.
    NoTextMark,
    /// The segment leaves the list only after both references on its object are gone.
    ListLast,
    /// The shadow does not get its own reference on the file's object.
    NoReference,
    /// The kernel leaves other address spaces' mappings of a page that it copied.
    NoShootdown,
    /// A fault maps a backing page writable.
    WriteThrough,
    /// The offset of the segment in the file is forgotten.
    NoOffset,
}

/// Where attaching is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailAt {
    /// In `vv_vnode_get`.
    VnodeGet,
    /// In `vv_vnode_check`.
    VnodeCheck,
    /// In `vmm_backing_attach`.
    BackingAttach,
}

type ObjectId = usize;

/// An address space with guest memory in it: the guest's, or a host process's mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Space {
    Guest(usize),
    Host(usize),
}

/// What a page table entry points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// A page of the file, read-only.
    File,
    /// The shadow's page.
    Private,
}

#[derive(Clone, Copy, Debug)]
struct HostMap {
    object: ObjectId,
    /// The machine, while it exists.
    vm: Option<usize>,
    id: usize,
}

#[derive(Debug)]
struct Shadow {
    refs: usize,
    one_mapping: bool,
    offset: usize,
    len: usize,
    /// Private pages, in memory or in swap: where they are makes no difference to a fault.
    pages: BTreeMap<usize, u8>,
}

#[derive(Debug, Default)]
struct Machine {
    /// `seg->object`, and `seg->backing` as it is set whenever this is.
    segment: Option<ObjectId>,
    mapped: bool,
    /// What the guest must read where it or its host wrote.
    written: BTreeMap<usize, u8>,
}

/// Everything there is: one file, the virtual machines, and the provider's books.
#[derive(Debug)]
pub struct World {
    bug: Option<Bug>,
    file: Vec<u8>,
    original: Vec<u8>,
    /// `v_writecount`: writers, or text marks as a negative number.
    write_count: isize,
    /// References on the vnode's object, and those of `vref` on the vnode.
    file_object_refs: usize,
    vnode_refs: usize,
    shadows: BTreeMap<ObjectId, Shadow>,
    next_object: ObjectId,
    machines: BTreeMap<usize, Machine>,
    /// Mappings in host processes; they may outlive the machine.
    host_maps: Vec<HostMap>,
    next_map: usize,
    /// Page tables.
    entries: BTreeMap<(Space, usize), Entry>,
    loaded: bool,
    backing_refs: usize,
    /// `vv_segments`.
    list: BTreeSet<(usize, ObjectId)>,
    /// First thing that went wrong inside a step.
    broken: Option<String>,
}

impl World {
    /// A file of [`FILE_PAGES`] different pages, no machines, the provider loaded.
    #[must_use]
    pub fn new(bug: Option<Bug>) -> Self {
        let file: Vec<u8> = (1..).take(FILE_PAGES).collect();
        Self {
            bug,
            original: file.clone(),
            file,
            write_count: 0,
            file_object_refs: 0,
            vnode_refs: 0,
            shadows: BTreeMap::new(),
            next_object: 0,
            machines: BTreeMap::new(),
            host_maps: Vec::new(),
            next_map: 0,
            entries: BTreeMap::new(),
            loaded: true,
            backing_refs: 0,
            list: BTreeSet::new(),
            broken: None,
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn breaks(&mut self, what: &str) {
        self.broken.get_or_insert_with(|| what.to_owned());
    }

    /// `vv_sysctl_list` and `vv_sysctl_total`: visits every segment of the list.
    fn read_books(&mut self) {
        let gone = self.list.iter().any(|(_, o)| !self.shadows.contains_key(o));
        if gone {
            self.breaks("the list holds a freed object");
        }
        if !self.list.is_empty() && self.file_object_refs == 0 {
            self.breaks("the list holds a file object without references");
        }
    }

    fn vv_text_set(&mut self) -> bool {
        if self.has(Bug::NoTextMark) {
            return true;
        }
        if self.write_count > 0 {
            return false;
        }
        self.write_count -= 1;
        true
    }

    fn vv_text_unset(&mut self) {
        if self.write_count < 0 {
            self.write_count += 1;
        } else if !self.has(Bug::NoTextMark) {
            self.breaks("a text mark was taken back that was not set");
        }
    }

    fn vv_object_shadow(&mut self, offset: usize, len: usize) -> ObjectId {
        let id = self.next_object;
        self.next_object += 1;
        let offset = if self.has(Bug::NoOffset) { 0 } else { offset };
        let pages = BTreeMap::new();
        self.shadows.insert(
            id,
            Shadow {
                refs: 1,
                one_mapping: true,
                offset,
                len,
                pages,
            },
        );
        id
    }

    fn keeps_own_reference(&self) -> bool {
        !self.has(Bug::OneReference) && !self.has(Bug::ClearedOnce)
    }

    /// The module's own reference on the shadow, and its release.
    fn vm_object_reference(&mut self, id: ObjectId) {
        if self.keeps_own_reference()
            && let Some(s) = self.shadows.get_mut(&id)
        {
            s.refs += 1;
        }
    }

    fn vm_object_release(&mut self, id: ObjectId) {
        if self.keeps_own_reference() {
            self.vm_object_deallocate(id);
        }
    }

    /// The kernel takes an object with one reference left for one with one mapping.
    fn vm_object_deallocate(&mut self, id: ObjectId) {
        let Some(shadow) = self.shadows.get_mut(&id) else {
            return self.breaks("a freed object was released");
        };
        shadow.refs -= 1;
        if shadow.refs == 1 {
            shadow.one_mapping = true;
        } else if shadow.refs == 0 {
            self.shadows.remove(&id);
            match self.file_object_refs.checked_sub(1) {
                Some(n) => self.file_object_refs = n,
                None => self.breaks("the file's object lost a reference it did not have"),
            }
        }
    }

    /// A new virtual machine. Nothing happens when it exists.
    pub fn create(&mut self, vm: usize) {
        self.machines.entry(vm).or_default();
    }

    /// `VM_VNODE_ATTACH`: `vv_attach`, step by step, with its exits in reverse.
    pub fn vv_attach(
        &mut self,
        vm: usize,
        offset: usize,
        len: usize,
        fail: Option<FailAt>,
    ) -> bool {
        if !self.machines.contains_key(&vm) || !self.loaded {
            return false;
        }
        // vmm_backing_ioctl: one reference for the request.
        self.backing_refs += 1;
        let done = self.vv_attach_served(vm, offset, len, fail);
        self.backing_refs -= 1;
        done
    }

    fn vv_attach_served(
        &mut self,
        vm: usize,
        offset: usize,
        len: usize,
        fail: Option<FailAt>,
    ) -> bool {
        if len == 0 {
            return false; // vv_attach_check
        }
        if fail == Some(FailAt::VnodeGet) {
            return false; // fail_segment: only memory of our own
        }
        self.vnode_refs += 1; // vv_vnode_get
        self.read_books();
        let fits = offset + len <= FILE_PAGES && fail != Some(FailAt::VnodeCheck);
        if !fits || !self.vv_text_set() {
            self.vnode_refs -= 1; // fail_vnode
            return false;
        }
        if !self.has(Bug::NoReference) {
            self.file_object_refs += 1; // vm_object_reference
        }
        self.read_books();
        let shadow = self.vv_object_shadow(offset, len);
        self.vm_object_reference(shadow);
        if self.has(Bug::ClearedOnce)
            && let Some(s) = self.shadows.get_mut(&shadow)
        {
            s.one_mapping = false;
        }
        self.read_books();
        if fail == Some(FailAt::BackingAttach) || self.segment(vm).is_some() {
            self.vm_object_release(shadow); // fail_shadow
            self.vm_object_deallocate(shadow);
            self.read_books();
            if !self.has(Bug::KeepTextMark) {
                self.vv_text_unset();
            }
            self.vnode_refs -= 1; // fail_vnode
            return false;
        }
        // vmm_backing_attach: the segment owns the shadow, and the provider a reference.
        self.backing_refs += 1;
        if let Some(m) = self.machines.get_mut(&vm) {
            m.segment = Some(shadow);
        }
        self.read_books();
        self.list.insert((vm, shadow));
        self.read_books();
        true
    }

    /// Whether the machine exists and has a segment.
    #[must_use]
    pub fn has_segment(&self, vm: usize) -> bool {
        self.segment(vm).is_some()
    }

    fn segment(&self, vm: usize) -> Option<ObjectId> {
        self.machines.get(&vm).and_then(|m| m.segment)
    }

    /// `open` for writing by anybody; false is `ETXTBSY`.
    pub fn open_for_writing(&mut self) -> bool {
        if self.write_count < 0 {
            return false;
        }
        self.write_count += 1;
        true
    }

    /// What a writer does with the file, and that it then closes it.
    pub fn write_and_close(&mut self, page: usize, value: u8) {
        if self.write_count > 0 {
            self.file[page % FILE_PAGES] = value;
            self.original = self.file.clone();
            self.write_count -= 1;
        }
    }

    /// The machine goes: `vm_mem_destroy`, `vm_free_memseg`, `vmm_backing_detach`, `vv_detach`.
    pub fn vm_destroy(&mut self, vm: usize) {
        self.vm_free_memmap(vm);
        self.read_books();
        if let Some(id) = self.segment(vm) {
            if self.has(Bug::ListLast) {
                self.vm_object_release(id);
                self.vm_object_deallocate(id);
                self.read_books();
                self.list.remove(&(vm, id));
            } else {
                self.vv_detach(vm, id);
                self.read_books();
                self.vm_object_deallocate(id);
            }
            self.backing_refs -= 1;
        }
        for map in &mut self.host_maps {
            if map.vm == Some(vm) {
                map.vm = None;
            }
        }
        self.machines.remove(&vm);
        self.read_books();
    }

    fn vv_detach(&mut self, vm: usize, id: ObjectId) {
        self.list.remove(&(vm, id));
        self.read_books();
        self.vm_object_release(id);
        self.vv_text_unset();
        self.read_books();
        self.vnode_refs -= 1;
    }

    /// `kldunload`; false is `EBUSY`.
    pub fn unload(&mut self) -> bool {
        if self.backing_refs == 0 {
            self.loaded = false;
        }
        !self.loaded
    }

    /// `kldload`.
    pub fn load(&mut self) {
        self.loaded = true;
    }

    /// All machines and mappings go.
    pub fn end(&mut self) {
        for vm in self.machines.keys().copied().collect::<Vec<_>>() {
            self.vm_destroy(vm);
        }
        while !self.host_maps.is_empty() {
            self.munmap(0);
        }
        if !self.shadows.is_empty() || self.file_object_refs != 0 || self.vnode_refs != 0 {
            self.breaks("references are left at the end");
        }
        if self.write_count < 0 {
            self.breaks("a text mark is left at the end");
        }
        if !self.unload() {
            self.breaks("the provider is busy at the end");
        }
    }

    /// What must hold between any two operations; the first that does not.
    ///
    /// # Errors
    ///
    /// In words, what is wrong.
    pub fn invariants(&self) -> Result<(), String> {
        if let Some(what) = &self.broken {
            return Err(what.clone());
        }
        let live: Vec<(usize, ObjectId)> = self
            .machines
            .iter()
            .filter_map(|(&vm, m)| Some((vm, m.segment?)))
            .collect();
        let marks = if self.write_count < 0 {
            self.write_count.unsigned_abs()
        } else {
            0
        };
        let holds = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };

        holds(self.file == self.original, "a write reached the file")?;
        holds(marks == live.len(), "text marks are not the live segments")?;
        holds(
            self.list.iter().copied().eq(live.iter().copied()),
            "the list is not the segments",
        )?;
        holds(
            self.backing_refs == live.len(),
            "the provider's references are not the segments",
        )?;
        holds(
            self.vnode_refs == live.len(),
            "the vnode's references are not the segments",
        )?;
        holds(
            self.file_object_refs == self.shadows.len(),
            "the file object's references are not the shadows",
        )?;
        for (&id, s) in &self.shadows {
            let maps = self.host_maps.iter().filter(|m| m.object == id).count();
            let owner = live
                .iter()
                .find(|(_, o)| *o == id)
                .map(|(vm, _)| &self.machines[vm]);
            let own = usize::from(self.keeps_own_reference());
            let guest = owner.map_or(0, |m| 1 + own + usize::from(m.mapped));
            holds(
                s.refs == maps + guest,
                "a shadow's references are not its holders",
            )?;
        }
        for (vm, id) in live {
            let (offset, len) = self.extent(vm);
            let spaces = self.spaces_of(id);
            for (page, space) in (0..len).flat_map(|p| spaces.iter().map(move |s| (p, *s))) {
                let wanted = self.machines[&vm].written.get(&page).copied();
                let wanted = wanted.unwrap_or(self.original[offset + page]);
                if self.peek(id, space, page) != Some(wanted) {
                    return Err(format!("{space:?} of machine {vm} reads something else"));
                }
            }
        }
        Ok(())
    }

    /// Offset and length that the machine's segment was attached with. Machine `vm` always asks
    /// for the same, so that this needs no help from the code under test.
    #[must_use]
    pub fn extent(&self, vm: usize) -> (usize, usize) {
        (vm % 3, FILE_PAGES - 2)
    }
}
