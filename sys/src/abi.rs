//! Kernel ABI in C's names: structures, constants and request numbers of vmm(4) and vmm_vnode(4) on
//! amd64.
//!
//! `tools/bindings` generates it from FreeBSD 15.0's `machine/vmm.h`, `machine/vmm_dev.h` and
//! `machine/vmm_snapshot.h`, brood's `kmod/vmm_vnode.h`, and `sys/bindgen/vmmctl.h` for definitions
//! that only FreeBSD's source tree has; with the feature `host-headers`, from the headers of the
//! host. Sizes, alignments and offsets are asserted at compile time. Those headers say what the
//! members mean, and [`request`](crate::request) what the requests do.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    clippy::undocumented_unsafe_blocks,
    reason = "generated: the names and the comments are those of the headers"
)]

#[cfg(feature = "host-headers")]
include!(concat!(env!("OUT_DIR"), "/host.rs"));
#[cfg(not(feature = "host-headers"))]
include!("generated/freebsd_15_0.rs");
