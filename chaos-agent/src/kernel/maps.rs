//! The pinned maps, typed. The kernel is the truth: the daemon writes through these handles and
//! the CLI reads through them, whether a daemon lives or not.

mod batch;
mod clock;

use std::io;
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use chaos_abi::ABI;
use chaos_abi::clock::ClockRule;
use chaos_abi::control;
use chaos_abi::counters::Counters;
use chaos_abi::network::{Net, NetKey, PeerKey, Rule, State, Target};

/// Lets aya read and write a type of chaos-abi.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plain<T>(pub T);

// SAFETY: a transparent wrapper of a `bytemuck::Pod`: any bytes are a value, and there is no padding.
unsafe impl<T: bytemuck::Pod> Pod for Plain<T> {}

/// Which `TARGETS` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetKind {
    /// Cgroup id -> rules of `cgroup_drop`.
    Cgroup,
    /// Slot of a way of a device -> rules of `tc_egress` or `tc_ingress`.
    Device,
    /// Cgroup id -> rules of `clock_shift`.
    Clock,
}

/// Failed to open or use the pinned maps.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// Nothing is pinned: no agent has run since the node booted.
    #[error("no maps are pinned under {}: no agent of this version has run on this node since it booted; start one with `chaos-agent run` or `chaos-agent apply`", .0.display())]
    NotPinned(PathBuf),
    /// A map is there but cannot be used.
    #[error("failed to use map {map} under {}: {source}; are you root, with CAP_BPF?", .path.display())]
    Map {
        /// Name of the map.
        map: &'static str,
        /// Where it is pinned.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
}

/// Directory of the maps of this layout version below a mounted bpffs.
pub fn directory(bpffs: &Path) -> PathBuf {
    bpffs.join("faultline").join(format!("abi{ABI}"))
}

/// What agents with other layouts have pinned there.
pub fn other_layouts(bpffs: &Path) -> Vec<PathBuf> {
    let ours = directory(bpffs);
    let listed = std::fs::read_dir(bpffs.join("faultline"));
    let all = listed.into_iter().flatten().flatten();
    all.map(|entry| entry.path())
        .filter(|path| *path != ours)
        .collect()
}

/// Whether the node was stopped by `chaos-agent panic` while a layout was in use: every layout has
/// that word in the same place.
pub fn was_halted(layout: &Path) -> bool {
    let word = MapData::from_pin(layout.join("CONTROL"))
        .and_then(|data| Array::<_, u32>::try_from(Map::Array(data)))
        .and_then(|control| control.get(&control::HALTED, 0));
    word.is_ok_and(|halted| halted != 0)
}

/// Handles of all maps.
pub struct Pinned {
    armed: Array<MapData, u64>,
    control: Array<MapData, u32>,
    rules: Array<MapData, Plain<Rule>>,
    counters: PerCpuArray<MapData, Plain<Counters>>,
    state: Array<MapData, Plain<State>>,
    peers: HashMap<MapData, Plain<PeerKey>, u8>,
    nets: LpmTrie<MapData, Plain<NetKey>, Plain<Net>>,
    depths: Array<MapData, u32>,
    cgroup_targets: HashMap<MapData, u64, Plain<Target>>,
    device_targets: HashMap<MapData, u64, Plain<Target>>,
    waiting: Array<MapData, u64>,
    lateness: Array<MapData, u64>,
    clock_rules: Array<MapData, Plain<ClockRule>>,
    clock_targets: HashMap<MapData, u64, Plain<Target>>,
    clock_depths: Array<MapData, u32>,
}

/// The map of the global that all programs about packets ask first, see [`chaos_abi::control`].
pub const ARMED: &str = "ARMED";

/// Names of the maps, as they are pinned.
pub const NAMES: [&str; 15] = [
    ARMED,
    "CONTROL",
    "RULES",
    "COUNTERS",
    "STATE",
    "PEERS",
    "NETS",
    "DEPTHS",
    "CGROUP_TARGETS",
    "DEVICE_TARGETS",
    "WAITING",
    "LATENESS",
    "CLOCK_RULES",
    "CLOCK_TARGETS",
    "CLOCK_DEPTHS",
];

