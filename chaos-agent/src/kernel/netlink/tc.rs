//! Queueing disciplines and filters of a device: fq, clsact and our BPF filters in it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption, TcStats2,
};

use super::{Batch, Netlink, absent, absent_is_fine};

/// Where a filter of clsact sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that leave the device.
    Egress,
    /// Packets that come in by it.
    Ingress,
}

impl Hook {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Egress => TcHandle::MIN_EGRESS,
            Self::Ingress => TcHandle::MIN_INGRESS,
        };
        TcHandle {
            major: u16::MAX,
            minor,
        }
    }
}

/// Priority of our filters: before everybody else's, and so that the same place is found again.
pub const PRIORITY: u16 = 1;

/// Handle of our filters.
pub const HANDLE: u32 = 0xfa17;

const ETH_P_ALL_BE: u16 = (0x0003_u16).to_be();

/// A filter as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its priority.
    pub priority: u16,
    /// Its handle.
    pub handle: u32,
    /// Name of a BPF filter's program.
    pub program: Option<String>,
}

impl Batch {
    /// Gives a device fq as root: it holds each packet until its `tstamp`, up to `packets` of one
    /// flow or of all, without pacing of its own.
    pub fn fq(&mut self, index: u32, packets: u32) {
        // linux/pkt_sched.h, TCA_FQ_*
        const PLIMIT: u16 = 1;
        const FLOW_PLIMIT: u16 = 2;
        const QUANTUM: u16 = 3;
        const INITIAL_QUANTUM: u16 = 4;
        const RATE_ENABLE: u16 = 5;
        const ORPHAN_MASK: u16 = 10;
        const HORIZON: u16 = 14;
        let options = [
            (PLIMIT, packets),
            (FLOW_PLIMIT, packets),
            // Bytes of a flow before it is the next one's turn: the largest packet. Else it goes by the MTU.
            (QUANTUM, 1 << 17),
            (INITIAL_QUANTUM, 1 << 17),
            (RATE_ENABLE, 0),
            // Packets without a socket are one flow if they have the same hash: all bits of it.
            (ORPHAN_MASK, u32::MAX),
            // Microseconds; the most that fits: 71 minutes, more than `Verdict::MAX_WAIT_NS`.
            (HORIZON, u32::MAX),
        ];
        let message = qdisc(index, TcHandle::ROOT, "fq", &options);
        self.must(
            "add fq to the detour (is the module sch_fq there?)",
            Message::NewQueueDiscipline(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        );
    }

    /// Adds clsact to the device with this index and name. Not done where it is there already.
    /// Returns the place of this in what [`Netlink::run`] returns.
    pub fn clsact(&mut self, index: u32, device: &str) -> usize {
        let message = qdisc(index, TcHandle::CLSACT, "clsact", &[]);
        self.may(
            format!("add clsact to {device}"),
            Message::NewQueueDiscipline(message),
            NLM_F_CREATE | NLM_F_EXCL,
            |error| error.kind() == io::ErrorKind::AlreadyExists,
        )
    }

    /// Puts our filter there, or swaps its program for this one. The program reads `slot` as its
    /// classid.
    pub fn filter(
        &mut self,
        index: u32,
        hook: Hook,
        program: BorrowedFd<'_>,
        name: &str,
        slot: u16,
    ) {
        let mut message = filter(index, hook);
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ClassId(TcHandle {
                major: 0,
                minor: slot,
            })),
            TcOption::Bpf(TcFilterBpfOption::ProgFd(
                program.as_raw_fd().cast_unsigned(),
            )),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        self.must(
            format!("attach {name} (is another filter at priority 1?)"),
            Message::NewTrafficFilter(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        );
    }
}

impl Netlink {
    /// Packets that wait in the root qdisc of a device.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn waiting(&mut self, index: u32) -> io::Result<u32> {
        // Devices cannot be asked for one by one everywhere: the kernel lists all qdiscs.
        let answers = self.request(
            Message::GetQueueDiscipline(TcMessage::default()),
            NLM_F_DUMP,
        )?;
        let waiting = answers.into_iter().find_map(|answer| match answer {
            Message::NewQueueDiscipline(qdisc)
                if qdisc.header.index.cast_unsigned() == index
                    && qdisc.header.parent == TcHandle::ROOT =>
            {
                qdisc.attributes.iter().find_map(queue_length)
            }
            _ => None,
        });
        Ok(waiting.unwrap_or(0))
    }

    /// Removes clsact if no filter is left in it; `false` when there still is one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn delete_clsact_if_empty(&mut self, index: u32) -> io::Result<bool> {
        for hook in [Hook::Egress, Hook::Ingress] {
            if !self.filters(index, hook)?.is_empty() {
                return Ok(false);
            }
        }
        let message = qdisc(index, TcHandle::CLSACT, "clsact", &[]);
        absent_is_fine(self.act(Message::DelQueueDiscipline(message), 0))?;
        Ok(true)
    }

    /// Removes our filter. None there, or no such device, is success.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn delete_filter(&mut self, index: u32, hook: Hook) -> io::Result<()> {
        absent_is_fine(self.act(Message::DelTrafficFilter(filter(index, hook)), 0))
    }

    /// All filters of a hook; none without clsact.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn filters(&mut self, index: u32, hook: Hook) -> io::Result<Vec<Filter>> {
        let mut message = TcMessage::with_index(signed(index)?);
        message.header.parent = hook.parent();
        let answers = match self.request(Message::GetTrafficFilter(message), NLM_F_DUMP) {
            Ok(answers) => answers,
            Err(error) if absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let filters = answers.into_iter().filter_map(|answer| match answer {
            // The first answer of each priority describes the chain and has no handle.
            Message::NewTrafficFilter(filter) if u32::from(filter.header.handle) != 0 => {
                Some(filter)
            }
            _ => None,
        });
        Ok(filters
            .map(|filter| Filter {
                priority: (filter.header.info >> 16) as u16,
                handle: filter.header.handle.into(),
                program: filter.attributes.iter().find_map(program_name),
            })
            .collect())
    }

    /// Whether our filter is there.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn has_filter(&mut self, index: u32, hook: Hook) -> io::Result<bool> {
        let ours = |filter: &Filter| filter.priority == PRIORITY && filter.handle == HANDLE;
        Ok(self.filters(index, hook)?.iter().any(ours))
    }
}

fn signed(index: u32) -> io::Result<i32> {
    i32::try_from(index).map_err(io::Error::other)
}

fn qdisc(index: u32, parent: TcHandle, kind: &str, options: &[(u16, u32)]) -> TcMessage {
    use netlink_packet_core::DefaultNla;
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    if parent == TcHandle::CLSACT {
        message.header.handle = TcHandle {
            major: u16::MAX,
            minor: 0,
        };
    }
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    if !options.is_empty() {
        let nlas = options
            .iter()
            .map(|&(kind, value)| {
                TcOption::Other(DefaultNla::new(kind, value.to_ne_bytes().to_vec()))
            })
            .collect();
        message.attributes.push(TcAttribute::Options(nlas));
    }
    message
}

fn filter(index: u32, hook: Hook) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = hook.parent();
    message.header.handle = HANDLE.into();
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL_BE);
    message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
    message
}

fn queue_length(attribute: &TcAttribute) -> Option<u32> {
    let TcAttribute::Stats2(stats) = attribute else {
        return None;
    };
    stats.iter().find_map(|stat| match stat {
        TcStats2::Queue(queue) => Some(queue.qlen),
        _ => None,
    })
}

fn program_name(attribute: &TcAttribute) -> Option<String> {
    let TcAttribute::Options(options) = attribute else {
        return None;
    };
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    })
}
