//! Reference figures that brood is measured against.

/// The density reference: guests, and the host memory in MiB that they took together.
pub(super) const CURVE: [(u64, f64); 5] = [
    (8, 103.0),
    (50, 939.0),
    (200, 5366.0),
    (400, 6492.0),
    (1000, 9117.0),
];

/// Memory of one guest of the reference, in MiB.
pub(super) const GUEST_MIB: f64 = 256.0;

/// Where the reference was measured.
pub(super) const SOURCE: &str = "bhyve with the vmm-vnode kernel patch, 256 MiB guests, on a \
    Ryzen 9 5900HX laptop with 32 GB and FreeBSD 15.0";
