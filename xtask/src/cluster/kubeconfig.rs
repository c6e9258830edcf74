//! Kubeconfig files. They name certificate files by path.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::pki::Identity;

/// The text of a kubeconfig (JSON, which is YAML) for `identity` at `server`.
pub(crate) fn text(server: &str, ca: &Path, identity: &Identity) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "faultline", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "user", "user": {
            "client-certificate": identity.certificate,
            "client-key": identity.key,
        }}],
        "contexts": [{"name": "faultline", "context": {"cluster": "faultline", "user": "user"}}],
        "current-context": "faultline",
    });
    format!("{config:#}\n")
}

/// Writes [`text`] to `path`.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write(path: &Path, server: &str, ca: &Path, identity: &Identity) -> Result<()> {
    std::fs::write(path, text(server, ca, identity))
        .with_context(|| format!("failed to write {}", path.display()))
}
