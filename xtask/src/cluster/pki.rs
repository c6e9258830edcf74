//! The cluster's certificates: one CA, made anew with each cluster, and a certificate for every
//! part. Files are PEM; `NAME.crt` and `NAME.key` lie beside `ca.crt`.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// Signs certificates into a directory.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
}

/// Where a certificate and its key are.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// PEM.
    pub(crate) certificate: PathBuf,
    /// PEM, PKCS #8.
    pub(crate) key: PathBuf,
}

impl Authority {
    /// Makes a CA in `directory`, which must exist.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new()).context("failed to describe the CA")?;
        params.distinguished_name = name("faultline test cluster", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().context("failed to make the CA's key")?;
        let certificate = params.self_signed(&key).context("failed to sign the CA")?;
        write(&directory.join("ca.crt"), &certificate.pem())?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            directory: directory.to_owned(),
        })
    }

    /// The CA's certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// Makes a certificate for the user `common_name`, in the group `organization`, that serves at
    /// `addresses` (names and IP addresses), in the files `file.crt` and `file.key`.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub(crate) fn issue(
        &self,
        file: &str,
        common_name: &str,
        organization: Option<&str>,
        addresses: &[&str],
    ) -> Result<Identity> {
        let addresses: Vec<String> = addresses
            .iter()
            .map(|&address| address.to_owned())
            .collect();
        let mut params = CertificateParams::new(addresses)
            .with_context(|| format!("failed to describe the certificate {file}"))?;
        params.distinguished_name = name(common_name, organization);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().with_context(|| format!("failed to make the key {file}"))?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("failed to sign the certificate {file}"))?;
        let identity = Identity {
            certificate: self.directory.join(format!("{file}.crt")),
            key: self.directory.join(format!("{file}.key")),
        };
        write(&identity.certificate, &certificate.pem())?;
        write(&identity.key, &key.serialize_pem())?;
        Ok(identity)
    }
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("failed to write {}", path.display()))
}
