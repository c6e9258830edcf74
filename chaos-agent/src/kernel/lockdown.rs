//! How far the kernel is locked down, as with Secure Boot: what it keeps from root, BPF among it.

use std::fs;
use std::path::Path;

/// Where a kernel with CONFIG_SECURITY_LOCKDOWN_LSM says it.
pub const PATH: &str = "/sys/kernel/security/lockdown";

/// The word that is in force, of `none [integrity] confidentiality`; `None` where the kernel has no
/// such thing, or does not say.
pub fn mode(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let word = text.split(['[', ']']).nth(1);
    Some(word.unwrap_or("none").to_owned())
}
