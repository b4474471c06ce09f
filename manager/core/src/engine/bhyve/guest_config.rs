//! Configuration of a checkpoint's guest, and the parts of it that a restore relies on.

use super::{
    Error,
    config::{BhyveConfig, Com, Variables},
};
use crate::{
    checkpoint::{
        AgentProtocol, BhyveGuest, Checkpoint, Readiness,
        manifest::{EngineKind, Manifest},
    },
    engine::wrong_engine,
};

/// The device whose disk was sealed with a checkpoint.
pub(super) fn sealed_disk(manifest: &Manifest) -> Option<String> {
    manifest.disks.first().and_then(|disk| disk.device.clone())
}

/// The configuration of a checkpoint's guest, with all that restores rely on checked.
pub(super) fn checked(guest: &BhyveGuest) -> Result<BhyveConfig, String> {
    let config =
        BhyveConfig::try_from(Variables(guest.config.clone())).map_err(|e| e.to_string())?;
    let connected = |number: u8, what: &str| {
        let com = Com::new(number).filter(|com| config.com.contains_key(com));
        com.map(|_| ())
            .ok_or_else(|| format!("{what} is at com{number}, which is not connected"))
    };
    if let Some(com) = guest.agent {
        connected(com, "its agent")?;
    }
    if guest.agent.is_none() && guest.agent_protocol != AgentProtocol::default() {
        return Err("it has a protocol for its agent, and no agent".to_owned());
    }
    match &guest.readiness {
        Readiness::Agent if guest.agent.is_none() => {
            return Err("its agent is to be waited for, and it has none".to_owned());
        }
        Readiness::Console { com, .. } if guest.agent == Some(*com) => {
            return Err(format!("com{com} cannot be its agent's and its console"));
        }
        Readiness::Console { com, words } if words.is_empty() => {
            return Err(format!("no words are to be waited for on com{com}"));
        }
        Readiness::Console { com, .. } => connected(*com, "its console")?,
        Readiness::Command { argv } if argv.is_empty() => {
            return Err("the command that is to be waited for is empty".to_owned());
        }
        _ => {}
    }
    if guest.agent.is_none() && config.bridges().iter().any(Option::is_some) {
        return Err(
            "it has a network card on a bridge and no agent to take a new address: two clones \
             would have the same"
                .to_owned(),
        );
    }
    Ok(config)
}

/// The guest of a checkpoint, and its configuration, when it can be restored.
pub(super) fn guest_of(checkpoint: &Checkpoint) -> Result<(BhyveGuest, BhyveConfig), Error> {
    let refuse = |reason: String| Error::Checkpoint {
        checkpoint: checkpoint.path().to_string(),
        reason,
    };
    let manifest = checkpoint.manifest();
    let guest = match (&manifest.engine, &manifest.bhyve) {
        (EngineKind::Bhyve, Some(guest)) => guest.clone(),
        (EngineKind::Bhyve, None) => {
            return Err(refuse("it has no guest's configuration".to_owned()));
        }
        (other, _) => return Err(refuse(wrong_engine(*other))),
    };
    let config = checked(&guest).map_err(refuse)?;
    match checkpoint.meta().unfit_for_bhyve() {
        Some(unfit) => Err(refuse(unfit)),
        None => Ok((guest, config)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_restore_relies_on_is_checked() {
        let guest = |config: &str, agent, readiness| BhyveGuest {
            config: config.parse::<Variables>().unwrap().0,
            agent,
            agent_protocol: AgentProtocol::default(),
            readiness,
        };
        let lpc = "pci.0.31.0.device=lpc\nlpc.com1.path=/dev/nmdm0A\n";
        let nic = "pci.0.3.0.device=virtio-net\npci.0.3.0.bridge=bridge0\n";
        let console = |com, words: &str| Readiness::Console {
            com,
            words: words.to_owned(),
        };
        assert!(checked(&guest(lpc, Some(1), Readiness::Agent)).is_ok());
        assert!(checked(&guest(lpc, None, console(1, "login:"))).is_ok());
        assert!(checked(&guest(&(lpc.to_owned() + nic), Some(1), Readiness::Agent)).is_ok());
        let mut framed = guest(lpc, None, console(1, "login:"));
        framed.agent_protocol = AgentProtocol::Frames;
        assert!(checked(&framed).unwrap_err().contains("no agent"));
        for (config, agent, readiness, why) in [
            (lpc, None, Readiness::Agent, "it has none"),
            (lpc, Some(2), Readiness::Agent, "com2"),
            (lpc, Some(9), Readiness::Agent, "com9"),
            (lpc, Some(1), console(1, "login:"), "cannot be its agent's"),
            (lpc, None, console(1, ""), "no words"),
            (lpc, None, console(3, "login:"), "com3"),
            (lpc, None, Readiness::Command { argv: Vec::new() }, "empty"),
            (
                nic,
                None,
                Readiness::Tcp {
                    address: "%(name):22".to_owned(),
                },
                "same",
            ),
            ("pci.0.9.0.device=nvme\n", None, Readiness::Agent, "nvme"),
        ] {
            let refusal = checked(&guest(config, agent, readiness)).unwrap_err();
            assert!(refusal.contains(why), "{refusal}");
        }
    }
}
