//! Model of a checkpoint's guests: the part of their configurations that must be equal, which is
//! all but the back ends.

use std::path::Path;

use super::{BhyveConfig, PciAddress};

/// Settings of the whole machine that are a guest's own.
const OWN: [&str; 9] = [
    "name",
    "lpc.bootvars",
    "uuid",
    "destroy_on_poweroff",
    "board.asset_tag",
    "board.serial_number",
    "chassis.asset_tag",
    "chassis.serial_number",
    "system.serial_number",
];

/// Last parts of a device's keys that are a guest's own.
const OWN_OF_DEVICES: [&str; 6] = ["path", "backend", "mac", "bridge", "rfb", "password"];

/// Two configurations that are not of one model.
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

/// Whether a key is a guest's own.
fn is_back_end(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    OWN.contains(&key)
        || (key.starts_with("lpc.com") && last == "path")
        || (key.starts_with("pci.") && OWN_OF_DEVICES.contains(&last))
}

impl BhyveConfig {
    /// What must be the same in all guests of one checkpoint.
    fn model(&self) -> std::collections::BTreeMap<String, String> {
        let mut all = self.variables().0;
        all.retain(|key, _| !is_back_end(key));
        // The ROM may lie elsewhere on this host; another kind of ROM has another name.
        if let Some(rom) = all.get_mut("lpc.bootrom") {
            let name = Path::new(rom.as_str()).file_name();
            *rom = name.map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        }
        // That a port is connected is seen by bhyve only; the guest has all four.
        all
    }

    /// Checks that `guest` could be restored from a checkpoint of a guest with this configuration.
    ///
    /// # Errors
    /// The first key, in their order, whose value differs.
    pub fn same_model(&self, guest: &Self) -> Result<(), Difference> {
        let (mine, theirs) = (self.model(), guest.model());
        let mut keys: Vec<&String> = mine.keys().chain(theirs.keys()).collect();
        keys.sort_unstable();
        match keys
            .into_iter()
            .find(|key| mine.get(*key) != theirs.get(*key))
        {
            None => Ok(()),
            Some(key) => Err(Difference {
                key: key.clone(),
                checkpoint: mine.get(key).cloned(),
                guest: theirs.get(key).cloned(),
            }),
        }
    }

    /// Checks that a checkpoint's `.meta` is of a guest with this configuration: its PCI devices
    /// are named `MODEL@pci.BUS.SLOT.FUNCTION` there (`pci_emul_init` of `pci_emul.c`).
    ///
    /// # Errors
    /// The first device that is in one of the two only, as a difference of its `device` key.
    pub fn matches_saved<'a>(
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