impl Pinned {
    /// Opens the maps below a mounted bpffs.
    ///
    /// # Errors
    /// [`MapsError::NotPinned`] when no agent of this layout has pinned them.
    pub fn open(bpffs: &Path) -> Result<Self, MapsError> {
        let directory = directory(bpffs);
        if !directory.join(ARMED).exists() {
            return Err(MapsError::NotPinned(directory));
        }
        Ok(Self {
            armed: typed(&directory, ARMED, Map::Array)?,
            control: typed(&directory, "CONTROL", Map::Array)?,
            rules: typed(&directory, "RULES", Map::Array)?,
            counters: typed(&directory, "COUNTERS", Map::PerCpuArray)?,
            state: typed(&directory, "STATE", Map::Array)?,
            peers: typed(&directory, "PEERS", Map::HashMap)?,
            nets: typed(&directory, "NETS", Map::LpmTrie)?,
            depths: typed(&directory, "DEPTHS", Map::Array)?,
            cgroup_targets: typed(&directory, "CGROUP_TARGETS", Map::HashMap)?,
            device_targets: typed(&directory, "DEVICE_TARGETS", Map::HashMap)?,
            waiting: typed(&directory, "WAITING", Map::Array)?,
            lateness: typed(&directory, "LATENESS", Map::Array)?,
            clock_rules: typed(&directory, "CLOCK_RULES", Map::Array)?,
            clock_targets: typed(&directory, "CLOCK_TARGETS", Map::HashMap)?,
            clock_depths: typed(&directory, "CLOCK_DEPTHS", Map::Array)?,
        })
    }

