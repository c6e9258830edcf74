//! Several requests in one datagram. The kernel carries them out in order, and nobody else's come in
//! between on this connection: what takes a device a dozen round trips takes one.

use std::io;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::RouteNetlinkMessage as Message;

use super::Netlink;

/// Requests to carry out together. A later one is tried also where an earlier one was refused.
#[derive(Default)]
pub struct Batch {
    requests: Vec<Request>,
}

struct Request {
    message: Message,
    flags: u16,
    what: String,
    tolerates: fn(&io::Error) -> bool,
}

/// A request of a batch was refused.
#[derive(Debug)]
pub struct Refused {
    /// What was tried.
    pub what: String,
    /// What the kernel answered.
    pub source: io::Error,
    /// Which requests of the batch were done all the same; empty where that is not known.
    pub done: Vec<bool>,
}

impl Batch {
    /// Adds a request whose refusal is an error. Returns its place in what [`Netlink::run`] returns.
    pub(super) fn must(&mut self, what: impl Into<String>, message: Message, flags: u16) -> usize {
        self.may(what, message, flags, |_| false)
    }

    /// Adds a request that the kernel may refuse in such a way.
    pub(super) fn may(
        &mut self,
        what: impl Into<String>,
        message: Message,
        flags: u16,
        tolerates: fn(&io::Error) -> bool,
    ) -> usize {
        self.requests.push(Request {
            message,
            flags: flags | NLM_F_ACK,
            what: what.into(),
            tolerates,
        });
        self.requests.len() - 1
    }
}

impl Netlink {
    /// Carries all of it out. Says of each request whether it was done: `false` is a refusal that it
    /// allows for.
    ///
    /// # Errors
    /// The first refusal of one that must be done; requests behind it have been tried, too.
    pub fn run(&mut self, batch: Batch) -> Result<Vec<bool>, Refused> {
        if batch.requests.is_empty() {
            // The kernel refuses an empty datagram.
            return Ok(Vec::new());
        }
        let mut expectations = Vec::new();
        let messages = batch.requests.into_iter().map(|request| {
            expectations.push((request.what, request.tolerates));
            (request.message, request.flags)
        });
        let messages = messages.collect();
        let answers = self.exchange(messages).map_err(|source| Refused {
            what: "speak to rtnetlink".to_owned(),
            source,
            done: Vec::new(),
        })?;
        let done = answers.iter().map(Result::is_ok).collect();
        let mut outcomes = answers.into_iter().zip(expectations);
        let refused = outcomes.find_map(|(answer, (what, tolerates))| {
            let source = answer.err().filter(|error| !tolerates(error))?;
            Some((what, source))
        });
        match refused {
            None => Ok(done),
            Some((what, source)) => Err(Refused { what, source, done }),
        }
    }
}
