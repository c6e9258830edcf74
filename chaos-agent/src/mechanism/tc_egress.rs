//! All but partition: a program on the target's device, and for what is more than loss a detour of our
//! own. The program is on the device by tcx (`tcx.rs`); where the kernel has none, it is a filter of clsact.
//! Those of the detour always are filters: nobody else's packets pass there.
//!
//! Everything on a device is found by its slot, a small number that its filters carry as classid, and a
//! program of tcx as a constant. A device gets its program with its first rule and loses it when its last
//! rule is gone and the packets that wait in the detour have arrived.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use aya::programs::SchedClassifier;
use chaos_abi::network::{Rule, flag};
use chaos_abi::pace::Bucket;
use chaos_abi::sample::{self, threshold_ppm};
use chaos_planner::choose::MAX_DELAY;
use chaos_planner::fault::{Chance, LINE_LIMIT, NetworkEffect};
use chaos_planner::plan::nanos;
use serde::{Deserialize, Serialize};

use super::tc::Way;
use super::tcx::{Anchor, Tcx};
use super::{MechanismError, canary, detour, find, io_error, program, tc_ingress};
use crate::kernel::btf::Types;
use crate::kernel::maps::Pinned;
use crate::kernel::netlink::{Batch, Hook, Netlink};
use crate::kernel::netns;
use crate::kernel::objects::Loader;

/// A way of a device of a target that we have attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Inode of its network namespace.
    pub netns_inode: u64,
    /// Index in that namespace.
    pub ifindex: u32,
    /// Its name, for people.
    pub name: String,
    /// Which of its packets are treated.
    #[serde(default)]
    pub way: Way,
    /// It is a pod's own, so that nobody minds a VLAN device on it.
    #[serde(default)]
    pub own: bool,
    /// Key of its rules: classid of its filters, constant of its tcx program.
    pub slot: u16,
    /// clsact was not there before us.
    pub clsact_is_ours: bool,
    /// Both ends of the detour, if there is one: where packets go in and where they come out; 0 where they come out on
    /// the device itself.
    pub detour: Option<(u32, u32)>,
    /// The detour computes checksums, because a rule corrupts packets.
    #[serde(default)]
    pub checksums: bool,
    /// The longest that a packet may still be waiting after the last rule has gone.
    pub longest_delay: Duration,
}

impl Device {
    /// Whether it has a detour whose packets come out on the device itself, with a tag.
    pub const fn is_by_vlan(&self) -> bool {
        matches!(self.detour, Some((_, 0)))
    }
}

/// What an effect needs on the device beside the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// A detour: packets are held back, copied or changed.
    pub detour: bool,
    /// One that computes checksums: else nobody would notice that a packet was changed, because
    /// between devices of one host checksums are neither computed nor looked at.
    pub checksums: bool,
}

impl Needs {
    /// Those of this effect.
    pub const fn of(effect: &NetworkEffect) -> Self {
        Self {
            detour: effect.detours(),
            checksums: effect.corrupt.is_some(),
        }
    }
}

/// The loaded programs of one way.
pub struct TcEgress {
    ebpf: Ebpf,
    way: Way,
    /// The most packets that one detour holds.
    packets: u32,
    /// What is put on a target's device is put there by tcx, whose hook this keeps in use; `None` where
    /// there is none.
    tcx: Option<Anchor>,
    /// Detours on devices of pods are VLAN devices: one device in place of two, and a shorter way.
    by_vlan: bool,
    /// Why it cannot be told which socket receives a packet; of what comes in only.
    no_receivers: Option<String>,
}

/// What has been done on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    /// Slot of the device, if a detour was built.
    pub detour: Option<u16>,
    /// The device is to have a program of tcx ([`Tcx::attach`]); else it has its filter.
    pub by_tcx: bool,
}

/// What a node can do of a way, tried.
pub struct Tried {
    /// Why packets can be lost and nothing else; `None` when all works.
    pub only_loss: Option<MechanismError>,
    /// Why clsact has to do; `None` where there is tcx.
    pub no_tcx: Option<MechanismError>,
    /// Why what the target receives cannot be told from what others do; `None` when it can.
    pub no_receivers: Option<MechanismError>,
}

