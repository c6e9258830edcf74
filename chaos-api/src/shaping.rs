//! What the blocks of a NetworkChaos say, in numbers. For the operator and for a host without one,
//! so that a document means the same to both.
//!
//! Not here: what is allowed, which is `validate`'s.

use std::time::Duration;

use crate::v1alpha1::{Bandwidth, Delay, NetworkAction, NetworkChaosSpec};
use crate::validate::FieldError;
use crate::{duration, percent, rate};

/// All blocks that do something, whatever the action is called. Empty for a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shaping {
    /// `loss`
    pub loss: Option<Share>,
    /// `duplicate`
    pub duplicate: Option<Share>,
    /// `corrupt`
    pub corrupt: Option<Share>,
    /// `delay`
    pub delay: Option<Waiting>,
    /// `rate`, in bytes a second.
    pub rate: Option<u64>,
    /// `bandwidth`
    pub bandwidth: Option<Bucket>,
}

/// How often, in parts per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Of the packets.
    pub ppm: u32,
    /// Of the packets that fare as the one before them.
    pub correlation_ppm: u32,
}

/// `delay`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Above 0.
    pub latency: Duration,
    /// 0 without.
    pub jitter: Duration,
    /// Of the jitter, in parts per million.
    pub correlation_ppm: u32,
    /// Share and gap of the packets that do not wait.
    pub reorder: Option<(Share, u64)>,
}

/// `bandwidth`, in bytes and bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// `rate`
    pub rate: u64,
    /// `limit`
    pub limit: u64,
    /// `buffer`
    pub buffer: u64,
    /// `peakrate` and `minburst`, if both are given and not 0.
    pub peak: Option<(u64, u64)>,
}

impl Shaping {
    /// Reads all blocks. A block of nothing (a share or a latency of 0) is none.
    ///
    /// # Errors
    /// The first field that cannot be read; none if the document has been validated.
    pub fn of(spec: &NetworkChaosSpec) -> Result<Self, FieldError> {
        if spec.action == NetworkAction::Partition {
            return Ok(Self::default());
        }
        let loss = spec.loss.as_ref();
        let duplicate = spec.duplicate.as_ref();
        let corrupt = spec.corrupt.as_ref();
        Ok(Self {
            loss: loss
                .map(|block| {
                    share(
                        "spec.loss",
                        "loss",
                        &block.loss,
                        block.correlation.as_deref(),
                    )
                })
                .transpose()?
                .flatten(),
            duplicate: duplicate
                .map(|block| {
                    let correlation = block.correlation.as_deref();
                    share("spec.duplicate", "duplicate", &block.duplicate, correlation)
                })
                .transpose()?
                .flatten(),
            corrupt: corrupt
                .map(|block| {
                    let correlation = block.correlation.as_deref();
                    share("spec.corrupt", "corrupt", &block.corrupt, correlation)
                })
                .transpose()?
                .flatten(),
            delay: spec.delay.as_ref().map(delay).transpose()?.flatten(),
            rate: spec
                .rate
                .as_ref()
                .map(|block| bytes("spec.rate.rate", &block.rate))
                .transpose()?,
            bandwidth: spec.bandwidth.as_ref().map(bandwidth).transpose()?,
        })
    }
}

fn share(
    block: &str,
    name: &str,
    text: &str,
    correlation: Option<&str>,
) -> Result<Option<Share>, FieldError> {
    let share = Share {
        ppm: ppm(&format!("{block}.{name}"), text)?,
        correlation_ppm: correlated(block, correlation)?,
    };
    Ok((share.ppm > 0).then_some(share))
}

fn correlated(block: &str, text: Option<&str>) -> Result<u32, FieldError> {
    match text.filter(|text| !text.is_empty()) {
        None => Ok(0),
        Some(text) => ppm(&format!("{block}.correlation"), text),
    }
}

