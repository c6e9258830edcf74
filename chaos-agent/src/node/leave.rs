//! Leaving a node: to a successor, with everything as it is, or for good.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chaos_planner::plan::{HAND_OVER, Until, lease};

use super::Node;
use super::entry::State;
use crate::kernel::clock;
use crate::mechanism::MechanismError;

/// Failed to remove everything.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// A map could not be written.
    #[error("failed to write a BPF map: {0}")]
    Map(#[from] aya::maps::MapError),
    /// A program could not be detached.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// A pin or file could not be removed.
    #[error("failed to remove {}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Node {
    /// Before this process ends and a successor comes: every lease once to 120 s, everything stays.
    pub fn hand_over(&mut self) {
        let now = clock::now_ns();
        for entry in self.entries.values_mut() {
            let until = entry.until;
            if let State::Armed(armed) = &mut entry.state
                && entry.wanted
                && !matches!(until, Until::Deadline(_))
            {
                let deadline = until.kernel_deadline(now, HAND_OVER.max(lease(&entry.fault)));
                if let Err(error) = self.executor.renew(armed, deadline) {
                    tracing::warn!(fault = %armed.fault.id, %error, "failed to extend a lease");
                }
            }
        }
        self.write_journal();
    }

    /// Everything off, detached and unpinned.
    ///
    /// # Errors
    /// [`PurgeError`]; what could be removed is.
    pub fn purge(mut self) -> Result<(), PurgeError> {
        for entry in std::mem::take(&mut self.entries).into_values() {
            if let State::Armed(armed) = entry.state {
                self.executor.disarm(&armed)?;
            }
        }
        self.executor.restore_clocks_again();
        let changed = self.executor.changed_programs();
        if !changed.is_empty() {
            tracing::error!(
                pids = ?changed,
                "the vDSO of these programs could not be put back: their clocks are right, but slower to read; restart them"
            );
        }
        self.executor.settle(&[])?;
        self.executor.detach_all()?;
        let removed = |path: &Path, result: io::Result<()>| match result {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PurgeError::Io {
                path: path.to_owned(),
                source,
            }),
            _ => Ok(()),
        };
        let pins = self.options.bpffs.join("faultline");
        removed(&pins, fs::remove_dir_all(&pins))?;
        removed(&self.options.run_dir, self.journal.remove())
    }
}