impl TcEgress {
    /// Loads the programs; nothing is attached yet. `packets` is the most that one detour holds, `types`
    /// are the kernel's.
    ///
    /// # Errors
    /// [`MechanismError`]
    pub fn load(
        loader: &mut Loader,
        way: Way,
        packets: u32,
        types: &Result<Types, String>,
    ) -> Result<Self, MechanismError> {
        let (ebpf, no_receivers) = match way {
            Way::Egress => (load_with(loader, way, &[])?, None),
            Way::Ingress => tc_ingress::load(loader, types)?,
        };
        Ok(Self {
            ebpf,
            way,
            packets,
            tcx: None,
            by_vlan: false,
            no_receivers,
        })
    }

    /// Whether it is attached by tcx where nothing else is, as [`Self::probe`] has found.
    pub const fn is_by_tcx(&self) -> bool {
        self.tcx.is_some()
    }

    /// What it has loaded.
    pub fn programs(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Tries the body on a packet of our own; and, where packets come in, whether it knows the socket that
    /// receives one. `cgroups` is the root of the hierarchy.
    ///
    /// # Errors
    /// What it did instead.
    pub fn fire_canary(&mut self, maps: &mut Pinned, cgroups: &Path) -> Result<(), MechanismError> {
        let [on_device, ..] = self.way.programs();
        let body = format!("{on_device}_body");
        canary::is_lost(&self.ebpf, &body, maps)?;
        if self.way == Way::Ingress && self.no_receivers.is_none() {
            let found = canary::is_received(&self.ebpf, &body, maps, cgroups);
            self.no_receivers = found.err().map(|error| error.to_string());
        }
        Ok(())
    }

    /// Whether the socket can be told which receives a packet that comes in by a device.
    ///
    /// # Errors
    /// Why not.
    pub fn tells_receivers(&self) -> Result<(), MechanismError> {
        match &self.no_receivers {
            None => Ok(()),
            Some(why) => Err(MechanismError::Target(tc_ingress::refusal(why))),
        }
    }

    /// Which way they treat packets.
    pub const fn way(&self) -> Way {
        self.way
    }

    /// Tries all of it on devices of a namespace that is gone afterwards: tcx, veth, fq, clsact,
    /// cls_bpf, our programs.
    ///
    /// # Errors
    /// What this kernel cannot do and has to, in words for `doctor`.
    pub fn probe(&mut self) -> Result<Tried, MechanismError> {
        let no_tcx = match Anchor::cast(&mut self.ebpf, self.way) {
            Ok(anchor) => {
                self.tcx = Some(anchor);
                None
            }
            Err(error) => Some(error),
        };
        let whole = Needs {
            detour: true,
            checksums: true,
        };
        let none = Needs {
            detour: false,
            checksums: false,
        };
        // What comes in would have to go out first.
        self.by_vlan = self.way == Way::Egress;
        let only_loss = match self.try_with(whole) {
            Ok(by_vlan) => {
                if self.by_vlan && !by_vlan {
                    tracing::info!(
                        "no VLAN devices (module 8021q): detours are pairs of veth devices"
                    );
                }
                self.by_vlan = by_vlan;
                None
            }
            Err(without) => {
                self.try_with(none)?;
                Some(without)
            }
        };
        Ok(Tried {
            only_loss,
            no_tcx,
            no_receivers: self.tells_receivers().err(),
        })
    }

    /// Whether the detour was a VLAN device.
    fn try_with(&self, needs: Needs) -> Result<bool, MechanismError> {
        netns::scratch(|| {
            let mut netlink = Netlink::open().map_err(io_error("open rtnetlink"))?;
            let [ifindex, _] = netlink
                .add_veth("canary0", "canary1")
                .map_err(io_error("create a veth device (is the module veth there?)"))?;
            let mut device = Device {
                netns_inode: 0,
                ifindex,
                name: "canary0".into(),
                way: self.way,
                own: true,
                slot: 0,
                clsact_is_ours: false,
                detour: None,
                checksums: false,
                longest_delay: Duration::ZERO,
            };
            self.try_attach(&mut netlink, &mut device, needs, !self.is_by_tcx())?;
            Ok(device.is_by_vlan())
        })
    }

    /// Builds the detour if the effect `needs` one and there is none, and puts the filter on the device where
    /// there is no tcx. Safe to repeat; on failure what this call added is removed, but for clsact, which
    /// [`Self::remove_clsact`] removes.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn attach(
        &self,
        netlink: &mut Netlink,
        device: &mut Device,
        needs: Needs,
        tcx: &Tcx,
    ) -> Result<Built, MechanismError> {
        let had_detour = device.detour.is_some();
        let (index, hook) = (device.ifindex, device.way.hook());
        // Where that cannot be read, it is left to those who detach.
        let had_filter = netlink.has_filter(index, hook).unwrap_or(true);
        // A device keeps what it has, whoever put it there: of two programs, both would act.
        let by_tcx = tcx.is_attached(netlink, device) || self.is_by_tcx() && !had_filter;
        let attached = self.try_attach(netlink, device, needs, !by_tcx);
        if attached.is_err() {
            // Back to what was there, the filter before what it sends packets to; the first error is the
            // one to tell.
            if !had_filter && !by_tcx {
                drop(netlink.delete_filter(index, hook));
            }
            if !had_detour {
                drop(detour::remove(netlink, device));
            }
        }
        attached.map(|built| Built {
            detour: built.then_some(device.slot),
            by_tcx,
        })
    }