    /// Whether the programs about packets look at any.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn armed(&self) -> Result<bool, MapError> {
        Ok(self.armed.get(&0, 0)? != 0)
    }

    /// Has them look, or not: one store.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_armed(&mut self, armed: bool) -> Result<(), MapError> {
        self.armed.set(0, u64::from(armed), 0)
    }

    /// A word of `CONTROL`, see [`chaos_abi::control`].
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn control(&self, word: u32) -> Result<u32, MapError> {
        self.control.get(&word, 0)
    }

    /// Writes a word of `CONTROL`: one store.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_control(&mut self, word: u32, value: u32) -> Result<(), MapError> {
        self.control.set(word, value, 0)
    }

    /// Whether `chaos-agent panic` has stopped the node.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn halted(&self) -> Result<bool, MapError> {
        Ok(self.control(control::HALTED)? != 0)
    }

    /// A rule; one with generation 0 is a free slot.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn rule(&self, id: u32) -> Result<Rule, MapError> {
        self.rules.get(&id, 0).map(|plain| plain.0)
    }

    /// Replaces a rule.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_rule(&mut self, id: u32, rule: Rule) -> Result<(), MapError> {
        self.rules.set(id, Plain(rule), 0)
    }

    /// All rules that are not free slots.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn rules(&self) -> Result<Vec<(u32, Rule)>, MapError> {
        let all = (0..).zip(batch::elements(&self.rules)?);
        Ok(all.filter(|(_, rule)| rule.generation != 0).collect())
    }

    /// A rule's counters, summed over CPUs.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn counters(&self, id: u32) -> Result<Counters, MapError> {
        let mut sum = Counters::default();
        for Plain(part) in self.counters.get(&id, 0)?.iter() {
            sum.merge(part);
        }
        Ok(sum)
    }

    /// Starts a slot's counters, draws and shapers from zero. Only while no target refers to it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn reset_counters(&mut self, id: u32) -> Result<(), MapError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| MapError::from(source))?;
        let zeroes = vec![Plain(Counters::default()); cpus];
        self.counters.set(id, PerCpuValues::try_from(zeroes)?, 0)?;
        self.state.set(id, Plain(State::default()), 0)
    }

    /// What a rule's packets have changed.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn state(&self, id: u32) -> Result<State, MapError> {
        self.state.get(&id, 0).map(|plain| plain.0)
    }

    /// What waits in the detour of a device, in [`chaos_abi::network::waiting_units`].
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn waiting(&self, slot: u16) -> Result<u64, MapError> {
        self.waiting.get(&u32::from(slot), 0)
    }

    /// How late packets come out of it, a word of [`chaos_abi::late`].
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn lateness(&self, slot: u16) -> Result<u64, MapError> {
        self.lateness.get(&u32::from(slot), 0)
    }

    /// Says that nothing waits there.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn nothing_waits(&mut self, slot: u16) -> Result<(), MapError> {
        self.waiting.set(u32::from(slot), 0, 0)
    }

    /// Adds an address, or a port, to a set, or says otherwise of it (see [`chaos_abi::network::ports`]).
    ///
    /// # Errors
    /// What the kernel answers, E2BIG when `PEERS` is full.
    pub fn set_peer(&mut self, key: PeerKey, what: u8) -> Result<(), MapError> {
        self.peers.insert(Plain(key), what, 0)
    }

    /// Removes an address, or a port, from a set; absent is success.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove_peer(&mut self, key: PeerKey) -> Result<(), MapError> {
        absent_is_fine(self.peers.remove(&Plain(key)))
    }

    /// Adds a network of `prefix` bits to a set, or says otherwise of it.
    ///
    /// # Errors
    /// What the kernel answers, ENOSPC when `NETS` is full.
    pub fn set_net(&mut self, prefix: u32, key: NetKey, net: Net) -> Result<(), MapError> {
        self.nets.insert(&net_key(prefix, key), Plain(net), 0)
    }

    /// Removes a network from a set; absent is success.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove_net(&mut self, prefix: u32, key: NetKey) -> Result<(), MapError> {
        absent_is_fine(self.nets.remove(&net_key(prefix, key)))
    }

    /// All networks of all sets, with the bits of their prefixes.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn nets(&self) -> Result<Vec<(u32, NetKey, Net)>, MapError> {
        let entry = |entry: Result<(Key<Plain<NetKey>>, Plain<Net>), MapError>| {
            let (key, Plain(net)) = entry?;
            Ok((key.prefix_len() - NetKey::EXACT, key.data().0, net))
        };
        self.nets.iter().map(entry).collect()
    }

    /// All addresses and ports of all sets.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn peers(&self) -> Result<Vec<PeerKey>, MapError> {
        self.peers
            .keys()
            .map(|key| key.map(|plain| plain.0))
            .collect()
    }

    /// The rules of a target; `None` when it has none.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn target(&self, kind: TargetKind, key: u64) -> Result<Option<Target>, MapError> {
        match self.targets_map(kind).get(&key, 0) {
            Ok(Plain(target)) => Ok(Some(target)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the rules of a target, whole and at once.
    ///
    /// # Errors
    /// What the kernel answers, E2BIG when the map is full.
    pub fn set_target(
        &mut self,
        kind: TargetKind,
        key: u64,
        target: Target,
    ) -> Result<(), MapError> {
        self.targets_map_mut(kind).insert(key, Plain(target), 0)
    }

    /// Removes a target; absent is success.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove_target(&mut self, kind: TargetKind, key: u64) -> Result<(), MapError> {
        absent_is_fine(self.targets_map_mut(kind).remove(&key))
    }

    /// All targets of a mechanism.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn targets(&self, kind: TargetKind) -> Result<Vec<(u64, Target)>, MapError> {
        self.targets_map(kind)
            .iter()
            .map(|entry| entry.map(|(key, Plain(t))| (key, t)))
            .collect()
    }

    /// Depths at which target cgroups sit, each in its place; 0 is a free one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn depths(&self) -> Result<Vec<u32>, MapError> {
        self.depths.iter().collect()
    }

    /// Replaces an element of `DEPTHS`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_depth(&mut self, index: u32, depth: u32) -> Result<(), MapError> {
        self.depths.set(index, depth, 0)
    }

    fn targets_map(&self, kind: TargetKind) -> &HashMap<MapData, u64, Plain<Target>> {
        match kind {
            TargetKind::Cgroup => &self.cgroup_targets,
            TargetKind::Device => &self.device_targets,
            TargetKind::Clock => &self.clock_targets,
        }
    }

    fn targets_map_mut(&mut self, kind: TargetKind) -> &mut HashMap<MapData, u64, Plain<Target>> {
        match kind {
            TargetKind::Cgroup => &mut self.cgroup_targets,
            TargetKind::Device => &mut self.device_targets,
            TargetKind::Clock => &mut self.clock_targets,
        }
    }
}

fn net_key(prefix: u32, key: NetKey) -> Key<Plain<NetKey>> {
    Key::new(NetKey::EXACT + prefix, Plain(key))
}

fn typed<T: TryFrom<Map, Error = MapError>>(
    directory: &Path,
    map: &'static str,
    wrap: fn(MapData) -> Map,
) -> Result<T, MapsError> {
    let path = directory.join(map);
    MapData::from_pin(&path)
        .and_then(|data| T::try_from(wrap(data)))
        .map_err(|source| MapsError::Map { map, path, source })
}

pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        // aya gives deletes of absent keys as the bare system call error.
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}
