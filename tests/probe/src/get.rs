//! One HTTP request over TCP, for `kubectl exec` into a pod whose image has nothing else.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// Prints the body of the answer.
///
/// # Errors
/// If the connection fails or takes too long, or the status is not 200.
pub(crate) fn run(url: &str, timeout: Duration) -> Result<()> {
    let rest = url.strip_prefix("http://").context("only http:// URLs")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = authority
        .to_socket_addrs()
        .with_context(|| format!("{authority:?} is not ADDRESS:PORT"))?
        .next()
        .with_context(|| format!("{authority} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, timeout)
        .with_context(|| format!("failed to connect to {address}"))?;
    stream
        .set_read_timeout(Some(timeout))
        .context("failed to set a time-out")?;
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
    )
    .context("failed to send the request")?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context("failed to read the answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is not HTTP")?;
    if !head
        .lines()
        .next()
        .is_some_and(|status| status.contains(" 200"))
    {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    std::io::stdout()
        .lock()
        .write_all(body.as_bytes())
        .context("failed to print the answer")
}
