//! Clocks: programs behind the system calls that read one, and one that takes the vDSO from
//! programs that are started; others where the kernel reads until when a program waits (`waits`). A
//! fault is then map writes, and for programs that run already the bytes of their vDSO (`stubs`), or
//! probes where nobody may change those (`probes`).

mod arch;
mod library;
mod probes;
mod skipped;
mod stopped;
mod stubs;
mod vdso;
mod waits;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, FEntry, FExit, Program};
use chaos_abi::clock::{ClockRule, DRIFTS_PPM, Jump, MAX_JUMPS, flag};
use chaos_planner::capabilities::Mechanism;
use chaos_planner::clock::{self, ClockEffect};
use chaos_planner::fault::Mode;

pub use self::skipped::{Dispatchers, pinned};
pub use self::stubs::Stubs;
use super::{MechanismError, find_mut, io_error, pin, program, unpin};
use crate::kernel::btf::{Field, Types};
use crate::kernel::links;
use crate::kernel::lockdown;
use crate::kernel::objects::{LoadError, Loader};

// The planner asks for nothing that a rule has no room for.
const _: () = assert!(
    clock::MAX_JUMPS == MAX_JUMPS
        && *clock::DRIFTS_PPM.start() == *DRIFTS_PPM.start()
        && *clock::DRIFTS_PPM.end() == *DRIFTS_PPM.end()
);

/// Always attached, where few ever pass; attaching takes the kernel longer than all else of a fault. Behind
/// the system call of those who sleep until a time one has to be there before a fault, too: whoever is in
/// there when it is attached is not seen to come out, and a sleep that the beginning of a fault interrupts
/// has to keep its end.
const STANDING: [&str; 4] = [
    "clock_shift_nanosleep",
    EXEC,
    "clock_shift_itimer_read",
    "clock_shift_itimer",
];

const EXEC: &str = "clock_shift_exec";

/// The tracepoint, and what it is called among the kernel's types.
const EXEC_POINT: &str = "sched_process_exec";
const EXEC_TRACED_AS: &str = "btf_trace_sched_process_exec";

const BPRM: [(&str, Field); 3] = [
    ("BPRM_P", ("linux_binprm", "p")),
    ("BPRM_ARGC", ("linux_binprm", "argc")),
    ("BPRM_ENVC", ("linux_binprm", "envc")),
];

/// The loaded programs.
pub struct ClockShift {
    ebpf: Ebpf,
    pins: PathBuf,
    attached: bool,
    /// Programs that ran before the fault began.
    pub stubs: Stubs,
}

impl ClockShift {
    /// Loads the programs; nothing is attached yet. `types` are the kernel's, with its [`functions`].
    ///
    /// # Errors
    /// [`MechanismError`], in words for `doctor`. The maps are there all the same.
    pub fn load(
        loader: &mut Loader,
        pins: &Path,
        proc_root: &Path,
        types: Result<Types, String>,
    ) -> Result<Self, MechanismError> {
        /// They do not change while a kernel runs.
        static KNOWN: OnceLock<Vec<(&str, u32)>> = OnceLock::new();
        let fields = arch::ARGUMENTS.into_iter().chain(BPRM).chain(waits::FIELDS);
        let (names, fields): (Vec<&str>, Vec<Field>) = fields.unzip();
        let offsets = match &types {
            Ok(types) => types.layout.offsets(&fields),
            Err(_) => vec![None; fields.len()],
        };
        // The object is loaded all the same, for its maps.
        let known = offsets.iter().map(|offset| offset.unwrap_or(0));
        let known = names.iter().copied().zip(known).chain(waits::numbers());
        let known = KNOWN.get_or_init(|| known.collect());
        let mut ebpf = loader.load_with(Mechanism::ClockShift, known)?;
        let stubs = Stubs::new(proc_root.to_owned(), pins)?;
        let Types { functions, .. } = types.map_err(MechanismError::Target)?;
        if let Some((global, _)) = names
            .iter()
            .zip(&offsets)
            .find(|(_, offset)| offset.is_none())
        {
            return Err(MechanismError::Target(format!(
                "this kernel's BTF does not say where the field for {global} is"
            )));
        }
        for (name, function) in exits() {
            for name in dispatcher_and_body(name) {
                let exit: &mut FExit = find_mut(&mut ebpf, &name)?;
                exit.load(function, &functions).map_err(refused)?;
            }
        }
        for name in dispatcher_and_body(EXEC) {
            let exec: &mut BtfTracePoint = find_mut(&mut ebpf, &name)?;
            exec.load(EXEC_POINT, &functions).map_err(refused)?;
        }
        for (name, function) in waits::ENTRIES {
            for name in dispatcher_and_body(name) {
                let entry: &mut FEntry = find_mut(&mut ebpf, &name)?;
                entry.load(function, &functions).map_err(refused)?;
            }
        }
        probes::load(&mut ebpf)?;
        Ok(Self {
            ebpf,
            pins: pins.to_owned(),
            attached: false,
            stubs,
        })
    }

