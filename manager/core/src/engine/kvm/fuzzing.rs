//! What fuzz targets need of this module's own functions.

use super::vm::vcpu::VcpuState;

/// A `.kern` of the KVM engine: what is read is written, and then read as the same.
pub fn vcpu_state(bytes: &[u8]) -> bool {
    let Ok(state) = VcpuState::from_bytes(bytes) else {
        return false;
    };
    let written = state.to_bytes();
    let again = VcpuState::from_bytes(&written).expect("what was written is read");
    assert_eq!(written, again.to_bytes());
    true
}
