//! Comparison of a configuration with the devices that a checkpoint has saved.

use super::{BhyveConfig, PciAddress};

/// A device that is not the saved one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {}, and in the checkpoint {}", said(.guest.as_ref()), said(.checkpoint.as_ref()))]
pub struct Difference {
    /// The first key that differs.
    pub key: String,
    /// Its value in the checkpoint.
    pub checkpoint: Option<String>,
    /// Its value in the guest's configuration.
    pub guest: Option<String>,
}

fn said(value: Option<&String>) -> String {
    value.map_or_else(|| "not set".to_owned(), |value| format!("{value:?}"))
}

impl BhyveConfig {
    /// Checks that a checkpoint's `.meta` is of a guest with this configuration: its PCI devices
    /// are named `MODEL@pci.BUS.SLOT.FUNCTION` there (`pci_emul_init` of `pci_emul.c`).
    ///
    /// # Errors
    /// The first device that is in one of the two only, as a difference of its `device` key.
    pub(crate) fn matches_saved<'a>(
        &self,
        saved: impl Iterator<Item = &'a str>,
    ) -> Result<(), Difference> {
        let mut there: std::collections::BTreeMap<PciAddress, String> = saved
            .filter_map(|name| {
                let (model, place) = name.split_once('@')?;
                Some((place.parse().ok()?, model.to_owned()))
            })
            .collect();
        for (address, device) in &self.devices {
            let saved = there.remove(address);
            if saved.as_deref() != Some(device.model()) {
                return Err(Difference {
                    key: format!("{address}.device"),
                    checkpoint: saved,
                    guest: Some(device.model().to_owned()),
                });
            }
        }
        match there.pop_first() {
            None => Ok(()),
            Some((address, model)) => Err(Difference {
                key: format!("{address}.device"),
                checkpoint: Some(model),
                guest: None,
            }),
        }
    }
}