    /// What it has loaded.
    pub fn programs(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Attaches the dispatchers that are there before there is a fault, [`STANDING`]; with them the others, if
    /// a predecessor has any of them attached.
    ///
    /// # Errors
    /// [`MechanismError`], in words for `doctor`.
    pub fn begin(&mut self) -> Result<(), MechanismError> {
        let taken_over = passing().any(|name| links::path(&self.pins, name).exists());
        if taken_over {
            return self.attach();
        }
        STANDING
            .into_iter()
            .try_for_each(|name| self.attach_at(name))?;
        self.stubs.dispatchers = Dispatchers::of_links(&self.pins);
        Ok(())
    }

    /// Attaches the dispatchers, unless those of a predecessor are: they go on in our bodies as
    /// well. Their links are pinned, so that what is armed outlives this process until its deadline.
    ///
    /// Not before there is a fault on a clock: where they stand, everybody on this node makes a
    /// detour of some nanoseconds through the kernel's trampoline.
    ///
    /// # Errors
    /// [`MechanismError`]
    pub fn attach(&mut self) -> Result<(), MechanismError> {
        if self.attached {
            return Ok(());
        }
        if let Err(error) = hooks().try_for_each(|name| self.attach_at(name)) {
            // The first error is the one to tell. Half of them would be no fault at all.
            drop(self.rest());
            return Err(error);
        }
        self.attached = true;
        self.stubs.dispatchers = Dispatchers::of_links(&self.pins);
        Ok(())
    }

    fn attach_at(&mut self, name: &str) -> Result<(), MechanismError> {
        let links = links::directory(&self.pins);
        fs::create_dir_all(&links).map_err(io_error(format!("create {}", links.display())))?;
        let path = links.join(name);
        if path.exists() {
            return Ok(());
        }
        pin(link(&mut self.ebpf, name)?, &path)
    }

    /// Sees to it that everybody in this cgroup asks the kernel for the time, or has probes: asked for by
    /// `pids` until there is nobody new.
    ///
    /// # Errors
    /// The first program that can have neither, and why.
    pub fn enter(
        &mut self,
        cgroup: u64,
        pids: impl Fn() -> Vec<u32>,
    ) -> Result<(), MechanismError> {
        self.stubs.enter(&mut self.ebpf, cgroup, pids)
    }

    /// The same for those who have come since, in other ways than by being started there. Problems are
    /// kept for [`Stubs::problem`].
    pub fn refresh(&mut self, cgroup: u64, pids: &[u32]) {
        self.stubs.refresh(&mut self.ebpf, cgroup, pids);
    }

    /// Whether everything is attached.
    pub const fn is_attached(&self) -> bool {
        self.attached
    }

    /// Removes the dispatchers from the kernel's functions, but for those of [`STANDING`].
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn rest(&mut self) -> Result<(), MechanismError> {
        self.attached = false;
        self.stubs.probes.detach_all();
        // Those that lend a program's memory go before those that give it back.
        for name in passing().rev() {
            unpin(&links::path(&self.pins, name))?;
        }
        self.stubs.dispatchers = Dispatchers::of_links(&self.pins);
        Ok(())
    }

    /// Removes all of them.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach(&mut self) -> Result<(), MechanismError> {
        self.rest()?;
        let mut standing = STANDING.into_iter().rev();
        standing.try_for_each(|name| unpin(&links::path(&self.pins, name)))
    }

