//! Makes certificates, and judges those that are there. Pure but for the randomness of keys.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::Pem;

/// How long a CA lasts.
const CA_LIFE: Duration = Duration::days(3650);
/// How long an agent's or the operator's certificate lasts.
const LEAF_LIFE: Duration = Duration::days(90);
/// Nodes' clocks may be this much behind.
const BACKDATED: Duration = Duration::hours(1);

/// Why a certificate cannot be made, or is not fit for use.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be read.
    #[error("it is not a PEM certificate with a matching key")]
    Unreadable,
    /// Its time is over, or two thirds of it.
    #[error("it is due for renewal")]
    Due,
    /// It was signed by another CA.
    #[error("another CA has signed it")]
    OtherIssuer,
    /// It is for another name or purpose.
    #[error("it is for another name")]
    OtherName,
    /// The library refused.
    #[error("failed to make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// A certificate (or several, newest first) and the key of the first, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Certificates.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

/// What a certificate below the CA is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Agents serve with it.
    Agent,
    /// The operator shows it to agents.
    Operator,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Agent => "chaos-agent.faultline",
            Self::Operator => "chaos-operator.faultline",
        }
    }

    const fn usage(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Agent => ExtendedKeyUsagePurpose::ServerAuth,
            Self::Operator => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

/// A new CA. `old`, if it can still be read and has not run out, goes on being trusted.
///
/// # Errors
/// [`CertificateError::Make`]
pub(super) fn new_ca(old: Option<&Pair>, now: OffsetDateTime) -> Result<Pair, CertificateError> {
    let mut params = CertificateParams::default();
    // The name is unique, so that an issuer can be told from its predecessor.
    let name = format!("faultline CA {}", now.unix_timestamp());
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATED;
    params.not_after = now + CA_LIFE;
    let key = KeyPair::generate()?;
    let mut certificate = params.self_signed(&key)?.pem();
    let trusted = old
        .and_then(|old| first(&old.certificate).ok())
        .filter(|old| {
            old.parse_x509()
                .is_ok_and(|old| old.validity().not_after.timestamp() > now.unix_timestamp())
        });
    if let (Some(_), Some(old)) = (trusted, old) {
        certificate.push_str(&old.certificate);
    }
    Ok(Pair {
        certificate,
        key: key.serialize_pem(),
    })
}

/// A new certificate below `ca`.
///
/// # Errors
/// [`CertificateError::Make`]
pub(super) fn new_leaf(
    ca: &Pair,
    role: Role,
    now: OffsetDateTime,
) -> Result<Pair, CertificateError> {
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(&ca.key)?)?;
    let mut params = CertificateParams::new(vec![role.name().to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, role.name());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![role.usage()];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - BACKDATED;
    params.not_after = now + LEAF_LIFE;
    let nanos = now.unix_timestamp_nanos().to_be_bytes();
    params.serial_number = Some(SerialNumber::from_slice(&nanos[4..]));
    let key = KeyPair::generate()?;
    Ok(Pair {
        certificate: params.signed_by(&key, &issuer)?.pem(),
        key: key.serialize_pem(),
    })
}

/// Whether a CA is fit for use until the next check.
///
/// # Errors
/// Why not.
pub(super) fn check_ca(ca: &Pair, now: OffsetDateTime) -> Result<(), CertificateError> {
    check(ca, now, |certificate| {
        if certificate.is_ca() {
            Ok(())
        } else {
            Err(CertificateError::OtherName)
        }
    })
}

/// Whether a certificate below `ca` is fit for use until the next check.
///
/// # Errors
/// Why not.
pub(super) fn check_leaf(
    leaf: &Pair,
    ca: &Pair,
    role: Role,
    now: OffsetDateTime,
) -> Result<(), CertificateError> {
    let issuer = first(&ca.certificate)?;
    let issuer = issuer
        .parse_x509()
        .map_err(|_| CertificateError::Unreadable)?;
    check(leaf, now, |certificate| {
        if certificate.issuer().as_raw() != issuer.subject().as_raw() {
            return Err(CertificateError::OtherIssuer);
        }
        let names = certificate.subject_alternative_name().ok().flatten();
        let is_named = names.is_some_and(|names| {
            names.value.general_names.iter().any(|name| {
                matches!(name, x509_parser::extensions::GeneralName::DNSName(name) if *name == role.name())
            })
        });
        let usage = certificate.extended_key_usage().ok().flatten();
        let is_for_role = usage.is_some_and(|usage| match role {
            Role::Agent => usage.value.server_auth,
            Role::Operator => usage.value.client_auth,
        });
        if is_named && is_for_role {
            Ok(())
        } else {
            Err(CertificateError::OtherName)
        }
    })
}

fn check(
    pair: &Pair,
    now: OffsetDateTime,
    also: impl FnOnce(&x509_parser::certificate::X509Certificate<'_>) -> Result<(), CertificateError>,
) -> Result<(), CertificateError> {
    let pem = first(&pair.certificate)?;
    let certificate = pem.parse_x509().map_err(|_| CertificateError::Unreadable)?;
    let key = KeyPair::from_pem(&pair.key).map_err(|_| CertificateError::Unreadable)?;
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err(CertificateError::Unreadable);
    }
    let validity = certificate.validity();
    let (begin, end) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    // Renewed when two thirds of its life are over.
    if now.unix_timestamp() >= begin + (end - begin) / 3 * 2 || now.unix_timestamp() < begin {
        return Err(CertificateError::Due);
    }
    also(&certificate)
}

/// The first certificate of a PEM text.
fn first(text: &str) -> Result<Pem, CertificateError> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes())
        .map_err(|_| CertificateError::Unreadable)?;
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(n: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap() + Duration::days(n)
    }

    #[test]
    fn a_new_certificate_is_good_until_two_thirds_of_its_life() {
        let ca = new_ca(None, day(0)).unwrap();
        let leaf = new_leaf(&ca, Role::Agent, day(0)).unwrap();
        check_ca(&ca, day(0)).unwrap();
        check_leaf(&leaf, &ca, Role::Agent, day(59)).unwrap();
        for late in [61, 91] {
            let error = check_leaf(&leaf, &ca, Role::Agent, day(late)).unwrap_err();
            assert!(matches!(error, CertificateError::Due), "{error}");
        }
        assert!(matches!(
            check_ca(&ca, day(2500)),
            Err(CertificateError::Due)
        ));
    }

    #[test]
    fn a_certificate_for_another_role_or_of_another_ca_is_not_fit() {
        let (ca, other) = (new_ca(None, day(0)).unwrap(), new_ca(None, day(1)).unwrap());
        let leaf = new_leaf(&ca, Role::Operator, day(0)).unwrap();
        let check = |ca, role| check_leaf(&leaf, ca, role, day(2));
        check(&ca, Role::Operator).unwrap();
        assert!(matches!(
            check(&ca, Role::Agent),
            Err(CertificateError::OtherName)
        ));
        assert!(matches!(
            check(&other, Role::Operator),
            Err(CertificateError::OtherIssuer)
        ));
    }

    #[test]
    fn garbage_and_keys_of_others_are_not_fit() {
        let (ca, other) = (new_ca(None, day(0)).unwrap(), new_ca(None, day(0)).unwrap());
        let mixed = Pair {
            key: other.key,
            ..ca.clone()
        };
        assert!(matches!(
            check_ca(&mixed, day(0)),
            Err(CertificateError::Unreadable)
        ));
        for garbage in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let bad = Pair {
                certificate: garbage.into(),
                key: ca.key.clone(),
            };
            assert!(check_ca(&bad, day(0)).is_err(), "{garbage}");
        }
    }

    #[test]
    fn a_new_ca_goes_on_trusting_the_old_one_while_that_lasts() {
        let old = new_ca(None, day(0)).unwrap();
        let count = |pair: &Pair| pair.certificate.matches("BEGIN CERTIFICATE").count();
        assert_eq!(count(&new_ca(Some(&old), day(2500)).unwrap()), 2);
        assert_eq!(count(&new_ca(Some(&old), day(4000)).unwrap()), 1);
    }
}