    /// Removes the filter and the detour, then reads back that they are gone; before that, the program of
    /// tcx has to be ([`Tcx::detach`]). An empty clsact stays: removing one makes the kernel take the whole
    /// device down for a moment (`dev_deactivate` in `qdisc_graft`, net/sched/sch_api.c), and the target's
    /// packets of that moment are lost. [`Self::remove_clsact`] does it when nobody minds.
    ///
    /// # Errors
    /// What the kernel answers, or what is still there.
    pub fn detach(netlink: &mut Netlink, device: &Device) -> Result<(), MechanismError> {
        // The filter first: nothing may go into a detour that is being removed.
        netlink
            .delete_filter(device.ifindex, device.way.hook())
            .map_err(io_error(format!("remove the filter from {}", device.name)))?;
        detour::remove(netlink, &mut device.clone())?;
        let left = netlink
            .has_filter(device.ifindex, device.way.hook())
            .map_err(io_error("read the filters back"))?;
        if left {
            return Err(MechanismError::Target(format!(
                "the filter on {} is still there after it was removed",
                device.name
            )));
        }
        Ok(())
    }

    /// Removes clsact if it was ours and nobody else has a filter in it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove_clsact(netlink: &mut Netlink, device: &Device) -> Result<(), MechanismError> {
        if !device.clsact_is_ours {
            return Ok(());
        }
        netlink
            .delete_clsact_if_empty(device.ifindex)
            .map(drop)
            .map_err(io_error(format!("remove clsact from {}", device.name)))
    }

    /// Packets that still wait in the detour.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn waiting(netlink: &mut Netlink, device: &Device) -> Result<u32, MechanismError> {
        let Some((going_in, _)) = device.detour else {
            return Ok(0);
        };
        netlink
            .waiting(going_in)
            .map_err(io_error("read the queue of the detour"))
    }

    /// What is done by netlink; on the device itself only if it is to have a filter.
    fn try_attach(
        &self,
        netlink: &mut Netlink,
        device: &mut Device,
        needs: Needs,
        by_filter: bool,
    ) -> Result<bool, MechanismError> {
        detour::look_for(netlink, device)?;
        let builds = needs.detour && device.detour.is_none();
        if builds {
            detour::build(netlink, device, self.by_vlan)?;
        }
        let [on_device, stamp, back] = self.way.programs();
        let mut batch = Batch::default();
        // A qdisc that is added to a device which is up, and a filter in a clsact that is not a moment old,
        // cost a grace period of RCU each: so clsact first, the detour while it is down, filters last.
        let clsact = by_filter.then(|| batch.clsact(device.ifindex, &device.name));
        if let Some((inward, outward)) = device.detour.filter(|_| builds) {
            let far = (outward != 0).then_some((outward, Hook::Ingress, back));
            let ends = far.into_iter().chain([(inward, Hook::Egress, stamp)]);
            for (ifindex, ..) in ends.clone() {
                batch.clsact(ifindex, "the detour");
            }
            batch.fq(inward, self.packets);
            for (ifindex, hook, name) in ends {
                batch.filter(ifindex, hook, self.program(name)?, name, device.slot);
            }
            detour::start(&mut batch, (inward, outward));
        }
        if by_filter {
            let (hook, program) = (self.way.hook(), self.program(on_device)?);
            batch.filter(device.ifindex, hook, program, on_device, device.slot);
        }
        let ran = netlink.run(batch);
        let done = match &ran {
            Ok(done) => done,
            Err(refused) => &refused.done,
        };
        // Remembered also where a later request was refused: it stays there, and is ours to remove.
        let made = clsact.and_then(|place| done.get(place));
        device.clsact_is_ours |= made.is_some_and(|made| *made);
        ran?;
        if needs.checksums && !device.checksums {
            let [going_in, _] = detour::names(device.slot);
            netlink
                .compute_checksums(&going_in)
                .map_err(io_error(format!("turn checksum offload of {going_in} off")))?;
            device.checksums = true;
        }
        Ok(builds)
    }

    fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, MechanismError> {
        let program: &SchedClassifier = find(&self.ebpf, name)?;
        let fd = program
            .fd()
            .map_err(self::program("use the programs of tc"))?;
        Ok(fd.as_fd())
    }

    /// The part of a rule that this mechanism reads.
    pub fn rule(effect: &NetworkEffect) -> Rule {
        let delay = effect.delay.unwrap_or_default();
        let reorder = delay.reorder;
        Rule {
            flags: flag::EGRESS,
            loss: chance(effect.loss),
            duplicate: chance(effect.duplicate),
            corrupt: chance(effect.corrupt),
            reorder: chance(reorder.map(|reorder| reorder.chance)),
            reorder_gap: reorder.map_or(0, |reorder| reorder.gap),
            delay_ns: nanos(delay.latency),
            jitter_ns: nanos(delay.jitter),
            jitter_correlation: threshold_ppm(delay.correlation_ppm),
            buckets: buckets(effect),
            ..Rule::default()
        }
    }
}

