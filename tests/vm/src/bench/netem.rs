//! netem, what faults are compared with: by rtnetlink, as root qdisc of a device.

use anyhow::{Context, Result};
use futures::StreamExt;
use rtnetlink::packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use crate::netns::{DEVICE, Namespace, link_index};

/// What netem is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Netem {
    /// Nanoseconds.
    pub(super) latency_ns: i64,
    /// Nanoseconds to either side.
    pub(super) jitter_ns: i64,
    /// Bytes a second; 0 is no limit.
    pub(super) rate: u32,
    /// Packets that wait at most.
    pub(super) limit: u32,
}

/// A queue that is never full here. netem's own is 1000 packets, which hides a loss in each delay.
pub(super) const AMPLE: u32 = 100_000;

impl Netem {
    /// Nothing but a delay.
    pub(super) fn delay(ms: u64) -> Self {
        Self {
            latency_ns: ms as i64 * 1_000_000,
            jitter_ns: 0,
            rate: 0,
            limit: AMPLE,
        }
    }

    /// `struct tc_netem_qopt` and the attributes behind it, include/uapi/linux/pkt_sched.h.
    fn options(&self) -> Vec<u8> {
        const RATE: u16 = 6;
        const LATENCY64: u16 = 10;
        const JITTER64: u16 = 11;
        // latency, limit, loss, gap, duplicate, jitter: the times come in nanoseconds below.
        let head = [0, self.limit, 0, 0, 0, 0_u32];
        let mut bytes: Vec<u8> = head.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut attributes = vec![
            DefaultNla::new(LATENCY64, self.latency_ns.to_ne_bytes().to_vec()),
            DefaultNla::new(JITTER64, self.jitter_ns.to_ne_bytes().to_vec()),
        ];
        if self.rate > 0 {
            // rate, packet_overhead, cell_size, cell_overhead
            let rate = [self.rate, 0, 0, 0];
            let rate = rate.iter().flat_map(|word| word.to_ne_bytes()).collect();
            attributes.push(DefaultNla::new(RATE, rate));
        }
        for attribute in attributes {
            let start = bytes.len();
            bytes.resize(start + attribute.buffer_len(), 0);
            if let Some(place) = bytes.get_mut(start..) {
                attribute.emit(place);
            }
        }
        bytes
    }

    /// Makes it the root qdisc of the device of a namespace, instead of one that is there.
    pub(super) fn put(&self, namespace: &Namespace) -> Result<()> {
        const OPTIONS: u16 = 2;
        let options = DefaultNla::new(OPTIONS, self.options());
        namespace.netlink(async move |mut handle| {
            let index = link_index(&handle, DEVICE).await?;
            let mut message = TcMessage::with_index(index.cast_signed());
            message.header.parent = TcHandle::ROOT;
            message.attributes = vec![
                TcAttribute::Kind("netem".to_owned()),
                TcAttribute::Other(options),
            ];
            let message = RouteNetlinkMessage::NewQueueDiscipline(message);
            let mut request = NetlinkMessage::from(message);
            request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
            let mut answers = handle.request(request).context("failed to ask for netem")?;
            while let Some(answer) = answers.next().await {
                if let NetlinkPayload::Error(error) = answer.payload
                    && error.code.is_some()
                {
                    return Err(error.to_io()).context("failed to add netem");
                }
            }
            Ok(())
        })
    }
}
