//! `externalTargets`: addresses, networks and host names, each with or without a port.
//!
//! `10.0.0.1`, `10.0.0.0/8:443`, `example.com:80`, `fd00::1`, `[fd00::1]:80`, `fd00::/8:443`. A
//! port is the destination port of a packet, whichever way it goes (contract.md, section 1).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Longest host name, RFC 1035 section 2.3.4.
const MAX_NAME: usize = 253;

/// Longest part of one.
const MAX_LABEL: usize = 63;

/// One entry of `externalTargets`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct External {
    /// Whom it means.
    pub host: Host,
    /// Only packets to this destination port, 1 to 65 535.
    pub port: Option<u16>,
}

/// Whom an entry means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// An address (a network of one) or a network, without bits behind its prefix.
    Net(IpNet),
    /// A name to be resolved, in lower case and without a dot at its end.
    Name(String),
}

/// Why a text is no external target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExternalError {
    /// Nothing there.
    #[error("must not be empty")]
    Empty,
    /// What is behind the last colon.
    #[error("the port {0:?} must be a number from 1 to 65535")]
    Port(String),
    /// What is behind the slash.
    #[error("the prefix length {text:?} must be a number from 0 to {most}")]
    Prefix {
        /// As it was written.
        text: String,
        /// 32 or 128.
        most: u8,
    },
    /// What is in front of the slash.
    #[error("{0:?} must be an IPv4 or IPv6 address")]
    Address(String),
    /// It looks like neither an address nor a name.
    #[error(
        "{0:?} is neither an address nor a host name (letters, digits, `-` and `_` between dots, \
         not ending in a number)"
    )]
    Name(String),
}

impl External {
    /// Reads an entry.
    ///
    /// # Errors
    /// [`ExternalError`]
    pub fn parse(text: &str) -> Result<Self, ExternalError> {
        if text.is_empty() {
            return Err(ExternalError::Empty);
        }
        // An IPv6 address has colons of its own: a port behind it needs brackets, or a slash.
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::net(IpNet::from(address), None));
        }
        let (host, port) = split_port(text)?;
        if let Some((address, prefix)) = host.split_once('/') {
            return Ok(Self::net(network(address, prefix)?, port));
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Self::net(IpNet::from(address), port));
        }
        if !is_name(host) {
            return Err(ExternalError::Name(host.to_owned()));
        }
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        Ok(Self {
            host: Host::Name(name),
            port,
        })
    }

    fn net(net: IpNet, port: Option<u16>) -> Self {
        Self {
            host: Host::Net(net.trunc()),
            port,
        }
    }
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Net(IpNet::V6(net)) if net.prefix_len() == 128 && self.port.is_some() => {
                write!(f, "[{}]", net.addr())?;
            }
            Host::Net(net) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{}", net.addr())?;
            }
            Host::Net(net) => write!(f, "{net}")?,
            Host::Name(name) => f.write_str(name)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// `[host]:port`, `host:port` or `host`; of several colons the last, behind a slash.
fn split_port(text: &str) -> Result<(&str, Option<u16>), ExternalError> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let port = digits.then(|| text.parse::<u16>().ok()).flatten();
        port.filter(|port| *port != 0)
            .ok_or_else(|| ExternalError::Port(text.to_owned()))
    };
    if let Some(rest) = text.strip_prefix('[') {
        let Some((host, rest)) = rest.split_once(']') else {
            return Err(ExternalError::Address(text.to_owned()));
        };
        let address = host.split_once('/').map_or(host, |(address, _)| address);
        if address.parse::<Ipv6Addr>().is_err() {
            return Err(ExternalError::Address(host.to_owned()));
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(number(port)?))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(ExternalError::Port(rest.to_owned())),
        };
    }
    let behind = text.find('/').unwrap_or(0);
    match text[behind..].rsplit_once(':') {
        Some((_, port)) => {
            let host = &text[..text.len() - port.len() - 1];
            Ok((host, Some(number(port)?)))
        }
        None => Ok((text, None)),
    }
}

fn network(address: &str, prefix: &str) -> Result<IpNet, ExternalError> {
    let address: IpAddr = address
        .parse()
        .map_err(|_| ExternalError::Address(address.to_owned()))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let wrong = || ExternalError::Prefix {
        text: prefix.to_owned(),
        most,
    };
    let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
    let length = digits.then(|| prefix.parse().ok()).flatten();
    IpNet::new(address, length.ok_or_else(wrong)?).map_err(|_| wrong())
}

/// Whether a resolver can be asked for it. One that ends in a number is an address with a mistake
/// in it (WHATWG URL, "ends in a number"), not a name.
fn is_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let ends_in_number = text
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    (1..=MAX_NAME).contains(&text.len()) && text.split('.').all(is_label) && !ends_in_number
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_is_read_and_written() {
        for (text, shown) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.0.0.0/8:443", "10.0.0.0/8:443"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::1", "fd00::1"),
            ("[fd00::1]", "fd00::1"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("fd00::/8", "fd00::/8"),
            ("fd00::/8:443", "fd00::/8:443"),
            ("[fd00::/8]:443", "fd00::/8:443"),
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("example.com:65535", "example.com:65535"),
            ("my_db", "my_db"),
            ("a1:1", "a1:1"),
        ] {
            let read = External::parse(text).map(|one| one.to_string());
            assert_eq!(read.as_deref(), Ok(shown), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("", "must not be empty"),
            ("10.0.0.1:0", "the port \"0\""),
            ("10.0.0.1:65536", "the port \"65536\""),
            ("10.0.0.1:", "the port \"\""),
            ("example.com:http", "the port \"http\""),
            (
                "10.0.0.0/33",
                "the prefix length \"33\" must be a number from 0 to 32",
            ),
            ("fd00::/129", "from 0 to 128"),
            ("10.0.0.0/", "the prefix length \"\""),
            ("10.0.0/8", "\"10.0.0\" must be an IPv4 or IPv6 address"),
            ("10.0.0.256", "neither an address nor a host name"),
            ("1.2.3", "neither an address nor a host name"),
            ("-a.example", "neither an address nor a host name"),
            ("a..b", "neither an address nor a host name"),
            ("http://example.com", "must be an IPv4 or IPv6 address"),
            (
                "[example.com]:80",
                "\"example.com\" must be an IPv4 or IPv6 address",
            ),
            ("[fd00::1]80", "the port \"80\""),
            ("[fd00::1", "must be an IPv4 or IPv6 address"),
            ("exa mple", "neither an address nor a host name"),
        ] {
            let error = External::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(text in "[0-9a-f:./\\[\\]-]{0,24}") {
            if let Ok(one) = External::parse(&text) {
                prop_assert_eq!(External::parse(&one.to_string()), Ok(one));
            }
        }
    }
}
