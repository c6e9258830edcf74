//! The Secrets with which operator and agents know each other: a CA, one certificate for all
//! agents, one for the operator. Made if absent, renewed at two thirds of their life, and a CA
//! that is fit for use is never replaced. Only the leader does this.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::agents::Tls;

mod issue;

pub use issue::{CertificateError, Pair, Role};

/// Secret with the CA and its key.
pub const CA_SECRET: &str = "faultline-ca";
/// Secret that agents mount.
pub const AGENT_SECRET: &str = "faultline-agent-tls";
/// Secret of the operator.
pub const OPERATOR_SECRET: &str = "faultline-operator-tls";

const CHECK_EVERY: Duration = Duration::from_secs(600);
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Somebody else writes the same Secrets; more than a few times in a row is no coincidence.
const MAX_RACES: usize = 5;

/// Why the certificates are not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("failed to keep secret {secret}: {source}")]
    Api {
        /// Which Secret.
        secret: &'static str,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// See [`CertificateError`].
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// rustls does not accept what we have made or found.
    #[error("failed to use secret {OPERATOR_SECRET}: {0}")]
    Use(#[from] rustls::Error),
    /// It is no PEM.
    #[error("failed to read secret {OPERATOR_SECRET}: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// Another one changes the Secrets all the time.
    #[error("secret {0} is being changed by somebody else all the time")]
    Raced(&'static str),
}

/// Makes the certificates if need be, and keeps them fresh from then on.
///
/// # Errors
/// Why they could not be made at first. Later failures are logged and retried.
pub async fn keep(client: Client, namespace: &str) -> Result<Tls, Error> {
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    let (mut known, config) = refresh(&secrets).await?;
    let (sender, receiver) = watch::channel(config);
    tokio::spawn(async move {
        let mut wait = CHECK_EVERY;
        loop {
            tokio::time::sleep(wait).await;
            wait = CHECK_EVERY;
            match refresh(&secrets).await {
                Ok((new, config)) if new != known => {
                    tracing::info!("new certificates; connections that are up keep the old ones");
                    known = new;
                    sender.send_replace(config);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "failed to refresh certificates");
                    wait = RETRY_EVERY;
                }
            }
        }
    });
    Ok(receiver)
}

async fn refresh(secrets: &Api<Secret>) -> Result<(Pair, Arc<rustls::ClientConfig>), Error> {
    let now = OffsetDateTime::now_utc();
    let ca = ensure(
        secrets,
        CA_SECRET,
        ("ca.crt", "ca.key"),
        None,
        |old| {
            let Err(why) = issue::check_ca(old?, now) else {
                return None;
            };
            Some(why)
        },
        |old| issue::new_ca(old, now),
    )
    .await?;
    let mut operator = None;
    for (secret, role) in [
        (AGENT_SECRET, Role::Agent),
        (OPERATOR_SECRET, Role::Operator),
    ] {
        let pair = ensure(
            secrets,
            secret,
            ("tls.crt", "tls.key"),
            Some(&ca.certificate),
            |old| issue::check_leaf(old?, &ca, role, now).err(),
            |_| issue::new_leaf(&ca, role, now),
        )
        .await?;
        operator = Some(pair);
    }
    let operator = operator.ok_or(CertificateError::Unreadable)?;
    let config = client_config(&ca.certificate, &operator)?;
    Ok((operator, Arc::new(config)))
}

/// Leaves a Secret that is fit as it is; else makes it anew. `trusted` is kept beside the pair.
async fn ensure(
    secrets: &Api<Secret>,
    name: &'static str,
    (certificate_key, key_key): (&str, &str),
    trusted: Option<&str>,
    unfit: impl Fn(Option<&Pair>) -> Option<CertificateError>,
    make: impl Fn(Option<&Pair>) -> Result<Pair, CertificateError>,
) -> Result<Pair, Error> {
    let api_error = |source| Error::Api {
        secret: name,
        source,
    };
    for _ in 0..MAX_RACES {
        let found = secrets.get_opt(name).await.map_err(api_error)?;
        let text = |key: &str| {
            let value = found.as_ref()?.data.as_ref()?.get(key)?;
            String::from_utf8(value.0.clone()).ok()
        };
        let old = text(certificate_key)
            .zip(text(key_key))
            .map(|(certificate, key)| Pair { certificate, key });
        let why = unfit(old.as_ref());
        let new = match (&old, why) {
            (Some(old), None) if trusted.is_none_or(|ca| text("ca.crt").as_deref() == Some(ca)) => {
                return Ok(old.clone());
            }
            // Only the list of trusted CAs is out of date.
            (Some(old), None) => old.clone(),
            (_, why) => {
                if let Some(why) = why {
                    tracing::warn!(secret = name, %why, "made anew");
                } else {
                    tracing::info!(secret = name, "made");
                }
                make(old.as_ref())?
            }
        };
        let mut data = BTreeMap::from([
            (certificate_key.to_owned(), bytes(&new.certificate)),
            (key_key.to_owned(), bytes(&new.key)),
        ]);
        if let Some(trusted) = trusted {
            data.insert("ca.crt".to_owned(), bytes(trusted));
        }
        let is_new = found.is_none();
        let mut secret = found.unwrap_or_else(|| Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            type_: trusted.map(|_| "kubernetes.io/tls".to_owned()),
            ..Secret::default()
        });
        secret.data = Some(data);
        let params = PostParams::default();
        let written = if is_new {
            secrets.create(&params, &secret).await
        } else {
            // With the version that was read: another writer's work is not overwritten.
            secrets.replace(name, &params, &secret).await
        };
        match written {
            Ok(_) => return Ok(new),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(api_error(error)),
        }
    }
    Err(Error::Raced(name))
}

fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

/// TLS 1.3 only, HTTP/2 only.
fn client_config(ca: &str, own: &Pair) -> Result<rustls::ClientConfig, Error> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(own.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
