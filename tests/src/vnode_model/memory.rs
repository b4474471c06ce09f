//! Mappings, page tables and faults: the kernel's part, as far as the module relies on it.

use super::{Bug, Entry, HostMap, ObjectId, Space, World};

impl World {
    /// `vm_map_insert`: a mapping inherits the caller's reference.
    fn vm_map_insert(&mut self, id: ObjectId) {
        if let Some(s) = self.shadows.get_mut(&id)
            && s.refs > 1
        {
            s.one_mapping = false;
        }
    }

    /// `vm_map_entry_delete`: throws pages away that no other mapping can have.
    fn vm_map_delete(&mut self, id: ObjectId, space: Space) {
        self.entries.retain(|(s, _), _| *s != space);
        if let Some(s) = self.shadows.get_mut(&id)
            && s.one_mapping
            && s.refs != 1
        {
            s.pages.clear();
        }
        self.vm_object_deallocate(id);
    }

    /// `VM_MMAP_MEMSEG`: the hook refuses wired mappings; the reference follows the insertion.
    pub fn vm_mmap_memseg(&mut self, vm: usize, wired: bool) -> bool {
        let Some(id) = self.segment(vm) else {
            return false;
        };
        if wired || self.machines.get(&vm).is_some_and(|m| m.mapped) {
            return false;
        }
        self.vm_map_insert(id);
        if let Some(s) = self.shadows.get_mut(&id) {
            s.refs += 1;
        }
        if let Some(m) = self.machines.get_mut(&vm) {
            m.mapped = true;
        }
        true
    }

    /// `VM_MUNMAP_MEMSEG`, and `vm_free_memmap` when the machine goes.
    pub fn vm_free_memmap(&mut self, vm: usize) {
        let Some(m) = self.machines.get_mut(&vm) else {
            return;
        };
        if let (true, Some(id)) = (m.mapped, m.segment) {
            m.mapped = false;
            self.vm_map_delete(id, Space::Guest(vm));
        }
    }

    /// `mmap` of `/dev/vmm/NAME`: the reference comes before the insertion.
    pub fn vmmdev_mmap_single(&mut self, vm: usize) {
        let Some(id) = self.segment(vm) else { return };
        if let Some(s) = self.shadows.get_mut(&id) {
            s.refs += 1;
        }
        self.vm_map_insert(id);
        self.host_maps.push(HostMap {
            object: id,
            vm: Some(vm),
            id: self.next_map,
        });
        self.next_map += 1;
    }

    /// A host process unmaps guest memory.
    pub fn munmap(&mut self, which: usize) {
        if !self.host_maps.is_empty() {
            let map = self.host_maps.swap_remove(which % self.host_maps.len());
            self.vm_map_delete(map.object, Space::Host(map.id));
        }
    }

    /// `vm_fault`, for an access that the page table does not allow: the page is the shadow's, or
    /// for a write becomes it, or is the file's and read-only.
    fn vm_fault(&mut self, id: ObjectId, space: Space, page: usize, write: Option<u8>) -> bool {
        let (through, shootdown) = (self.has(Bug::WriteThrough), !self.has(Bug::NoShootdown));
        let spaces = self.spaces_of(id);
        let Some(s) = self.shadows.get_mut(&id).filter(|s| page < s.len) else {
            return false;
        };
        let entry = match (s.pages.contains_key(&page), write) {
            (true, _) => Entry::Private,
            (false, None) => Entry::File,
            (false, Some(value)) if through => {
                self.file[s.offset + page] = value;
                Entry::File
            }
            (false, Some(_)) => {
                // vm_fault_cow, with pmap_remove_all
                if shootdown && !s.one_mapping {
                    for other in spaces {
                        self.entries.remove(&(other, page));
                    }
                }
                Entry::Private
            }
        };
        if let (Entry::Private, Some(value)) = (entry, write) {
            s.pages.insert(page, value);
        }
        self.entries.insert((space, page), entry);
        true
    }

    /// The address spaces that map the object. The kernel removes a copied page from all others,
    /// too; they read the same from the file.
    pub(super) fn spaces_of(&self, id: ObjectId) -> Vec<Space> {
        let guests = self.machines.iter().filter(|(_, m)| m.segment == Some(id));
        let hosts = self.host_maps.iter().filter(|m| m.object == id);
        guests
            .map(|(vm, _)| Space::Guest(*vm))
            .chain(hosts.map(|m| Space::Host(m.id)))
            .collect()
    }

    /// What an access would read now, without a fault that changes anything.
    pub(super) fn peek(&self, id: ObjectId, space: Space, page: usize) -> Option<u8> {
        let s = self.shadows.get(&id)?;
        let file = self.file[s.offset + page];
        match self.entries.get(&(space, page)) {
            Some(Entry::File) => Some(file),
            Some(Entry::Private) => s.pages.get(&page).copied(),
            None => Some(s.pages.get(&page).copied().unwrap_or(file)),
        }
    }

    /// The guest reads, or writes `value`.
    pub fn guest_access(&mut self, vm: usize, page: usize, value: Option<u8>) {
        let Some(m) = self.machines.get(&vm) else {
            return;
        };
        if let (true, Some(id)) = (m.mapped, m.segment) {
            self.access(Some(vm), id, Space::Guest(vm), page, value);
        }
    }

    /// A device model, or another process that has guest memory mapped on the host, reads or
    /// writes.
    pub fn host_access(&mut self, which: usize, page: usize, value: Option<u8>) {
        if !self.host_maps.is_empty() {
            let map = self.host_maps[which % self.host_maps.len()];
            self.access(map.vm, map.object, Space::Host(map.id), page, value);
        }
    }

    fn access(
        &mut self,
        vm: Option<usize>,
        id: ObjectId,
        space: Space,
        page: usize,
        value: Option<u8>,
    ) {
        let done = match (self.entries.get(&(space, page)), value) {
            (Some(_), None) => true,
            (Some(Entry::Private), Some(v)) => self
                .shadows
                .get_mut(&id)
                .is_some_and(|s| s.pages.insert(page, v).is_some()),
            _ => self.vm_fault(id, space, page, value),
        };
        if let (true, Some(v), Some(m)) =
            (done, value, vm.and_then(|vm| self.machines.get_mut(&vm)))
        {
            m.written.insert(page, v);
        }
    }
}