/// Programs of a way, with constants that are filled in.
pub(super) fn load_with(
    loader: &mut Loader,
    way: Way,
    globals: &'static [(&'static str, u32)],
) -> Result<Ebpf, MechanismError> {
    let mut ebpf = loader.load_with(way.mechanism(), globals)?;
    for (_, program) in ebpf.programs_mut() {
        let classifier: &mut SchedClassifier = program
            .try_into()
            .map_err(self::program("use the programs of tc"))?;
        classifier
            .load()
            .map_err(self::program("load the programs of tc"))?;
    }
    Ok(ebpf)
}

fn chance(asked: Option<Chance>) -> sample::Chance {
    let Chance {
        ppm,
        correlation_ppm,
    } = asked.unwrap_or_default();
    sample::Chance::of_ppm(ppm, correlation_ppm)
}

fn buckets(effect: &NetworkEffect) -> [Bucket; 3] {
    let longest = nanos(MAX_DELAY);
    let bandwidth = effect.bandwidth.unwrap_or_default();
    let peak = bandwidth.peak.unwrap_or_default();
    [
        Bucket::new(effect.rate.unwrap_or(0), 0, LINE_LIMIT, longest),
        Bucket::new(bandwidth.rate, bandwidth.buffer, bandwidth.limit, longest),
        Bucket::new(peak.rate, peak.burst, bandwidth.limit, longest),
    ]
}