    /// What the kernel is told, but for generation and deadline, at CLOCK_MONOTONIC nanoseconds `now`,
    /// when clocks show `began_ns`.
    pub fn rule(effect: &ClockEffect, mode: Mode, now: u64, began_ns: [i64; 4]) -> ClockRule {
        let mut jumps = [Jump::default(); MAX_JUMPS];
        for (place, jump) in jumps.iter_mut().zip(&effect.jumps) {
            place.at_ns = now.saturating_add(jump.after_ns);
            place.by_ns = jump.by_ns;
        }
        ClockRule {
            flags: match mode {
                Mode::Inject => 0,
                Mode::Observe => flag::OBSERVE,
            },
            offset_ns: effect.offset_ns,
            clocks: effect.clocks,
            drift_ppm: effect.drift_ppm,
            began_ns,
            jumps,
            ..ClockRule::default()
        }
    }
}

/// Names of the dispatchers, and of their links. What gives a program's memory back comes before what
/// lends it (`waits`).
fn hooks() -> impl DoubleEndedIterator<Item = &'static str> {
    let exits = exits().map(|(name, _)| name);
    let entries = waits::ENTRIES.into_iter().map(|(name, _)| name);
    exits.chain([EXEC]).chain(entries)
}

/// Those that are there while a fault on a clock needs them.
fn passing() -> impl DoubleEndedIterator<Item = &'static str> {
    hooks().filter(|name| !STANDING.contains(name))
}

/// Names of the kernel's functions and tracepoints that programs are attached to.
pub fn functions() -> Vec<&'static str> {
    let functions = exits().chain(waits::ENTRIES).map(|(_, function)| function);
    functions.chain([EXEC_TRACED_AS]).collect()
}

fn exits() -> impl DoubleEndedIterator<Item = (&'static str, &'static str)> {
    arch::EXITS.into_iter().chain(waits::EXITS)
}

fn dispatcher_and_body(name: &str) -> [String; 2] {
    [name.to_owned(), format!("{name}_body")]
}

/// Attaches one of them.
fn link(ebpf: &mut Ebpf, name: &str) -> Result<FdLink, MechanismError> {
    let link = match ebpf.program_mut(name) {
        Some(Program::FExit(exit)) => exit
            .attach()
            .and_then(|id| exit.take_link(id))
            .map(FdLink::from),
        Some(Program::FEntry(entry)) => entry
            .attach()
            .and_then(|id| entry.take_link(id))
            .map(FdLink::from),
        Some(Program::BtfTracePoint(exec)) => exec
            .attach()
            .and_then(|id| exec.take_link(id))
            .map(FdLink::from),
        _ => return Err(LoadError::Absent.into()),
    };
    link.map_err(program("attach clock_shift"))
}

/// Under lockdown the kernel does not know the helper that writes a program's memory
/// (`bpf_tracing_func_proto`), which the verifier's words do not say.
fn refused(error: aya::programs::ProgramError) -> MechanismError {
    match lockdown::mode(Path::new(lockdown::PATH)).as_deref() {
        Some(mode @ ("integrity" | "confidentiality")) => MechanismError::Target(format!(
            "the kernel is locked down ({mode}, as with Secure Boot): no program may write to the \
             memory of others"
        )),
        _ => program("load clock_shift")(error),
    }
}
