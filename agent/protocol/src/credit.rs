//! Flow control: a stream's sender may send what its receiver has granted, and no more.
//!
//! So a process that writes without end fills its own window and waits, while the frames of others
//! go past it; and neither end ever buffers more than a window for each stream.

use crate::limits::WINDOW;

/// The other end broke the rules of flow control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CreditError {
    /// It sent more than it was granted.
    #[error("it sent {sent} bytes of a stream where it may send {granted}")]
    Overrun {
        /// What it sent.
        sent: usize,
        /// What it was granted at that time.
        granted: u32,
    },
    /// It granted more than a window.
    #[error("it granted more than {WINDOW} bytes of a stream")]
    Overgrant,
}

/// What a sender may yet send of a stream.
#[derive(Debug)]
pub struct SendWindow(u32);

impl Default for SendWindow {
    fn default() -> SendWindow {
        SendWindow(WINDOW)
    }
}

impl SendWindow {
    /// The bytes that may be sent now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0 as usize
    }

    /// Takes up to `wanted` bytes of credit; how many.
    pub fn take(&mut self, wanted: usize) -> usize {
        let taken = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.0);
        self.0 -= taken;
        taken as usize
    }

    /// Adds what the receiver granted.
    ///
    /// # Errors
    /// More than a window would be open: the receiver is broken or hostile.
    pub fn grant(&mut self, bytes: u32) -> Result<(), CreditError> {
        match self.0.checked_add(bytes) {
            Some(open) if open <= WINDOW => {
                self.0 = open;
                Ok(())
            }
            _ => Err(CreditError::Overgrant),
        }
    }
}

/// What a receiver still lets the other end send of a stream.
#[derive(Debug)]
pub struct ReceiveWindow {
    granted: u32,
    /// Bytes that were consumed and are not granted again yet.
    consumed: u32,
}

impl Default for ReceiveWindow {
    fn default() -> ReceiveWindow {
        ReceiveWindow {
            granted: WINDOW,
            consumed: 0,
        }
    }
}

impl ReceiveWindow {
    /// Takes note of received bytes.
    ///
    /// # Errors
    /// The sender was not granted so much.
    pub fn receive(&mut self, bytes: usize) -> Result<(), CreditError> {
        let left = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| self.granted.checked_sub(bytes));
        self.granted = left.ok_or(CreditError::Overrun {
            sent: bytes,
            granted: self.granted,
        })?;
        Ok(())
    }

    /// Takes note that received bytes need no memory any more. The grant to send, if it is time for
    /// one: a quarter of a window, so that grants are few and the sender never waits for one that is
    /// due.
    pub fn consume(&mut self, bytes: usize) -> Option<u32> {
        self.consumed = self
            .consumed
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX))
            .min(WINDOW - self.granted);
        if self.consumed < WINDOW / 4 {
            return None;
        }
        self.granted += self.consumed;
        Some(std::mem::take(&mut self.consumed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_beyond_a_window_is_refused() {
        let mut window = SendWindow::default();
        assert_eq!(window.grant(1), Err(CreditError::Overgrant));
        assert_eq!(window.take(usize::MAX), WINDOW as usize);
        assert_eq!(window.take(1), 0);
        assert_eq!(window.grant(u32::MAX), Err(CreditError::Overgrant));
        window.grant(WINDOW).unwrap();
    }

    #[test]
    fn more_than_was_granted_is_an_error() {
        let mut window = ReceiveWindow::default();
        window.receive(WINDOW as usize).unwrap();
        assert!(window.receive(1).is_err());
    }

    proptest::proptest! {
        /// A sender and a receiver that keep to the rules never break them, and never both wait.
        #[test]
        fn honest_ends_go_on(steps in proptest::collection::vec((1..100_000usize, 1..100_000usize), 1..200)) {
            let (mut send, mut receive) = (SendWindow::default(), ReceiveWindow::default());
            let mut buffered = 0;
            for (wanted, consumed) in steps {
                let sent = send.take(wanted);
                receive.receive(sent).unwrap();
                buffered += sent;
                assert!(buffered <= WINDOW as usize);
                let consumed = consumed.min(buffered);
                buffered -= consumed;
                if let Some(grant) = receive.consume(consumed) {
                    send.grant(grant).unwrap();
                }
                assert!(buffered > 0 || send.open() > 0);
            }
        }
    }
}
