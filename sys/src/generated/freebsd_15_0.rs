// Written by tools/bindings. Do not edit.

#[repr(C)]
pub struct vm_exit {
    _opaque: [u8; 0],
}


#[derive(PartialEq, Eq, Copy, Clone, Debug, Hash)]
#[repr(C, align(8))]
pub struct __BindgenOpaqueArray8<T>(pub T);
impl<T: Copy + Default, const N: usize> Default for __BindgenOpaqueArray8<[T; N]> {
    fn default() -> Self {
        Self([<T as Default>::default(); N])
    }
}
pub const VM_MAX_PREFIXLEN: u32 = 10;
pub const VM_MAX_SUFFIXLEN: u32 = 15;
pub const VM_MAX_NAMELEN: u32 = 229;
pub const VM_MEMMAP_F_WIRED: u32 = 1;
pub const VM_MEMMAP_F_IOMMU: u32 = 2;
pub const MAX_VM_STATS: u32 = 64;
pub const VM_ACTIVE_CPUS: u32 = 0;
pub const VM_SUSPENDED_CPUS: u32 = 1;
pub const VM_DEBUG_CPUS: u32 = 2;
pub const VMMCTL_CREATE_DESTROY_ON_CLOSE: u32 = 1;
pub const VM_MAXSYSMEM: u32 = 8;
pub const VM_VNODE_ABI: u32 = 1;
pub const VM_VNODE_F_ATTACH: u32 = 1;
pub const VM_VNODE_F_STATS: u32 = 2;
pub const VM_VNODE_F_SWAPPED: u32 = 4;
pub const VM_VNODE_F_COHERENT: u32 = 8;
pub const VM_VNODE_F_STATE: u32 = 16;
pub const VM_VNODE_STATE_FILE_LOST: u32 = 1;
pub type __int64_t = ::core::ffi::c_long;
pub type __uint64_t = ::core::ffi::c_ulong;
pub type __time_t = __int64_t;
pub type __vm_paddr_t = __uint64_t;
pub type __suseconds_t = ::core::ffi::c_long;
pub type suseconds_t = __suseconds_t;
pub type time_t = __time_t;
pub type vm_ooffset_t = __uint64_t;
pub type vm_paddr_t = __vm_paddr_t;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct timeval {
    pub tv_sec: time_t,
    pub tv_usec: suseconds_t,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of timeval"][::core::mem::size_of::<timeval>() - 16usize];
    ["Alignment of timeval"][::core::mem::align_of::<timeval>() - 8usize];
    ["Offset of field: timeval::tv_sec"][::core::mem::offset_of!(timeval, tv_sec) - 0usize];
    ["Offset of field: timeval::tv_usec"][::core::mem::offset_of!(timeval, tv_usec) - 8usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct _cpuset {
    pub __bits: [::core::ffi::c_ulong; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of _cpuset"][::core::mem::size_of::<_cpuset>() - 128usize];
    ["Alignment of _cpuset"][::core::mem::align_of::<_cpuset>() - 8usize];
    ["Offset of field: _cpuset::__bits"][::core::mem::offset_of!(_cpuset, __bits) - 0usize];
};
pub type cpuset_t = _cpuset;
pub const VM_SUSPEND_NONE: vm_suspend_how = 0;
pub const VM_SUSPEND_RESET: vm_suspend_how = 1;
pub const VM_SUSPEND_POWEROFF: vm_suspend_how = 2;
pub const VM_SUSPEND_HALT: vm_suspend_how = 3;
pub const VM_SUSPEND_TRIPLEFAULT: vm_suspend_how = 4;
pub const VM_SUSPEND_DESTROY: vm_suspend_how = 5;
pub const VM_SUSPEND_LAST: vm_suspend_how = 6;
pub type vm_suspend_how = ::core::ffi::c_uint;
pub const VM_REG_GUEST_RAX: vm_reg_name = 0;
pub const VM_REG_GUEST_RBX: vm_reg_name = 1;
pub const VM_REG_GUEST_RCX: vm_reg_name = 2;
pub const VM_REG_GUEST_RDX: vm_reg_name = 3;
pub const VM_REG_GUEST_RSI: vm_reg_name = 4;
pub const VM_REG_GUEST_RDI: vm_reg_name = 5;
pub const VM_REG_GUEST_RBP: vm_reg_name = 6;
pub const VM_REG_GUEST_R8: vm_reg_name = 7;
pub const VM_REG_GUEST_R9: vm_reg_name = 8;
pub const VM_REG_GUEST_R10: vm_reg_name = 9;
pub const VM_REG_GUEST_R11: vm_reg_name = 10;
pub const VM_REG_GUEST_R12: vm_reg_name = 11;
pub const VM_REG_GUEST_R13: vm_reg_name = 12;
pub const VM_REG_GUEST_R14: vm_reg_name = 13;
pub const VM_REG_GUEST_R15: vm_reg_name = 14;
pub const VM_REG_GUEST_CR0: vm_reg_name = 15;
pub const VM_REG_GUEST_CR3: vm_reg_name = 16;
pub const VM_REG_GUEST_CR4: vm_reg_name = 17;
pub const VM_REG_GUEST_DR7: vm_reg_name = 18;
pub const VM_REG_GUEST_RSP: vm_reg_name = 19;
pub const VM_REG_GUEST_RIP: vm_reg_name = 20;
pub const VM_REG_GUEST_RFLAGS: vm_reg_name = 21;
pub const VM_REG_GUEST_ES: vm_reg_name = 22;
pub const VM_REG_GUEST_CS: vm_reg_name = 23;
pub const VM_REG_GUEST_SS: vm_reg_name = 24;
pub const VM_REG_GUEST_DS: vm_reg_name = 25;
pub const VM_REG_GUEST_FS: vm_reg_name = 26;
pub const VM_REG_GUEST_GS: vm_reg_name = 27;
pub const VM_REG_GUEST_LDTR: vm_reg_name = 28;
pub const VM_REG_GUEST_TR: vm_reg_name = 29;
pub const VM_REG_GUEST_IDTR: vm_reg_name = 30;
pub const VM_REG_GUEST_GDTR: vm_reg_name = 31;
pub const VM_REG_GUEST_EFER: vm_reg_name = 32;
pub const VM_REG_GUEST_CR2: vm_reg_name = 33;
pub const VM_REG_GUEST_PDPTE0: vm_reg_name = 34;
pub const VM_REG_GUEST_PDPTE1: vm_reg_name = 35;
pub const VM_REG_GUEST_PDPTE2: vm_reg_name = 36;
pub const VM_REG_GUEST_PDPTE3: vm_reg_name = 37;
pub const VM_REG_GUEST_INTR_SHADOW: vm_reg_name = 38;
pub const VM_REG_GUEST_DR0: vm_reg_name = 39;
pub const VM_REG_GUEST_DR1: vm_reg_name = 40;
pub const VM_REG_GUEST_DR2: vm_reg_name = 41;
pub const VM_REG_GUEST_DR3: vm_reg_name = 42;
pub const VM_REG_GUEST_DR6: vm_reg_name = 43;
pub const VM_REG_GUEST_ENTRY_INST_LENGTH: vm_reg_name = 44;
pub const VM_REG_GUEST_FS_BASE: vm_reg_name = 45;
pub const VM_REG_GUEST_GS_BASE: vm_reg_name = 46;
pub const VM_REG_GUEST_KGS_BASE: vm_reg_name = 47;
pub const VM_REG_GUEST_TPR: vm_reg_name = 48;
pub const VM_REG_LAST: vm_reg_name = 49;
pub type vm_reg_name = ::core::ffi::c_uint;
pub const X2APIC_DISABLED: x2apic_state = 0;
pub const X2APIC_ENABLED: x2apic_state = 1;
pub const X2APIC_STATE_LAST: x2apic_state = 2;
pub type x2apic_state = ::core::ffi::c_uint;
pub const VM_CAP_HALT_EXIT: vm_cap_type = 0;
pub const VM_CAP_MTRAP_EXIT: vm_cap_type = 1;
pub const VM_CAP_PAUSE_EXIT: vm_cap_type = 2;
pub const VM_CAP_UNRESTRICTED_GUEST: vm_cap_type = 3;
pub const VM_CAP_ENABLE_INVPCID: vm_cap_type = 4;
pub const VM_CAP_BPT_EXIT: vm_cap_type = 5;
pub const VM_CAP_RDPID: vm_cap_type = 6;
pub const VM_CAP_RDTSCP: vm_cap_type = 7;
pub const VM_CAP_IPI_EXIT: vm_cap_type = 8;
pub const VM_CAP_MASK_HWINTR: vm_cap_type = 9;
pub const VM_CAP_RFLAGS_TF: vm_cap_type = 10;
pub const VM_CAP_MAX: vm_cap_type = 11;
pub type vm_cap_type = ::core::ffi::c_uint;
pub const EDGE_TRIGGER: vm_intr_trigger = 0;
pub const LEVEL_TRIGGER: vm_intr_trigger = 1;
pub type vm_intr_trigger = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct seg_desc {
    pub base: u64,
    pub limit: u32,
    pub access: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of seg_desc"][::core::mem::size_of::<seg_desc>() - 16usize];
    ["Alignment of seg_desc"][::core::mem::align_of::<seg_desc>() - 8usize];
    ["Offset of field: seg_desc::base"][::core::mem::offset_of!(seg_desc, base) - 0usize];
    ["Offset of field: seg_desc::limit"][::core::mem::offset_of!(seg_desc, limit) - 8usize];
    ["Offset of field: seg_desc::access"][::core::mem::offset_of!(seg_desc, access) - 12usize];
};
pub const CPU_MODE_REAL: vm_cpu_mode = 0;
pub const CPU_MODE_PROTECTED: vm_cpu_mode = 1;
pub const CPU_MODE_COMPATIBILITY: vm_cpu_mode = 2;
pub const CPU_MODE_64BIT: vm_cpu_mode = 3;
pub type vm_cpu_mode = ::core::ffi::c_uint;
pub const PAGING_MODE_FLAT: vm_paging_mode = 0;
pub const PAGING_MODE_32: vm_paging_mode = 1;
pub const PAGING_MODE_PAE: vm_paging_mode = 2;
pub const PAGING_MODE_64: vm_paging_mode = 3;
pub const PAGING_MODE_64_LA57: vm_paging_mode = 4;
pub type vm_paging_mode = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_guest_paging {
    pub cr3: u64,
    pub cpl: ::core::ffi::c_int,
    pub cpu_mode: vm_cpu_mode,
    pub paging_mode: vm_paging_mode,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_guest_paging"][::core::mem::size_of::<vm_guest_paging>() - 24usize];
    ["Alignment of vm_guest_paging"][::core::mem::align_of::<vm_guest_paging>() - 8usize];
    ["Offset of field: vm_guest_paging::cr3"]
        [::core::mem::offset_of!(vm_guest_paging, cr3) - 0usize];
    ["Offset of field: vm_guest_paging::cpl"]
        [::core::mem::offset_of!(vm_guest_paging, cpl) - 8usize];
    ["Offset of field: vm_guest_paging::cpu_mode"]
        [::core::mem::offset_of!(vm_guest_paging, cpu_mode) - 12usize];
    ["Offset of field: vm_guest_paging::paging_mode"]
        [::core::mem::offset_of!(vm_guest_paging, paging_mode) - 16usize];
};
impl Default for vm_guest_paging {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
pub const VM_EXITCODE_INOUT: vm_exitcode = 0;
pub const VM_EXITCODE_VMX: vm_exitcode = 1;
pub const VM_EXITCODE_BOGUS: vm_exitcode = 2;
pub const VM_EXITCODE_RDMSR: vm_exitcode = 3;
pub const VM_EXITCODE_WRMSR: vm_exitcode = 4;
pub const VM_EXITCODE_HLT: vm_exitcode = 5;
pub const VM_EXITCODE_MTRAP: vm_exitcode = 6;
pub const VM_EXITCODE_PAUSE: vm_exitcode = 7;
pub const VM_EXITCODE_PAGING: vm_exitcode = 8;
pub const VM_EXITCODE_INST_EMUL: vm_exitcode = 9;
pub const VM_EXITCODE_SPINUP_AP: vm_exitcode = 10;
pub const VM_EXITCODE_DEPRECATED1: vm_exitcode = 11;
pub const VM_EXITCODE_RENDEZVOUS: vm_exitcode = 12;
pub const VM_EXITCODE_IOAPIC_EOI: vm_exitcode = 13;
pub const VM_EXITCODE_SUSPENDED: vm_exitcode = 14;
pub const VM_EXITCODE_INOUT_STR: vm_exitcode = 15;
pub const VM_EXITCODE_TASK_SWITCH: vm_exitcode = 16;
pub const VM_EXITCODE_MONITOR: vm_exitcode = 17;
pub const VM_EXITCODE_MWAIT: vm_exitcode = 18;
pub const VM_EXITCODE_SVM: vm_exitcode = 19;
pub const VM_EXITCODE_REQIDLE: vm_exitcode = 20;
pub const VM_EXITCODE_DEBUG: vm_exitcode = 21;
pub const VM_EXITCODE_VMINSN: vm_exitcode = 22;
pub const VM_EXITCODE_BPT: vm_exitcode = 23;
pub const VM_EXITCODE_IPI: vm_exitcode = 24;
pub const VM_EXITCODE_DB: vm_exitcode = 25;
pub const VM_EXITCODE_MAX: vm_exitcode = 26;
pub type vm_exitcode = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct _domainset {
    pub __bits: [::core::ffi::c_ulong; 4usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of _domainset"][::core::mem::size_of::<_domainset>() - 32usize];
    ["Alignment of _domainset"][::core::mem::align_of::<_domainset>() - 8usize];
    ["Offset of field: _domainset::__bits"][::core::mem::offset_of!(_domainset, __bits) - 0usize];
};
pub type domainset_t = _domainset;
pub const STRUCT_VIOAPIC: snapshot_req = 1;
pub const STRUCT_VM: snapshot_req = 2;
pub const STRUCT_VLAPIC: snapshot_req = 3;
pub const VM_MEM: snapshot_req = 4;
pub const STRUCT_VHPET: snapshot_req = 5;
pub const STRUCT_VMCX: snapshot_req = 6;
pub const STRUCT_VATPIC: snapshot_req = 7;
pub const STRUCT_VATPIT: snapshot_req = 8;
pub const STRUCT_VPMTMR: snapshot_req = 9;
pub const STRUCT_VRTC: snapshot_req = 10;
pub type snapshot_req = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_snapshot_buffer {
    pub buf_start: *mut u8,
    pub buf_size: usize,
    pub buf: *mut u8,
    pub buf_rem: usize,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_snapshot_buffer"][::core::mem::size_of::<vm_snapshot_buffer>() - 32usize];
    ["Alignment of vm_snapshot_buffer"][::core::mem::align_of::<vm_snapshot_buffer>() - 8usize];
    ["Offset of field: vm_snapshot_buffer::buf_start"]
        [::core::mem::offset_of!(vm_snapshot_buffer, buf_start) - 0usize];
    ["Offset of field: vm_snapshot_buffer::buf_size"]
        [::core::mem::offset_of!(vm_snapshot_buffer, buf_size) - 8usize];
    ["Offset of field: vm_snapshot_buffer::buf"]
        [::core::mem::offset_of!(vm_snapshot_buffer, buf) - 16usize];
    ["Offset of field: vm_snapshot_buffer::buf_rem"]
        [::core::mem::offset_of!(vm_snapshot_buffer, buf_rem) - 24usize];
};
impl Default for vm_snapshot_buffer {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
pub const VM_SNAPSHOT_SAVE: vm_snapshot_op = 0;
pub const VM_SNAPSHOT_RESTORE: vm_snapshot_op = 1;
pub type vm_snapshot_op = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_snapshot_meta {
    pub dev_data: *mut ::core::ffi::c_void,
    pub dev_name: *const ::core::ffi::c_char,
    pub dev_req: snapshot_req,
    pub buffer: vm_snapshot_buffer,
    pub op: vm_snapshot_op,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_snapshot_meta"][::core::mem::size_of::<vm_snapshot_meta>() - 64usize];
    ["Alignment of vm_snapshot_meta"][::core::mem::align_of::<vm_snapshot_meta>() - 8usize];
    ["Offset of field: vm_snapshot_meta::dev_data"]
        [::core::mem::offset_of!(vm_snapshot_meta, dev_data) - 0usize];
    ["Offset of field: vm_snapshot_meta::dev_name"]
        [::core::mem::offset_of!(vm_snapshot_meta, dev_name) - 8usize];
    ["Offset of field: vm_snapshot_meta::dev_req"]
        [::core::mem::offset_of!(vm_snapshot_meta, dev_req) - 16usize];
    ["Offset of field: vm_snapshot_meta::buffer"]
        [::core::mem::offset_of!(vm_snapshot_meta, buffer) - 24usize];
    ["Offset of field: vm_snapshot_meta::op"]
        [::core::mem::offset_of!(vm_snapshot_meta, op) - 56usize];
};
impl Default for vm_snapshot_meta {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_memmap {
    pub gpa: vm_paddr_t,
    pub segid: ::core::ffi::c_int,
    pub segoff: vm_ooffset_t,
    pub len: usize,
    pub prot: ::core::ffi::c_int,
    pub flags: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_memmap"][::core::mem::size_of::<vm_memmap>() - 40usize];
    ["Alignment of vm_memmap"][::core::mem::align_of::<vm_memmap>() - 8usize];
    ["Offset of field: vm_memmap::gpa"][::core::mem::offset_of!(vm_memmap, gpa) - 0usize];
    ["Offset of field: vm_memmap::segid"][::core::mem::offset_of!(vm_memmap, segid) - 8usize];
    ["Offset of field: vm_memmap::segoff"][::core::mem::offset_of!(vm_memmap, segoff) - 16usize];
    ["Offset of field: vm_memmap::len"][::core::mem::offset_of!(vm_memmap, len) - 24usize];
    ["Offset of field: vm_memmap::prot"][::core::mem::offset_of!(vm_memmap, prot) - 32usize];
    ["Offset of field: vm_memmap::flags"][::core::mem::offset_of!(vm_memmap, flags) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_munmap {
    pub gpa: vm_paddr_t,
    pub len: usize,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_munmap"][::core::mem::size_of::<vm_munmap>() - 16usize];
    ["Alignment of vm_munmap"][::core::mem::align_of::<vm_munmap>() - 8usize];
    ["Offset of field: vm_munmap::gpa"][::core::mem::offset_of!(vm_munmap, gpa) - 0usize];
    ["Offset of field: vm_munmap::len"][::core::mem::offset_of!(vm_munmap, len) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_memseg {
    pub segid: ::core::ffi::c_int,
    pub len: usize,
    pub name: [::core::ffi::c_char; 16usize],
    pub ds_mask: *mut domainset_t,
    pub ds_mask_size: usize,
    pub ds_policy: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_memseg"][::core::mem::size_of::<vm_memseg>() - 56usize];
    ["Alignment of vm_memseg"][::core::mem::align_of::<vm_memseg>() - 8usize];
    ["Offset of field: vm_memseg::segid"][::core::mem::offset_of!(vm_memseg, segid) - 0usize];
    ["Offset of field: vm_memseg::len"][::core::mem::offset_of!(vm_memseg, len) - 8usize];
    ["Offset of field: vm_memseg::name"][::core::mem::offset_of!(vm_memseg, name) - 16usize];
    ["Offset of field: vm_memseg::ds_mask"][::core::mem::offset_of!(vm_memseg, ds_mask) - 32usize];
    ["Offset of field: vm_memseg::ds_mask_size"]
        [::core::mem::offset_of!(vm_memseg, ds_mask_size) - 40usize];
    ["Offset of field: vm_memseg::ds_policy"]
        [::core::mem::offset_of!(vm_memseg, ds_policy) - 48usize];
};
impl Default for vm_memseg {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_register {
    pub cpuid: ::core::ffi::c_int,
    pub regnum: ::core::ffi::c_int,
    pub regval: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_register"][::core::mem::size_of::<vm_register>() - 16usize];
    ["Alignment of vm_register"][::core::mem::align_of::<vm_register>() - 8usize];
    ["Offset of field: vm_register::cpuid"][::core::mem::offset_of!(vm_register, cpuid) - 0usize];
    ["Offset of field: vm_register::regnum"][::core::mem::offset_of!(vm_register, regnum) - 4usize];
    ["Offset of field: vm_register::regval"][::core::mem::offset_of!(vm_register, regval) - 8usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_seg_desc {
    pub cpuid: ::core::ffi::c_int,
    pub regnum: ::core::ffi::c_int,
    pub desc: seg_desc,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_seg_desc"][::core::mem::size_of::<vm_seg_desc>() - 24usize];
    ["Alignment of vm_seg_desc"][::core::mem::align_of::<vm_seg_desc>() - 8usize];
    ["Offset of field: vm_seg_desc::cpuid"][::core::mem::offset_of!(vm_seg_desc, cpuid) - 0usize];
    ["Offset of field: vm_seg_desc::regnum"][::core::mem::offset_of!(vm_seg_desc, regnum) - 4usize];
    ["Offset of field: vm_seg_desc::desc"][::core::mem::offset_of!(vm_seg_desc, desc) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_register_set {
    pub cpuid: ::core::ffi::c_int,
    pub count: ::core::ffi::c_uint,
    pub regnums: *const ::core::ffi::c_int,
    pub regvals: *mut u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_register_set"][::core::mem::size_of::<vm_register_set>() - 24usize];
    ["Alignment of vm_register_set"][::core::mem::align_of::<vm_register_set>() - 8usize];
    ["Offset of field: vm_register_set::cpuid"]
        [::core::mem::offset_of!(vm_register_set, cpuid) - 0usize];
    ["Offset of field: vm_register_set::count"]
        [::core::mem::offset_of!(vm_register_set, count) - 4usize];
    ["Offset of field: vm_register_set::regnums"]
        [::core::mem::offset_of!(vm_register_set, regnums) - 8usize];
    ["Offset of field: vm_register_set::regvals"]
        [::core::mem::offset_of!(vm_register_set, regvals) - 16usize];
};
impl Default for vm_register_set {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_run {
    pub cpuid: ::core::ffi::c_int,
    pub cpuset: *mut cpuset_t,
    pub cpusetsize: usize,
    pub vm_exit: *mut vm_exit,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_run"][::core::mem::size_of::<vm_run>() - 32usize];
    ["Alignment of vm_run"][::core::mem::align_of::<vm_run>() - 8usize];
    ["Offset of field: vm_run::cpuid"][::core::mem::offset_of!(vm_run, cpuid) - 0usize];
    ["Offset of field: vm_run::cpuset"][::core::mem::offset_of!(vm_run, cpuset) - 8usize];
    ["Offset of field: vm_run::cpusetsize"][::core::mem::offset_of!(vm_run, cpusetsize) - 16usize];
    ["Offset of field: vm_run::vm_exit"][::core::mem::offset_of!(vm_run, vm_exit) - 24usize];
};
impl Default for vm_run {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_exception {
    pub cpuid: ::core::ffi::c_int,
    pub vector: ::core::ffi::c_int,
    pub error_code: u32,
    pub error_code_valid: ::core::ffi::c_int,
    pub restart_instruction: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_exception"][::core::mem::size_of::<vm_exception>() - 20usize];
    ["Alignment of vm_exception"][::core::mem::align_of::<vm_exception>() - 4usize];
    ["Offset of field: vm_exception::cpuid"][::core::mem::offset_of!(vm_exception, cpuid) - 0usize];
    ["Offset of field: vm_exception::vector"]
        [::core::mem::offset_of!(vm_exception, vector) - 4usize];
    ["Offset of field: vm_exception::error_code"]
        [::core::mem::offset_of!(vm_exception, error_code) - 8usize];
    ["Offset of field: vm_exception::error_code_valid"]
        [::core::mem::offset_of!(vm_exception, error_code_valid) - 12usize];
    ["Offset of field: vm_exception::restart_instruction"]
        [::core::mem::offset_of!(vm_exception, restart_instruction) - 16usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_lapic_msi {
    pub msg: u64,
    pub addr: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_lapic_msi"][::core::mem::size_of::<vm_lapic_msi>() - 16usize];
    ["Alignment of vm_lapic_msi"][::core::mem::align_of::<vm_lapic_msi>() - 8usize];
    ["Offset of field: vm_lapic_msi::msg"][::core::mem::offset_of!(vm_lapic_msi, msg) - 0usize];
    ["Offset of field: vm_lapic_msi::addr"][::core::mem::offset_of!(vm_lapic_msi, addr) - 8usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_lapic_irq {
    pub cpuid: ::core::ffi::c_int,
    pub vector: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_lapic_irq"][::core::mem::size_of::<vm_lapic_irq>() - 8usize];
    ["Alignment of vm_lapic_irq"][::core::mem::align_of::<vm_lapic_irq>() - 4usize];
    ["Offset of field: vm_lapic_irq::cpuid"][::core::mem::offset_of!(vm_lapic_irq, cpuid) - 0usize];
    ["Offset of field: vm_lapic_irq::vector"]
        [::core::mem::offset_of!(vm_lapic_irq, vector) - 4usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_ioapic_irq {
    pub irq: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_ioapic_irq"][::core::mem::size_of::<vm_ioapic_irq>() - 4usize];
    ["Alignment of vm_ioapic_irq"][::core::mem::align_of::<vm_ioapic_irq>() - 4usize];
    ["Offset of field: vm_ioapic_irq::irq"][::core::mem::offset_of!(vm_ioapic_irq, irq) - 0usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_isa_irq {
    pub atpic_irq: ::core::ffi::c_int,
    pub ioapic_irq: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_isa_irq"][::core::mem::size_of::<vm_isa_irq>() - 8usize];
    ["Alignment of vm_isa_irq"][::core::mem::align_of::<vm_isa_irq>() - 4usize];
    ["Offset of field: vm_isa_irq::atpic_irq"]
        [::core::mem::offset_of!(vm_isa_irq, atpic_irq) - 0usize];
    ["Offset of field: vm_isa_irq::ioapic_irq"]
        [::core::mem::offset_of!(vm_isa_irq, ioapic_irq) - 4usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_isa_irq_trigger {
    pub atpic_irq: ::core::ffi::c_int,
    pub trigger: vm_intr_trigger,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_isa_irq_trigger"][::core::mem::size_of::<vm_isa_irq_trigger>() - 8usize];
    ["Alignment of vm_isa_irq_trigger"][::core::mem::align_of::<vm_isa_irq_trigger>() - 4usize];
    ["Offset of field: vm_isa_irq_trigger::atpic_irq"]
        [::core::mem::offset_of!(vm_isa_irq_trigger, atpic_irq) - 0usize];
    ["Offset of field: vm_isa_irq_trigger::trigger"]
        [::core::mem::offset_of!(vm_isa_irq_trigger, trigger) - 4usize];
};
impl Default for vm_isa_irq_trigger {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_capability {
    pub cpuid: ::core::ffi::c_int,
    pub captype: vm_cap_type,
    pub capval: ::core::ffi::c_int,
    pub allcpus: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_capability"][::core::mem::size_of::<vm_capability>() - 16usize];
    ["Alignment of vm_capability"][::core::mem::align_of::<vm_capability>() - 4usize];
    ["Offset of field: vm_capability::cpuid"]
        [::core::mem::offset_of!(vm_capability, cpuid) - 0usize];
    ["Offset of field: vm_capability::captype"]
        [::core::mem::offset_of!(vm_capability, captype) - 4usize];
    ["Offset of field: vm_capability::capval"]
        [::core::mem::offset_of!(vm_capability, capval) - 8usize];
    ["Offset of field: vm_capability::allcpus"]
        [::core::mem::offset_of!(vm_capability, allcpus) - 12usize];
};
impl Default for vm_capability {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_pptdev {
    pub bus: ::core::ffi::c_int,
    pub slot: ::core::ffi::c_int,
    pub func: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_pptdev"][::core::mem::size_of::<vm_pptdev>() - 12usize];
    ["Alignment of vm_pptdev"][::core::mem::align_of::<vm_pptdev>() - 4usize];
    ["Offset of field: vm_pptdev::bus"][::core::mem::offset_of!(vm_pptdev, bus) - 0usize];
    ["Offset of field: vm_pptdev::slot"][::core::mem::offset_of!(vm_pptdev, slot) - 4usize];
    ["Offset of field: vm_pptdev::func"][::core::mem::offset_of!(vm_pptdev, func) - 8usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_pptdev_mmio {
    pub bus: ::core::ffi::c_int,
    pub slot: ::core::ffi::c_int,
    pub func: ::core::ffi::c_int,
    pub gpa: vm_paddr_t,
    pub hpa: vm_paddr_t,
    pub len: usize,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_pptdev_mmio"][::core::mem::size_of::<vm_pptdev_mmio>() - 40usize];
    ["Alignment of vm_pptdev_mmio"][::core::mem::align_of::<vm_pptdev_mmio>() - 8usize];
    ["Offset of field: vm_pptdev_mmio::bus"][::core::mem::offset_of!(vm_pptdev_mmio, bus) - 0usize];
    ["Offset of field: vm_pptdev_mmio::slot"]
        [::core::mem::offset_of!(vm_pptdev_mmio, slot) - 4usize];
    ["Offset of field: vm_pptdev_mmio::func"]
        [::core::mem::offset_of!(vm_pptdev_mmio, func) - 8usize];
    ["Offset of field: vm_pptdev_mmio::gpa"]
        [::core::mem::offset_of!(vm_pptdev_mmio, gpa) - 16usize];
    ["Offset of field: vm_pptdev_mmio::hpa"]
        [::core::mem::offset_of!(vm_pptdev_mmio, hpa) - 24usize];
    ["Offset of field: vm_pptdev_mmio::len"]
        [::core::mem::offset_of!(vm_pptdev_mmio, len) - 32usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_pptdev_msi {
    pub vcpu: ::core::ffi::c_int,
    pub bus: ::core::ffi::c_int,
    pub slot: ::core::ffi::c_int,
    pub func: ::core::ffi::c_int,
    pub numvec: ::core::ffi::c_int,
    pub msg: u64,
    pub addr: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_pptdev_msi"][::core::mem::size_of::<vm_pptdev_msi>() - 40usize];
    ["Alignment of vm_pptdev_msi"][::core::mem::align_of::<vm_pptdev_msi>() - 8usize];
    ["Offset of field: vm_pptdev_msi::vcpu"][::core::mem::offset_of!(vm_pptdev_msi, vcpu) - 0usize];
    ["Offset of field: vm_pptdev_msi::bus"][::core::mem::offset_of!(vm_pptdev_msi, bus) - 4usize];
    ["Offset of field: vm_pptdev_msi::slot"][::core::mem::offset_of!(vm_pptdev_msi, slot) - 8usize];
    ["Offset of field: vm_pptdev_msi::func"]
        [::core::mem::offset_of!(vm_pptdev_msi, func) - 12usize];
    ["Offset of field: vm_pptdev_msi::numvec"]
        [::core::mem::offset_of!(vm_pptdev_msi, numvec) - 16usize];
    ["Offset of field: vm_pptdev_msi::msg"][::core::mem::offset_of!(vm_pptdev_msi, msg) - 24usize];
    ["Offset of field: vm_pptdev_msi::addr"]
        [::core::mem::offset_of!(vm_pptdev_msi, addr) - 32usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_pptdev_msix {
    pub vcpu: ::core::ffi::c_int,
    pub bus: ::core::ffi::c_int,
    pub slot: ::core::ffi::c_int,
    pub func: ::core::ffi::c_int,
    pub idx: ::core::ffi::c_int,
    pub msg: u64,
    pub vector_control: u32,
    pub addr: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_pptdev_msix"][::core::mem::size_of::<vm_pptdev_msix>() - 48usize];
    ["Alignment of vm_pptdev_msix"][::core::mem::align_of::<vm_pptdev_msix>() - 8usize];
    ["Offset of field: vm_pptdev_msix::vcpu"]
        [::core::mem::offset_of!(vm_pptdev_msix, vcpu) - 0usize];
    ["Offset of field: vm_pptdev_msix::bus"][::core::mem::offset_of!(vm_pptdev_msix, bus) - 4usize];
    ["Offset of field: vm_pptdev_msix::slot"]
        [::core::mem::offset_of!(vm_pptdev_msix, slot) - 8usize];
    ["Offset of field: vm_pptdev_msix::func"]
        [::core::mem::offset_of!(vm_pptdev_msix, func) - 12usize];
    ["Offset of field: vm_pptdev_msix::idx"]
        [::core::mem::offset_of!(vm_pptdev_msix, idx) - 16usize];
    ["Offset of field: vm_pptdev_msix::msg"]
        [::core::mem::offset_of!(vm_pptdev_msix, msg) - 24usize];
    ["Offset of field: vm_pptdev_msix::vector_control"]
        [::core::mem::offset_of!(vm_pptdev_msix, vector_control) - 32usize];
    ["Offset of field: vm_pptdev_msix::addr"]
        [::core::mem::offset_of!(vm_pptdev_msix, addr) - 40usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_nmi {
    pub cpuid: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_nmi"][::core::mem::size_of::<vm_nmi>() - 4usize];
    ["Alignment of vm_nmi"][::core::mem::align_of::<vm_nmi>() - 4usize];
    ["Offset of field: vm_nmi::cpuid"][::core::mem::offset_of!(vm_nmi, cpuid) - 0usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_stats {
    pub cpuid: ::core::ffi::c_int,
    pub index: ::core::ffi::c_int,
    pub num_entries: ::core::ffi::c_int,
    pub tv: timeval,
    pub statbuf: [u64; 64usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_stats"][::core::mem::size_of::<vm_stats>() - 544usize];
    ["Alignment of vm_stats"][::core::mem::align_of::<vm_stats>() - 8usize];
    ["Offset of field: vm_stats::cpuid"][::core::mem::offset_of!(vm_stats, cpuid) - 0usize];
    ["Offset of field: vm_stats::index"][::core::mem::offset_of!(vm_stats, index) - 4usize];
    ["Offset of field: vm_stats::num_entries"]
        [::core::mem::offset_of!(vm_stats, num_entries) - 8usize];
    ["Offset of field: vm_stats::tv"][::core::mem::offset_of!(vm_stats, tv) - 16usize];
    ["Offset of field: vm_stats::statbuf"][::core::mem::offset_of!(vm_stats, statbuf) - 32usize];
};
impl Default for vm_stats {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_stat_desc {
    pub index: ::core::ffi::c_int,
    pub desc: [::core::ffi::c_char; 128usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_stat_desc"][::core::mem::size_of::<vm_stat_desc>() - 132usize];
    ["Alignment of vm_stat_desc"][::core::mem::align_of::<vm_stat_desc>() - 4usize];
    ["Offset of field: vm_stat_desc::index"][::core::mem::offset_of!(vm_stat_desc, index) - 0usize];
    ["Offset of field: vm_stat_desc::desc"][::core::mem::offset_of!(vm_stat_desc, desc) - 4usize];
};
impl Default for vm_stat_desc {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_x2apic {
    pub cpuid: ::core::ffi::c_int,
    pub state: x2apic_state,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_x2apic"][::core::mem::size_of::<vm_x2apic>() - 8usize];
    ["Alignment of vm_x2apic"][::core::mem::align_of::<vm_x2apic>() - 4usize];
    ["Offset of field: vm_x2apic::cpuid"][::core::mem::offset_of!(vm_x2apic, cpuid) - 0usize];
    ["Offset of field: vm_x2apic::state"][::core::mem::offset_of!(vm_x2apic, state) - 4usize];
};
impl Default for vm_x2apic {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_gpa_pte {
    pub gpa: u64,
    pub pte: [u64; 4usize],
    pub ptenum: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_gpa_pte"][::core::mem::size_of::<vm_gpa_pte>() - 48usize];
    ["Alignment of vm_gpa_pte"][::core::mem::align_of::<vm_gpa_pte>() - 8usize];
    ["Offset of field: vm_gpa_pte::gpa"][::core::mem::offset_of!(vm_gpa_pte, gpa) - 0usize];
    ["Offset of field: vm_gpa_pte::pte"][::core::mem::offset_of!(vm_gpa_pte, pte) - 8usize];
    ["Offset of field: vm_gpa_pte::ptenum"][::core::mem::offset_of!(vm_gpa_pte, ptenum) - 40usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_hpet_cap {
    pub capabilities: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_hpet_cap"][::core::mem::size_of::<vm_hpet_cap>() - 4usize];
    ["Alignment of vm_hpet_cap"][::core::mem::align_of::<vm_hpet_cap>() - 4usize];
    ["Offset of field: vm_hpet_cap::capabilities"]
        [::core::mem::offset_of!(vm_hpet_cap, capabilities) - 0usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_suspend {
    pub how: vm_suspend_how,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_suspend"][::core::mem::size_of::<vm_suspend>() - 4usize];
    ["Alignment of vm_suspend"][::core::mem::align_of::<vm_suspend>() - 4usize];
    ["Offset of field: vm_suspend::how"][::core::mem::offset_of!(vm_suspend, how) - 0usize];
};
impl Default for vm_suspend {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_gla2gpa {
    pub vcpuid: ::core::ffi::c_int,
    pub prot: ::core::ffi::c_int,
    pub gla: u64,
    pub paging: vm_guest_paging,
    pub fault: ::core::ffi::c_int,
    pub gpa: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_gla2gpa"][::core::mem::size_of::<vm_gla2gpa>() - 56usize];
    ["Alignment of vm_gla2gpa"][::core::mem::align_of::<vm_gla2gpa>() - 8usize];
    ["Offset of field: vm_gla2gpa::vcpuid"][::core::mem::offset_of!(vm_gla2gpa, vcpuid) - 0usize];
    ["Offset of field: vm_gla2gpa::prot"][::core::mem::offset_of!(vm_gla2gpa, prot) - 4usize];
    ["Offset of field: vm_gla2gpa::gla"][::core::mem::offset_of!(vm_gla2gpa, gla) - 8usize];
    ["Offset of field: vm_gla2gpa::paging"][::core::mem::offset_of!(vm_gla2gpa, paging) - 16usize];
    ["Offset of field: vm_gla2gpa::fault"][::core::mem::offset_of!(vm_gla2gpa, fault) - 40usize];
    ["Offset of field: vm_gla2gpa::gpa"][::core::mem::offset_of!(vm_gla2gpa, gpa) - 48usize];
};
impl Default for vm_gla2gpa {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_activate_cpu {
    pub vcpuid: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_activate_cpu"][::core::mem::size_of::<vm_activate_cpu>() - 4usize];
    ["Alignment of vm_activate_cpu"][::core::mem::align_of::<vm_activate_cpu>() - 4usize];
    ["Offset of field: vm_activate_cpu::vcpuid"]
        [::core::mem::offset_of!(vm_activate_cpu, vcpuid) - 0usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vm_cpuset {
    pub which: ::core::ffi::c_int,
    pub cpusetsize: ::core::ffi::c_int,
    pub cpus: *mut cpuset_t,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_cpuset"][::core::mem::size_of::<vm_cpuset>() - 16usize];
    ["Alignment of vm_cpuset"][::core::mem::align_of::<vm_cpuset>() - 8usize];
    ["Offset of field: vm_cpuset::which"][::core::mem::offset_of!(vm_cpuset, which) - 0usize];
    ["Offset of field: vm_cpuset::cpusetsize"]
        [::core::mem::offset_of!(vm_cpuset, cpusetsize) - 4usize];
    ["Offset of field: vm_cpuset::cpus"][::core::mem::offset_of!(vm_cpuset, cpus) - 8usize];
};
impl Default for vm_cpuset {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_intinfo {
    pub vcpuid: ::core::ffi::c_int,
    pub info1: u64,
    pub info2: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_intinfo"][::core::mem::size_of::<vm_intinfo>() - 24usize];
    ["Alignment of vm_intinfo"][::core::mem::align_of::<vm_intinfo>() - 8usize];
    ["Offset of field: vm_intinfo::vcpuid"][::core::mem::offset_of!(vm_intinfo, vcpuid) - 0usize];
    ["Offset of field: vm_intinfo::info1"][::core::mem::offset_of!(vm_intinfo, info1) - 8usize];
    ["Offset of field: vm_intinfo::info2"][::core::mem::offset_of!(vm_intinfo, info2) - 16usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_rtc_time {
    pub secs: time_t,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_rtc_time"][::core::mem::size_of::<vm_rtc_time>() - 8usize];
    ["Alignment of vm_rtc_time"][::core::mem::align_of::<vm_rtc_time>() - 8usize];
    ["Offset of field: vm_rtc_time::secs"][::core::mem::offset_of!(vm_rtc_time, secs) - 0usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_rtc_data {
    pub offset: ::core::ffi::c_int,
    pub value: u8,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_rtc_data"][::core::mem::size_of::<vm_rtc_data>() - 8usize];
    ["Alignment of vm_rtc_data"][::core::mem::align_of::<vm_rtc_data>() - 4usize];
    ["Offset of field: vm_rtc_data::offset"][::core::mem::offset_of!(vm_rtc_data, offset) - 0usize];
    ["Offset of field: vm_rtc_data::value"][::core::mem::offset_of!(vm_rtc_data, value) - 4usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_cpu_topology {
    pub sockets: u16,
    pub cores: u16,
    pub threads: u16,
    pub maxcpus: u16,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_cpu_topology"][::core::mem::size_of::<vm_cpu_topology>() - 8usize];
    ["Alignment of vm_cpu_topology"][::core::mem::align_of::<vm_cpu_topology>() - 2usize];
    ["Offset of field: vm_cpu_topology::sockets"]
        [::core::mem::offset_of!(vm_cpu_topology, sockets) - 0usize];
    ["Offset of field: vm_cpu_topology::cores"]
        [::core::mem::offset_of!(vm_cpu_topology, cores) - 2usize];
    ["Offset of field: vm_cpu_topology::threads"]
        [::core::mem::offset_of!(vm_cpu_topology, threads) - 4usize];
    ["Offset of field: vm_cpu_topology::maxcpus"]
        [::core::mem::offset_of!(vm_cpu_topology, maxcpus) - 6usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_readwrite_kernemu_device {
    pub _bindgen_align: [u64; 0],
    pub _bindgen_opaque_blob: __BindgenOpaqueArray8<[u8; 24usize]>,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_readwrite_kernemu_device"]
        [::core::mem::size_of::<vm_readwrite_kernemu_device>() - 24usize];
    ["Alignment of vm_readwrite_kernemu_device"]
        [::core::mem::align_of::<vm_readwrite_kernemu_device>() - 8usize];
};
pub const IOCNUM_ABIVERS: _bindgen_ty_1 = 0;
pub const IOCNUM_RUN: _bindgen_ty_1 = 1;
pub const IOCNUM_SET_CAPABILITY: _bindgen_ty_1 = 2;
pub const IOCNUM_GET_CAPABILITY: _bindgen_ty_1 = 3;
pub const IOCNUM_SUSPEND: _bindgen_ty_1 = 4;
pub const IOCNUM_REINIT: _bindgen_ty_1 = 5;
pub const IOCNUM_MAP_MEMORY: _bindgen_ty_1 = 10;
pub const IOCNUM_GET_MEMORY_SEG: _bindgen_ty_1 = 11;
pub const IOCNUM_GET_GPA_PMAP: _bindgen_ty_1 = 12;
pub const IOCNUM_GLA2GPA: _bindgen_ty_1 = 13;
pub const IOCNUM_ALLOC_MEMSEG: _bindgen_ty_1 = 14;
pub const IOCNUM_GET_MEMSEG: _bindgen_ty_1 = 15;
pub const IOCNUM_MMAP_MEMSEG: _bindgen_ty_1 = 16;
pub const IOCNUM_MMAP_GETNEXT: _bindgen_ty_1 = 17;
pub const IOCNUM_GLA2GPA_NOFAULT: _bindgen_ty_1 = 18;
pub const IOCNUM_MUNMAP_MEMSEG: _bindgen_ty_1 = 19;
pub const IOCNUM_SET_REGISTER: _bindgen_ty_1 = 20;
pub const IOCNUM_GET_REGISTER: _bindgen_ty_1 = 21;
pub const IOCNUM_SET_SEGMENT_DESCRIPTOR: _bindgen_ty_1 = 22;
pub const IOCNUM_GET_SEGMENT_DESCRIPTOR: _bindgen_ty_1 = 23;
pub const IOCNUM_SET_REGISTER_SET: _bindgen_ty_1 = 24;
pub const IOCNUM_GET_REGISTER_SET: _bindgen_ty_1 = 25;
pub const IOCNUM_GET_KERNEMU_DEV: _bindgen_ty_1 = 26;
pub const IOCNUM_SET_KERNEMU_DEV: _bindgen_ty_1 = 27;
pub const IOCNUM_GET_INTINFO: _bindgen_ty_1 = 28;
pub const IOCNUM_SET_INTINFO: _bindgen_ty_1 = 29;
pub const IOCNUM_INJECT_EXCEPTION: _bindgen_ty_1 = 30;
pub const IOCNUM_LAPIC_IRQ: _bindgen_ty_1 = 31;
pub const IOCNUM_INJECT_NMI: _bindgen_ty_1 = 32;
pub const IOCNUM_IOAPIC_ASSERT_IRQ: _bindgen_ty_1 = 33;
pub const IOCNUM_IOAPIC_DEASSERT_IRQ: _bindgen_ty_1 = 34;
pub const IOCNUM_IOAPIC_PULSE_IRQ: _bindgen_ty_1 = 35;
pub const IOCNUM_LAPIC_MSI: _bindgen_ty_1 = 36;
pub const IOCNUM_LAPIC_LOCAL_IRQ: _bindgen_ty_1 = 37;
pub const IOCNUM_IOAPIC_PINCOUNT: _bindgen_ty_1 = 38;
pub const IOCNUM_RESTART_INSTRUCTION: _bindgen_ty_1 = 39;
pub const IOCNUM_BIND_PPTDEV: _bindgen_ty_1 = 40;
pub const IOCNUM_UNBIND_PPTDEV: _bindgen_ty_1 = 41;
pub const IOCNUM_MAP_PPTDEV_MMIO: _bindgen_ty_1 = 42;
pub const IOCNUM_PPTDEV_MSI: _bindgen_ty_1 = 43;
pub const IOCNUM_PPTDEV_MSIX: _bindgen_ty_1 = 44;
pub const IOCNUM_PPTDEV_DISABLE_MSIX: _bindgen_ty_1 = 45;
pub const IOCNUM_UNMAP_PPTDEV_MMIO: _bindgen_ty_1 = 46;
pub const IOCNUM_VM_STATS: _bindgen_ty_1 = 50;
pub const IOCNUM_VM_STAT_DESC: _bindgen_ty_1 = 51;
pub const IOCNUM_SET_X2APIC_STATE: _bindgen_ty_1 = 60;
pub const IOCNUM_GET_X2APIC_STATE: _bindgen_ty_1 = 61;
pub const IOCNUM_GET_HPET_CAPABILITIES: _bindgen_ty_1 = 62;
pub const IOCNUM_SET_TOPOLOGY: _bindgen_ty_1 = 63;
pub const IOCNUM_GET_TOPOLOGY: _bindgen_ty_1 = 64;
pub const IOCNUM_ISA_ASSERT_IRQ: _bindgen_ty_1 = 80;
pub const IOCNUM_ISA_DEASSERT_IRQ: _bindgen_ty_1 = 81;
pub const IOCNUM_ISA_PULSE_IRQ: _bindgen_ty_1 = 82;
pub const IOCNUM_ISA_SET_IRQ_TRIGGER: _bindgen_ty_1 = 83;
pub const IOCNUM_ACTIVATE_CPU: _bindgen_ty_1 = 90;
pub const IOCNUM_GET_CPUSET: _bindgen_ty_1 = 91;
pub const IOCNUM_SUSPEND_CPU: _bindgen_ty_1 = 92;
pub const IOCNUM_RESUME_CPU: _bindgen_ty_1 = 93;
pub const IOCNUM_RTC_READ: _bindgen_ty_1 = 100;
pub const IOCNUM_RTC_WRITE: _bindgen_ty_1 = 101;
pub const IOCNUM_RTC_SETTIME: _bindgen_ty_1 = 102;
pub const IOCNUM_RTC_GETTIME: _bindgen_ty_1 = 103;
pub const IOCNUM_SNAPSHOT_REQ: _bindgen_ty_1 = 113;
pub const IOCNUM_RESTORE_TIME: _bindgen_ty_1 = 115;
pub type _bindgen_ty_1 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vmmctl_vm_create {
    pub name: [::core::ffi::c_char; 230usize],
    pub flags: u32,
    pub reserved: [::core::ffi::c_int; 15usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmmctl_vm_create"][::core::mem::size_of::<vmmctl_vm_create>() - 296usize];
    ["Alignment of vmmctl_vm_create"][::core::mem::align_of::<vmmctl_vm_create>() - 4usize];
    ["Offset of field: vmmctl_vm_create::name"]
        [::core::mem::offset_of!(vmmctl_vm_create, name) - 0usize];
    ["Offset of field: vmmctl_vm_create::flags"]
        [::core::mem::offset_of!(vmmctl_vm_create, flags) - 232usize];
    ["Offset of field: vmmctl_vm_create::reserved"]
        [::core::mem::offset_of!(vmmctl_vm_create, reserved) - 236usize];
};
impl Default for vmmctl_vm_create {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct vmmctl_vm_destroy {
    pub name: [::core::ffi::c_char; 230usize],
    pub reserved: [::core::ffi::c_int; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vmmctl_vm_destroy"][::core::mem::size_of::<vmmctl_vm_destroy>() - 296usize];
    ["Alignment of vmmctl_vm_destroy"][::core::mem::align_of::<vmmctl_vm_destroy>() - 4usize];
    ["Offset of field: vmmctl_vm_destroy::name"]
        [::core::mem::offset_of!(vmmctl_vm_destroy, name) - 0usize];
    ["Offset of field: vmmctl_vm_destroy::reserved"]
        [::core::mem::offset_of!(vmmctl_vm_destroy, reserved) - 232usize];
};
impl Default for vmmctl_vm_destroy {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
pub const VM_SYSMEM: _bindgen_ty_2 = 0;
pub const VM_BOOTROM: _bindgen_ty_2 = 8;
pub const VM_FRAMEBUFFER: _bindgen_ty_2 = 9;
pub const VM_PCIROM: _bindgen_ty_2 = 10;
pub type _bindgen_ty_2 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_vnode_caps {
    pub version: u32,
    pub features: u32,
    pub page_size: u64,
    pub reserved: [u64; 6usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_vnode_caps"][::core::mem::size_of::<vm_vnode_caps>() - 64usize];
    ["Alignment of vm_vnode_caps"][::core::mem::align_of::<vm_vnode_caps>() - 8usize];
    ["Offset of field: vm_vnode_caps::version"]
        [::core::mem::offset_of!(vm_vnode_caps, version) - 0usize];
    ["Offset of field: vm_vnode_caps::features"]
        [::core::mem::offset_of!(vm_vnode_caps, features) - 4usize];
    ["Offset of field: vm_vnode_caps::page_size"]
        [::core::mem::offset_of!(vm_vnode_caps, page_size) - 8usize];
    ["Offset of field: vm_vnode_caps::reserved"]
        [::core::mem::offset_of!(vm_vnode_caps, reserved) - 16usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_vnode_attach {
    pub version: u32,
    pub flags: u32,
    pub segid: i32,
    pub fd: i32,
    pub offset: i64,
    pub len: u64,
    pub reserved: [u64; 4usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_vnode_attach"][::core::mem::size_of::<vm_vnode_attach>() - 64usize];
    ["Alignment of vm_vnode_attach"][::core::mem::align_of::<vm_vnode_attach>() - 8usize];
    ["Offset of field: vm_vnode_attach::version"]
        [::core::mem::offset_of!(vm_vnode_attach, version) - 0usize];
    ["Offset of field: vm_vnode_attach::flags"]
        [::core::mem::offset_of!(vm_vnode_attach, flags) - 4usize];
    ["Offset of field: vm_vnode_attach::segid"]
        [::core::mem::offset_of!(vm_vnode_attach, segid) - 8usize];
    ["Offset of field: vm_vnode_attach::fd"]
        [::core::mem::offset_of!(vm_vnode_attach, fd) - 12usize];
    ["Offset of field: vm_vnode_attach::offset"]
        [::core::mem::offset_of!(vm_vnode_attach, offset) - 16usize];
    ["Offset of field: vm_vnode_attach::len"]
        [::core::mem::offset_of!(vm_vnode_attach, len) - 24usize];
    ["Offset of field: vm_vnode_attach::reserved"]
        [::core::mem::offset_of!(vm_vnode_attach, reserved) - 32usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct vm_vnode_stats {
    pub version: u32,
    pub segid: i32,
    pub offset: i64,
    pub pages: u64,
    pub private_resident: u64,
    pub private_swapped: u64,
    pub file_resident: u64,
    pub guest_mapped: u64,
    pub state: u64,
    pub reserved: [u64; 3usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of vm_vnode_stats"][::core::mem::size_of::<vm_vnode_stats>() - 88usize];
    ["Alignment of vm_vnode_stats"][::core::mem::align_of::<vm_vnode_stats>() - 8usize];
    ["Offset of field: vm_vnode_stats::version"]
        [::core::mem::offset_of!(vm_vnode_stats, version) - 0usize];
    ["Offset of field: vm_vnode_stats::segid"]
        [::core::mem::offset_of!(vm_vnode_stats, segid) - 4usize];
    ["Offset of field: vm_vnode_stats::offset"]
        [::core::mem::offset_of!(vm_vnode_stats, offset) - 8usize];
    ["Offset of field: vm_vnode_stats::pages"]
        [::core::mem::offset_of!(vm_vnode_stats, pages) - 16usize];
    ["Offset of field: vm_vnode_stats::private_resident"]
        [::core::mem::offset_of!(vm_vnode_stats, private_resident) - 24usize];
    ["Offset of field: vm_vnode_stats::private_swapped"]
        [::core::mem::offset_of!(vm_vnode_stats, private_swapped) - 32usize];
    ["Offset of field: vm_vnode_stats::file_resident"]
        [::core::mem::offset_of!(vm_vnode_stats, file_resident) - 40usize];
    ["Offset of field: vm_vnode_stats::guest_mapped"]
        [::core::mem::offset_of!(vm_vnode_stats, guest_mapped) - 48usize];
    ["Offset of field: vm_vnode_stats::state"]
        [::core::mem::offset_of!(vm_vnode_stats, state) - 56usize];
    ["Offset of field: vm_vnode_stats::reserved"]
        [::core::mem::offset_of!(vm_vnode_stats, reserved) - 64usize];
};
pub const REQUEST_VM_RUN: ::core::ffi::c_ulong = 2149611009;
pub const REQUEST_VM_SUSPEND: ::core::ffi::c_ulong = 2147776004;
pub const REQUEST_VM_REINIT: ::core::ffi::c_ulong = 536901125;
pub const REQUEST_VM_ALLOC_MEMSEG: ::core::ffi::c_ulong = 2151183886;
pub const REQUEST_VM_GET_MEMSEG: ::core::ffi::c_ulong = 3224925711;
pub const REQUEST_VM_MMAP_MEMSEG: ::core::ffi::c_ulong = 2150135312;
pub const REQUEST_VM_MMAP_GETNEXT: ::core::ffi::c_ulong = 3223877137;
pub const REQUEST_VM_MUNMAP_MEMSEG: ::core::ffi::c_ulong = 2148562451;
pub const REQUEST_VM_SET_REGISTER: ::core::ffi::c_ulong = 2148562452;
pub const REQUEST_VM_GET_REGISTER: ::core::ffi::c_ulong = 3222304277;
pub const REQUEST_VM_SET_SEGMENT_DESCRIPTOR: ::core::ffi::c_ulong = 2149086742;
pub const REQUEST_VM_GET_SEGMENT_DESCRIPTOR: ::core::ffi::c_ulong = 3222828567;
pub const REQUEST_VM_SET_REGISTER_SET: ::core::ffi::c_ulong = 2149086744;
pub const REQUEST_VM_GET_REGISTER_SET: ::core::ffi::c_ulong = 3222828569;
pub const REQUEST_VM_SET_KERNEMU_DEV: ::core::ffi::c_ulong = 2149086747;
pub const REQUEST_VM_GET_KERNEMU_DEV: ::core::ffi::c_ulong = 3222828570;
pub const REQUEST_VM_INJECT_EXCEPTION: ::core::ffi::c_ulong = 2148824606;
pub const REQUEST_VM_LAPIC_IRQ: ::core::ffi::c_ulong = 2148038175;
pub const REQUEST_VM_LAPIC_LOCAL_IRQ: ::core::ffi::c_ulong = 2148038181;
pub const REQUEST_VM_LAPIC_MSI: ::core::ffi::c_ulong = 2148562468;
pub const REQUEST_VM_IOAPIC_ASSERT_IRQ: ::core::ffi::c_ulong = 2147776033;
pub const REQUEST_VM_IOAPIC_DEASSERT_IRQ: ::core::ffi::c_ulong = 2147776034;
pub const REQUEST_VM_IOAPIC_PULSE_IRQ: ::core::ffi::c_ulong = 2147776035;
pub const REQUEST_VM_IOAPIC_PINCOUNT: ::core::ffi::c_ulong = 1074034214;
pub const REQUEST_VM_ISA_ASSERT_IRQ: ::core::ffi::c_ulong = 2148038224;
pub const REQUEST_VM_ISA_DEASSERT_IRQ: ::core::ffi::c_ulong = 2148038225;
pub const REQUEST_VM_ISA_PULSE_IRQ: ::core::ffi::c_ulong = 2148038226;
pub const REQUEST_VM_ISA_SET_IRQ_TRIGGER: ::core::ffi::c_ulong = 2148038227;
pub const REQUEST_VM_SET_CAPABILITY: ::core::ffi::c_ulong = 2148562434;
pub const REQUEST_VM_GET_CAPABILITY: ::core::ffi::c_ulong = 3222304259;
pub const REQUEST_VM_BIND_PPTDEV: ::core::ffi::c_ulong = 2148300328;
pub const REQUEST_VM_UNBIND_PPTDEV: ::core::ffi::c_ulong = 2148300329;
pub const REQUEST_VM_MAP_PPTDEV_MMIO: ::core::ffi::c_ulong = 2150135338;
pub const REQUEST_VM_PPTDEV_MSI: ::core::ffi::c_ulong = 2150135339;
pub const REQUEST_VM_PPTDEV_MSIX: ::core::ffi::c_ulong = 2150659628;
pub const REQUEST_VM_PPTDEV_DISABLE_MSIX: ::core::ffi::c_ulong = 2148300333;
pub const REQUEST_VM_UNMAP_PPTDEV_MMIO: ::core::ffi::c_ulong = 2150135342;
pub const REQUEST_VM_INJECT_NMI: ::core::ffi::c_ulong = 2147776032;
pub const REQUEST_VM_STATS: ::core::ffi::c_ulong = 3256907314;
pub const REQUEST_VM_STAT_DESC: ::core::ffi::c_ulong = 3229906483;
pub const REQUEST_VM_SET_X2APIC_STATE: ::core::ffi::c_ulong = 2148038204;
pub const REQUEST_VM_GET_X2APIC_STATE: ::core::ffi::c_ulong = 3221780029;
pub const REQUEST_VM_GET_HPET_CAPABILITIES: ::core::ffi::c_ulong = 1074034238;
pub const REQUEST_VM_SET_TOPOLOGY: ::core::ffi::c_ulong = 2148038207;
pub const REQUEST_VM_GET_TOPOLOGY: ::core::ffi::c_ulong = 1074296384;
pub const REQUEST_VM_GET_GPA_PMAP: ::core::ffi::c_ulong = 3224401420;
pub const REQUEST_VM_GLA2GPA: ::core::ffi::c_ulong = 3224925709;
pub const REQUEST_VM_GLA2GPA_NOFAULT: ::core::ffi::c_ulong = 3224925714;
pub const REQUEST_VM_ACTIVATE_CPU: ::core::ffi::c_ulong = 2147776090;
pub const REQUEST_VM_GET_CPUS: ::core::ffi::c_ulong = 2148562523;
pub const REQUEST_VM_SUSPEND_CPU: ::core::ffi::c_ulong = 2147776092;
pub const REQUEST_VM_RESUME_CPU: ::core::ffi::c_ulong = 2147776093;
pub const REQUEST_VM_SET_INTINFO: ::core::ffi::c_ulong = 2149086749;
pub const REQUEST_VM_GET_INTINFO: ::core::ffi::c_ulong = 3222828572;
pub const REQUEST_VM_RTC_WRITE: ::core::ffi::c_ulong = 2148038245;
pub const REQUEST_VM_RTC_READ: ::core::ffi::c_ulong = 3221780068;
pub const REQUEST_VM_RTC_SETTIME: ::core::ffi::c_ulong = 2148038246;
pub const REQUEST_VM_RTC_GETTIME: ::core::ffi::c_ulong = 1074296423;
pub const REQUEST_VM_RESTART_INSTRUCTION: ::core::ffi::c_ulong = 2147776039;
pub const REQUEST_VM_SNAPSHOT_REQ: ::core::ffi::c_ulong = 3225450097;
pub const REQUEST_VM_RESTORE_TIME: ::core::ffi::c_ulong = 3221517939;
pub const REQUEST_VMMCTL_VM_CREATE: ::core::ffi::c_ulong = 3240646144;
pub const REQUEST_VMMCTL_VM_DESTROY: ::core::ffi::c_ulong = 3240646145;
pub const REQUEST_VM_VNODE_ATTACH: ::core::ffi::c_ulong = 2151708280;
pub const REQUEST_VM_VNODE_CAPS: ::core::ffi::c_ulong = 1077966460;
pub const REQUEST_VM_VNODE_STATS: ::core::ffi::c_ulong = 3227022973;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct request_arguments {
    pub VM_RUN: vm_run,
    pub VM_SUSPEND: vm_suspend,
    pub VM_ALLOC_MEMSEG: vm_memseg,
    pub VM_GET_MEMSEG: vm_memseg,
    pub VM_MMAP_MEMSEG: vm_memmap,
    pub VM_MMAP_GETNEXT: vm_memmap,
    pub VM_MUNMAP_MEMSEG: vm_munmap,
    pub VM_SET_REGISTER: vm_register,
    pub VM_GET_REGISTER: vm_register,
    pub VM_SET_SEGMENT_DESCRIPTOR: vm_seg_desc,
    pub VM_GET_SEGMENT_DESCRIPTOR: vm_seg_desc,
    pub VM_SET_REGISTER_SET: vm_register_set,
    pub VM_GET_REGISTER_SET: vm_register_set,
    pub VM_SET_KERNEMU_DEV: vm_readwrite_kernemu_device,
    pub VM_GET_KERNEMU_DEV: vm_readwrite_kernemu_device,
    pub VM_INJECT_EXCEPTION: vm_exception,
    pub VM_LAPIC_IRQ: vm_lapic_irq,
    pub VM_LAPIC_LOCAL_IRQ: vm_lapic_irq,
    pub VM_LAPIC_MSI: vm_lapic_msi,
    pub VM_IOAPIC_ASSERT_IRQ: vm_ioapic_irq,
    pub VM_IOAPIC_DEASSERT_IRQ: vm_ioapic_irq,
    pub VM_IOAPIC_PULSE_IRQ: vm_ioapic_irq,
    pub VM_IOAPIC_PINCOUNT: ::core::ffi::c_int,
    pub VM_ISA_ASSERT_IRQ: vm_isa_irq,
    pub VM_ISA_DEASSERT_IRQ: vm_isa_irq,
    pub VM_ISA_PULSE_IRQ: vm_isa_irq,
    pub VM_ISA_SET_IRQ_TRIGGER: vm_isa_irq_trigger,
    pub VM_SET_CAPABILITY: vm_capability,
    pub VM_GET_CAPABILITY: vm_capability,
    pub VM_BIND_PPTDEV: vm_pptdev,
    pub VM_UNBIND_PPTDEV: vm_pptdev,
    pub VM_MAP_PPTDEV_MMIO: vm_pptdev_mmio,
    pub VM_PPTDEV_MSI: vm_pptdev_msi,
    pub VM_PPTDEV_MSIX: vm_pptdev_msix,
    pub VM_PPTDEV_DISABLE_MSIX: vm_pptdev,
    pub VM_UNMAP_PPTDEV_MMIO: vm_pptdev_mmio,
    pub VM_INJECT_NMI: vm_nmi,
    pub VM_STATS: vm_stats,
    pub VM_STAT_DESC: vm_stat_desc,
    pub VM_SET_X2APIC_STATE: vm_x2apic,
    pub VM_GET_X2APIC_STATE: vm_x2apic,
    pub VM_GET_HPET_CAPABILITIES: vm_hpet_cap,
    pub VM_SET_TOPOLOGY: vm_cpu_topology,
    pub VM_GET_TOPOLOGY: vm_cpu_topology,
    pub VM_GET_GPA_PMAP: vm_gpa_pte,
    pub VM_GLA2GPA: vm_gla2gpa,
    pub VM_GLA2GPA_NOFAULT: vm_gla2gpa,
    pub VM_ACTIVATE_CPU: vm_activate_cpu,
    pub VM_GET_CPUS: vm_cpuset,
    pub VM_SUSPEND_CPU: vm_activate_cpu,
    pub VM_RESUME_CPU: vm_activate_cpu,
    pub VM_SET_INTINFO: vm_intinfo,
    pub VM_GET_INTINFO: vm_intinfo,
    pub VM_RTC_WRITE: vm_rtc_data,
    pub VM_RTC_READ: vm_rtc_data,
    pub VM_RTC_SETTIME: vm_rtc_time,
    pub VM_RTC_GETTIME: vm_rtc_time,
    pub VM_RESTART_INSTRUCTION: ::core::ffi::c_int,
    pub VM_SNAPSHOT_REQ: vm_snapshot_meta,
    pub VM_RESTORE_TIME: ::core::ffi::c_int,
    pub VMMCTL_VM_CREATE: vmmctl_vm_create,
    pub VMMCTL_VM_DESTROY: vmmctl_vm_destroy,
    pub VM_VNODE_ATTACH: vm_vnode_attach,
    pub VM_VNODE_CAPS: vm_vnode_caps,
    pub VM_VNODE_STATS: vm_vnode_stats,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of request_arguments"][::core::mem::size_of::<request_arguments>() - 2648usize];
    ["Alignment of request_arguments"][::core::mem::align_of::<request_arguments>() - 8usize];
    ["Offset of field: request_arguments::VM_RUN"]
        [::core::mem::offset_of!(request_arguments, VM_RUN) - 0usize];
    ["Offset of field: request_arguments::VM_SUSPEND"]
        [::core::mem::offset_of!(request_arguments, VM_SUSPEND) - 32usize];
    ["Offset of field: request_arguments::VM_ALLOC_MEMSEG"]
        [::core::mem::offset_of!(request_arguments, VM_ALLOC_MEMSEG) - 40usize];
    ["Offset of field: request_arguments::VM_GET_MEMSEG"]
        [::core::mem::offset_of!(request_arguments, VM_GET_MEMSEG) - 96usize];
    ["Offset of field: request_arguments::VM_MMAP_MEMSEG"]
        [::core::mem::offset_of!(request_arguments, VM_MMAP_MEMSEG) - 152usize];
    ["Offset of field: request_arguments::VM_MMAP_GETNEXT"]
        [::core::mem::offset_of!(request_arguments, VM_MMAP_GETNEXT) - 192usize];
    ["Offset of field: request_arguments::VM_MUNMAP_MEMSEG"]
        [::core::mem::offset_of!(request_arguments, VM_MUNMAP_MEMSEG) - 232usize];
    ["Offset of field: request_arguments::VM_SET_REGISTER"]
        [::core::mem::offset_of!(request_arguments, VM_SET_REGISTER) - 248usize];
    ["Offset of field: request_arguments::VM_GET_REGISTER"]
        [::core::mem::offset_of!(request_arguments, VM_GET_REGISTER) - 264usize];
    ["Offset of field: request_arguments::VM_SET_SEGMENT_DESCRIPTOR"]
        [::core::mem::offset_of!(request_arguments, VM_SET_SEGMENT_DESCRIPTOR) - 280usize];
    ["Offset of field: request_arguments::VM_GET_SEGMENT_DESCRIPTOR"]
        [::core::mem::offset_of!(request_arguments, VM_GET_SEGMENT_DESCRIPTOR) - 304usize];
    ["Offset of field: request_arguments::VM_SET_REGISTER_SET"]
        [::core::mem::offset_of!(request_arguments, VM_SET_REGISTER_SET) - 328usize];
    ["Offset of field: request_arguments::VM_GET_REGISTER_SET"]
        [::core::mem::offset_of!(request_arguments, VM_GET_REGISTER_SET) - 352usize];
    ["Offset of field: request_arguments::VM_SET_KERNEMU_DEV"]
        [::core::mem::offset_of!(request_arguments, VM_SET_KERNEMU_DEV) - 376usize];
    ["Offset of field: request_arguments::VM_GET_KERNEMU_DEV"]
        [::core::mem::offset_of!(request_arguments, VM_GET_KERNEMU_DEV) - 400usize];
    ["Offset of field: request_arguments::VM_INJECT_EXCEPTION"]
        [::core::mem::offset_of!(request_arguments, VM_INJECT_EXCEPTION) - 424usize];
    ["Offset of field: request_arguments::VM_LAPIC_IRQ"]
        [::core::mem::offset_of!(request_arguments, VM_LAPIC_IRQ) - 444usize];
    ["Offset of field: request_arguments::VM_LAPIC_LOCAL_IRQ"]
        [::core::mem::offset_of!(request_arguments, VM_LAPIC_LOCAL_IRQ) - 452usize];
    ["Offset of field: request_arguments::VM_LAPIC_MSI"]
        [::core::mem::offset_of!(request_arguments, VM_LAPIC_MSI) - 464usize];
    ["Offset of field: request_arguments::VM_IOAPIC_ASSERT_IRQ"]
        [::core::mem::offset_of!(request_arguments, VM_IOAPIC_ASSERT_IRQ) - 480usize];
    ["Offset of field: request_arguments::VM_IOAPIC_DEASSERT_IRQ"]
        [::core::mem::offset_of!(request_arguments, VM_IOAPIC_DEASSERT_IRQ) - 484usize];
    ["Offset of field: request_arguments::VM_IOAPIC_PULSE_IRQ"]
        [::core::mem::offset_of!(request_arguments, VM_IOAPIC_PULSE_IRQ) - 488usize];
    ["Offset of field: request_arguments::VM_IOAPIC_PINCOUNT"]
        [::core::mem::offset_of!(request_arguments, VM_IOAPIC_PINCOUNT) - 492usize];
    ["Offset of field: request_arguments::VM_ISA_ASSERT_IRQ"]
        [::core::mem::offset_of!(request_arguments, VM_ISA_ASSERT_IRQ) - 496usize];
    ["Offset of field: request_arguments::VM_ISA_DEASSERT_IRQ"]
        [::core::mem::offset_of!(request_arguments, VM_ISA_DEASSERT_IRQ) - 504usize];
    ["Offset of field: request_arguments::VM_ISA_PULSE_IRQ"]
        [::core::mem::offset_of!(request_arguments, VM_ISA_PULSE_IRQ) - 512usize];
    ["Offset of field: request_arguments::VM_ISA_SET_IRQ_TRIGGER"]
        [::core::mem::offset_of!(request_arguments, VM_ISA_SET_IRQ_TRIGGER) - 520usize];
    ["Offset of field: request_arguments::VM_SET_CAPABILITY"]
        [::core::mem::offset_of!(request_arguments, VM_SET_CAPABILITY) - 528usize];
    ["Offset of field: request_arguments::VM_GET_CAPABILITY"]
        [::core::mem::offset_of!(request_arguments, VM_GET_CAPABILITY) - 544usize];
    ["Offset of field: request_arguments::VM_BIND_PPTDEV"]
        [::core::mem::offset_of!(request_arguments, VM_BIND_PPTDEV) - 560usize];
    ["Offset of field: request_arguments::VM_UNBIND_PPTDEV"]
        [::core::mem::offset_of!(request_arguments, VM_UNBIND_PPTDEV) - 572usize];
    ["Offset of field: request_arguments::VM_MAP_PPTDEV_MMIO"]
        [::core::mem::offset_of!(request_arguments, VM_MAP_PPTDEV_MMIO) - 584usize];
    ["Offset of field: request_arguments::VM_PPTDEV_MSI"]
        [::core::mem::offset_of!(request_arguments, VM_PPTDEV_MSI) - 624usize];
    ["Offset of field: request_arguments::VM_PPTDEV_MSIX"]
        [::core::mem::offset_of!(request_arguments, VM_PPTDEV_MSIX) - 664usize];
    ["Offset of field: request_arguments::VM_PPTDEV_DISABLE_MSIX"]
        [::core::mem::offset_of!(request_arguments, VM_PPTDEV_DISABLE_MSIX) - 712usize];
    ["Offset of field: request_arguments::VM_UNMAP_PPTDEV_MMIO"]
        [::core::mem::offset_of!(request_arguments, VM_UNMAP_PPTDEV_MMIO) - 728usize];
    ["Offset of field: request_arguments::VM_INJECT_NMI"]
        [::core::mem::offset_of!(request_arguments, VM_INJECT_NMI) - 768usize];
    ["Offset of field: request_arguments::VM_STATS"]
        [::core::mem::offset_of!(request_arguments, VM_STATS) - 776usize];
    ["Offset of field: request_arguments::VM_STAT_DESC"]
        [::core::mem::offset_of!(request_arguments, VM_STAT_DESC) - 1320usize];
    ["Offset of field: request_arguments::VM_SET_X2APIC_STATE"]
        [::core::mem::offset_of!(request_arguments, VM_SET_X2APIC_STATE) - 1452usize];
    ["Offset of field: request_arguments::VM_GET_X2APIC_STATE"]
        [::core::mem::offset_of!(request_arguments, VM_GET_X2APIC_STATE) - 1460usize];
    ["Offset of field: request_arguments::VM_GET_HPET_CAPABILITIES"]
        [::core::mem::offset_of!(request_arguments, VM_GET_HPET_CAPABILITIES) - 1468usize];
    ["Offset of field: request_arguments::VM_SET_TOPOLOGY"]
        [::core::mem::offset_of!(request_arguments, VM_SET_TOPOLOGY) - 1472usize];
    ["Offset of field: request_arguments::VM_GET_TOPOLOGY"]
        [::core::mem::offset_of!(request_arguments, VM_GET_TOPOLOGY) - 1480usize];
    ["Offset of field: request_arguments::VM_GET_GPA_PMAP"]
        [::core::mem::offset_of!(request_arguments, VM_GET_GPA_PMAP) - 1488usize];
    ["Offset of field: request_arguments::VM_GLA2GPA"]
        [::core::mem::offset_of!(request_arguments, VM_GLA2GPA) - 1536usize];
    ["Offset of field: request_arguments::VM_GLA2GPA_NOFAULT"]
        [::core::mem::offset_of!(request_arguments, VM_GLA2GPA_NOFAULT) - 1592usize];
    ["Offset of field: request_arguments::VM_ACTIVATE_CPU"]
        [::core::mem::offset_of!(request_arguments, VM_ACTIVATE_CPU) - 1648usize];
    ["Offset of field: request_arguments::VM_GET_CPUS"]
        [::core::mem::offset_of!(request_arguments, VM_GET_CPUS) - 1656usize];
    ["Offset of field: request_arguments::VM_SUSPEND_CPU"]
        [::core::mem::offset_of!(request_arguments, VM_SUSPEND_CPU) - 1672usize];
    ["Offset of field: request_arguments::VM_RESUME_CPU"]
        [::core::mem::offset_of!(request_arguments, VM_RESUME_CPU) - 1676usize];
    ["Offset of field: request_arguments::VM_SET_INTINFO"]
        [::core::mem::offset_of!(request_arguments, VM_SET_INTINFO) - 1680usize];
    ["Offset of field: request_arguments::VM_GET_INTINFO"]
        [::core::mem::offset_of!(request_arguments, VM_GET_INTINFO) - 1704usize];
    ["Offset of field: request_arguments::VM_RTC_WRITE"]
        [::core::mem::offset_of!(request_arguments, VM_RTC_WRITE) - 1728usize];
    ["Offset of field: request_arguments::VM_RTC_READ"]
        [::core::mem::offset_of!(request_arguments, VM_RTC_READ) - 1736usize];
    ["Offset of field: request_arguments::VM_RTC_SETTIME"]
        [::core::mem::offset_of!(request_arguments, VM_RTC_SETTIME) - 1744usize];
    ["Offset of field: request_arguments::VM_RTC_GETTIME"]
        [::core::mem::offset_of!(request_arguments, VM_RTC_GETTIME) - 1752usize];
    ["Offset of field: request_arguments::VM_RESTART_INSTRUCTION"]
        [::core::mem::offset_of!(request_arguments, VM_RESTART_INSTRUCTION) - 1760usize];
    ["Offset of field: request_arguments::VM_SNAPSHOT_REQ"]
        [::core::mem::offset_of!(request_arguments, VM_SNAPSHOT_REQ) - 1768usize];
    ["Offset of field: request_arguments::VM_RESTORE_TIME"]
        [::core::mem::offset_of!(request_arguments, VM_RESTORE_TIME) - 1832usize];
    ["Offset of field: request_arguments::VMMCTL_VM_CREATE"]
        [::core::mem::offset_of!(request_arguments, VMMCTL_VM_CREATE) - 1836usize];
    ["Offset of field: request_arguments::VMMCTL_VM_DESTROY"]
        [::core::mem::offset_of!(request_arguments, VMMCTL_VM_DESTROY) - 2132usize];
    ["Offset of field: request_arguments::VM_VNODE_ATTACH"]
        [::core::mem::offset_of!(request_arguments, VM_VNODE_ATTACH) - 2432usize];
    ["Offset of field: request_arguments::VM_VNODE_CAPS"]
        [::core::mem::offset_of!(request_arguments, VM_VNODE_CAPS) - 2496usize];
    ["Offset of field: request_arguments::VM_VNODE_STATS"]
        [::core::mem::offset_of!(request_arguments, VM_VNODE_STATS) - 2560usize];
};
impl Default for request_arguments {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
