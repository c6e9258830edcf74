//! Writes an initramfs: a cpio archive in the "newc" format, which is all that the kernel reads.
//! See Documentation/driver-api/early-userspace/buffer-format.rst.
//!
//! Not here: what goes into one; the cluster node and the bare test VMs each say that themselves.

use std::{fs, path::Path};

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive that grows in memory. Parents come before their children: the kernel makes none.
#[derive(Debug, Default)]
pub(crate) struct Initramfs {
    bytes: Vec<u8>,
    inode: u32,
}

impl Initramfs {
    /// An archive that has `/dev` with `console` and `null`, so that PID 1 has its descriptors 0 to 2.
    pub(crate) fn new() -> Self {
        let mut archive = Self::default();
        archive.directory("dev");
        archive.entry("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[]);
        archive.entry("dev/null", CHARACTER_DEVICE | 0o666, (1, 3), &[]);
        archive
    }

    /// Adds a directory, mode 0755. `path` has no leading slash, here and below.
    pub(crate) fn directory(&mut self, path: &str) -> &mut Self {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file with these permission bits.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.entry(path, FILE | (mode & 0o7777), (0, 0), content)
    }

    /// Adds the file `from` of this machine, mode 0755.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> Result<&mut Self> {
        let content =
            fs::read(from).with_context(|| format!("failed to read {}", from.display()))?;
        Ok(self.file(path, 0o755, &content))
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// The finished archive, uncompressed.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> &mut Self {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // time
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut archive = Initramfs::new();
        archive
            .directory("bin")
            .file("bin/a", 0o755, b"12345")
            .symlink("init", "bin/a");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(
            text.matches("070701").count(),
            7,
            "three of /dev, three of ours, the trailer"
        );
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
