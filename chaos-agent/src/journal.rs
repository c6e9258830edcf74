//! What a successor must know to adopt or undo what this agent did: written before the act,
//! replaced whole, void after a reboot (the kernel forgets everything then too).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::executor::Armed;
use crate::mechanism::tc_egress::Device;

/// What is written.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// `/proc/sys/kernel/random/boot_id` of the boot that this is about.
    pub boot_id: String,
    /// Faults that are armed, or about to be.
    pub armed: Vec<Entry>,
    /// Faults that have ended, with programs whose vDSO has not been put back yet.
    #[serde(default)]
    pub unrestored: Vec<Armed>,
    /// Devices that filters are attached to, or about to be.
    pub devices: Vec<Device>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who asked for it.
    pub owner: String,
    /// Its own deadline in CLOCK_MONOTONIC nanoseconds; `None` while it is leased.
    pub deadline_ns: Option<u64>,
    /// When it ends because its client has gone, CLOCK_MONOTONIC nanoseconds.
    #[serde(default)]
    pub orphaned_ns: Option<u64>,
    /// What the kernel holds of it.
    pub armed: Armed,
}

/// The file.
pub struct Journal {
    path: PathBuf,
    boot_id: String,
}

impl Journal {
    /// Names the file; nothing is read or written yet.
    ///
    /// # Errors
    /// When the boot id cannot be read.
    pub fn new(run_dir: &Path, proc_root: &Path) -> io::Result<Self> {
        let boot_id = fs::read_to_string(proc_root.join("sys/kernel/random/boot_id"))?;
        Ok(Self {
            path: run_dir.join("journal.json"),
            boot_id: boot_id.trim().to_owned(),
        })
    }

    /// What a predecessor wrote during this boot; empty if there is none, or none that can be
    /// read: then the sweep removes what the kernel holds.
    pub fn read(&self) -> Record {
        let Ok(text) = fs::read_to_string(&self.path) else {
            return Record::default();
        };
        match serde_json::from_str::<Record>(&text) {
            Ok(record) if record.boot_id == self.boot_id => record,
            Ok(_) => Record::default(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the journal cannot be read; what it told of is removed");
                Record::default()
            }
        }
    }

    /// Replaces the file at once: a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(
        &self,
        armed: Vec<Entry>,
        unrestored: Vec<Armed>,
        devices: Vec<Device>,
    ) -> io::Result<()> {
        let record = Record {
            boot_id: self.boot_id.clone(),
            armed,
            unrestored,
            devices,
        };
        let temporary = self.path.with_extension("json.new");
        fs::write(&temporary, serde_json::to_vec(&record)?)?;
        fs::rename(temporary, &self.path)
    }

    /// Removes the file; absent is success.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