fn delay(block: &Delay) -> Result<Option<Waiting>, FieldError> {
    let jitter = block.jitter.as_deref().filter(|text| !text.is_empty());
    let reorder = match &block.reorder {
        None => None,
        Some(reorder) => share(
            "spec.delay.reorder",
            "reorder",
            &reorder.reorder,
            reorder.correlation.as_deref(),
        )?
        .map(|share| (share, u64::try_from(reorder.gap).unwrap_or(0))),
    };
    let waiting = Waiting {
        latency: time("spec.delay.latency", &block.latency)?,
        jitter: jitter.map_or(Ok(Duration::ZERO), |text| time("spec.delay.jitter", text))?,
        correlation_ppm: correlated("spec.delay", block.correlation.as_deref())?,
        reorder,
    };
    Ok((!waiting.latency.is_zero()).then_some(waiting))
}

fn bandwidth(block: &Bandwidth) -> Result<Bucket, FieldError> {
    let peak = block.peakrate.zip(block.minburst);
    Ok(Bucket {
        rate: bytes("spec.bandwidth.rate", &block.rate)?,
        limit: block.limit.into(),
        buffer: block.buffer.into(),
        peak: peak
            .map(|(rate, burst)| (rate, u64::from(burst)))
            .filter(|&(rate, burst)| rate > 0 && burst > 0),
    })
}

fn ppm(field: &str, text: &str) -> Result<u32, FieldError> {
    percent::parse_ppm(text).map_err(|rule| FieldError::unreadable(field, text, &rule))
}

fn time(field: &str, text: &str) -> Result<Duration, FieldError> {
    let parsed =
        duration::parse(text).map_err(|rule| FieldError::unreadable(field, text, &rule))?;
    Duration::try_from(parsed)
        .map_err(|_| FieldError::unreadable(field, text, &"must not be negative"))
}

fn bytes(field: &str, text: &str) -> Result<u64, FieldError> {
    rate::parse(text).map_err(|rule| FieldError::unreadable(field, text, &rule))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::network_chaos;

    fn of(spec: &str) -> Result<Shaping, String> {
        let whole = format!("{{mode: all, selector: {{}}, {spec}}}");
        Shaping::of(&network_chaos(&whole)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_block_is_read_whatever_the_action() {
        let share = |ppm, correlation_ppm| Share {
            ppm,
            correlation_ppm,
        };
        let all = of("action: loss, loss: {loss: '30', correlation: '25'}, duplicate: {duplicate: '1'},
             corrupt: {corrupt: '0.5'}, delay: {latency: 90ms, jitter: 10ms, correlation: '50',
             reorder: {reorder: '5', correlation: '10', gap: 4}}, rate: {rate: 1mbit},
             bandwidth: {rate: 1mbps, limit: 20000, buffer: 10000, peakrate: 2000000, minburst: 1500}");
        let expected = Shaping {
            loss: Some(share(300_000, 250_000)),
            duplicate: Some(share(10_000, 0)),
            corrupt: Some(share(5_000, 0)),
            delay: Some(Waiting {
                latency: Duration::from_millis(90),
                jitter: Duration::from_millis(10),
                correlation_ppm: 500_000,
                reorder: Some((share(50_000, 100_000), 4)),
            }),
            rate: Some(125_000),
            bandwidth: Some(Bucket {
                rate: 1_048_576,
                limit: 20_000,
                buffer: 10_000,
                peak: Some((2_000_000, 1_500)),
            }),
        };
        assert_eq!(all, Ok(expected));
    }

    #[test]
    fn blocks_of_nothing_are_none() {
        let none = Ok(Shaping::default());
        assert_eq!(of("action: partition"), none);
        assert_eq!(
            of("action: netem, loss: {loss: '0'}, duplicate: {duplicate: '0.0'}"),
            none
        );
        // What varies a latency does nothing without one.
        assert_eq!(
            of("action: netem, delay: {latency: 0ms, jitter: 5ms}"),
            none
        );
        let bucket =
            of("action: bandwidth, bandwidth: {rate: 8bit, limit: 1, buffer: 1, peakrate: 5}");
        assert_eq!(
            bucket.map(|all| all.bandwidth.map(|b| b.peak)),
            Ok(Some(None))
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = of("action: netem, rate: {rate: fast}").unwrap_err();
        assert!(
            error.starts_with("spec.rate.rate: fast: must be a whole number"),
            "{error}"
        );
    }
}
