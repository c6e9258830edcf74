//! What reading a clock costs while there is a fault on one: those whom it is not about, and its target.
//!
//! All programs here, and the debuggers, are on one CPU and take turns: a debugger on another CPU pays
//! for waking that one up as well, several times as much.

use std::cell::RefCell;

use anyhow::{Result, ensure};

use super::reads::{Reader, Shown, Way};
use super::tracer::Traced;
use super::{Effort, MONOTONIC, REALTIME, Tell, ahead};
use crate::bench::{InTurns, compare_each, copies, pin_to_this_cpu};
use crate::cgroup::Cgroup;
use crate::figures::{Aim, Figure};
use crate::node::{Host, on_clocks};
use crate::process::Place;

/// Calls behind a debugger for each that has none: they take so long.
const TRACED: u32 = 20;

/// Of a bystander that has a vDSO: none of its instructions is another one, so 1, as near as the control
/// of an emulated machine can tell.
const NOTHING: Aim = Aim::AtMost(1.05);

/// Of a target beside one whose clock a debugger changes.
const A_TWENTIETH: Aim = Aim::AtMost(1.0 / 20.0);

/// The first two of a comparison are what is asked for; the others are for the record.
fn tell_all<const N: usize>(figures: [Figure; N], aim: Aim, tell: Tell<'_>) -> Result<()> {
    for (index, figure) in figures.into_iter().enumerate() {
        tell(if index < 2 { figure.aim(aim) } else { figure })?;
    }
    Ok(())
}

/// A fault on clocks that is there or not. Without one the kernel is bare: the agent is gone with all
/// its programs. (One that goes on takes those at the clocks away as well, half a minute later.)
struct Switch {
    target: Cgroup,
    host: Option<Host>,
}

impl Switch {
    fn on(&mut self) -> Result<()> {
        if self.host.is_none() {
            let host = self.host.insert(Host::open()?);
            host.arm(ahead(&self.target, &[REALTIME, MONOTONIC]))?;
        }
        ensure!(
            !on_clocks().is_empty(),
            "no programs are attached to clocks"
        );
        Ok(())
    }

    fn off(&mut self) -> Result<()> {
        self.host = None;
        ensure!(
            on_clocks().is_empty(),
            "still attached to clocks: {:?}",
            on_clocks()
        );
        Ok(())
    }
}

/// A bystander while a fault on the clocks of another cgroup is armed, beside the same program while
/// there is none anywhere. And what its hook costs the target, beside a system call without. The control
/// is another bystander, while there is no fault.
pub(super) fn of_bystanders(effort: Effort, tell: Tell<'_>) -> Result<()> {
    struct Sides {
        switch: Switch,
        target: Reader,
        bystander: Reader,
        twin: Reader,
    }
    pin_to_this_cpu()?;
    let (target, bystanders) = (Cgroup::new()?, Cgroup::new()?);
    let elsewhere = || Reader::start(Place::host().in_cgroup(&bystanders));
    let sides = RefCell::new(Sides {
        target: Reader::start(Place::host().in_cgroup(&target))?,
        bystander: elsewhere()?,
        twin: elsewhere()?,
        switch: Switch { target, host: None },
    });
    let calls = effort.calls;
    let right = |reader: &mut Reader| -> Result<[f64; 4]> {
        let mut time = |clock, way| reader.time(clock, way, calls, Shown::Right);
        Ok([
            time(REALTIME, Way::Library)?,
            time(MONOTONIC, Way::Library)?,
            time(REALTIME, Way::SystemCall)?,
            time(MONOTONIC, Way::SystemCall)?,
        ])
    };
    let faulty = || {
        let sides = &mut *sides.borrow_mut();
        sides.switch.on()?;
        let [a, b, c, d] = right(&mut sides.bystander)?;
        let target = &mut sides.target;
        let moved = target.time(REALTIME, Way::Library, calls, Shown::Ahead)?;
        Ok([a, b, c, d, moved])
    };
    let bare = |reader: fn(&mut Sides) -> &mut Reader| {
        let sides = &mut *sides.borrow_mut();
        sides.switch.off()?;
        let [a, b, c, d] = right(reader(sides))?;
        Ok([a, b, c, d, c])
    };
    let unit = "ns/call / no clock fault anywhere";
    let names = [
        ("bystander, vDSO, CLOCK_REALTIME", unit),
        ("bystander, vDSO, CLOCK_MONOTONIC", unit),
        ("bystander, system call, CLOCK_REALTIME", unit),
        ("bystander, system call, CLOCK_MONOTONIC", unit),
        (
            "target, running program, CLOCK_REALTIME: beside a system call",
            "ns/call / system call, no clock fault anywhere",
        ),
    ];
    let figures = compare_each(
        names,
        effort.pairs,
        (
            faulty,
            || bare(|sides| &mut sides.bystander),
            || bare(|sides| &mut sides.twin),
        ),
    )?;
    tell_all(figures, NOTHING, tell)
}

/// The target of a fault beside a program whose clock a debugger changes, and beside a program that
/// nobody changes.
pub(super) fn of_targets(effort: Effort, tell: Tell<'_>) -> Result<()> {
    struct Ours {
        running: Reader,
        started: Reader,
    }
    struct Reference {
        traced: Traced,
        untouched: Reader,
    }
    pin_to_this_cpu()?;
    let target = Cgroup::new()?;
    let place = || Place::host().in_cgroup(&target);
    let running = Reader::start(place())?;
    let mut host = Host::open()?;
    host.arm(ahead(&target, &[REALTIME, MONOTONIC]))?;
    let mut ours = Ours {
        running,
        started: Reader::start(place())?,
    };
    let references = || -> Result<InTurns<Reference>> {
        let made = (0..copies(effort.pairs)).map(|_| {
            Ok(Reference {
                traced: Traced::start()?,
                untouched: Reader::start(Place::host())?,
            })
        });
        Ok(InTurns::new(made.collect::<Result<_>>()?))
    };
    let (mut references, mut twins) = (references()?, references()?);
    let calls = effort.calls;
    let of_ours = || {
        let time =
            |reader: &mut Reader, clock| reader.time(clock, Way::Library, calls, Shown::Ahead);
        let running = time(&mut ours.running, REALTIME)?;
        let started = time(&mut ours.started, REALTIME)?;
        let monotonic = time(&mut ours.running, MONOTONIC)?;
        Ok([running, started, running, started, monotonic])
    };
    let of_reference = |side: &mut Reference| {
        let traced = side.traced.time((calls / TRACED).max(1))?;
        let mut time = |clock| {
            side.untouched
                .time(clock, Way::Library, calls, Shown::Right)
        };
        let (realtime, monotonic) = (time(REALTIME)?, time(MONOTONIC)?);
        Ok([traced, traced, realtime, realtime, monotonic])
    };
    let (traced, vdso) = ("ns/call / ptrace", "ns/call / vDSO of another program");
    let names = [
        (
            "target, running program, CLOCK_REALTIME: beside ptrace",
            traced,
        ),
        (
            "target, started program, CLOCK_REALTIME: beside ptrace",
            traced,
        ),
        (
            "target, running program, CLOCK_REALTIME: beside a vDSO",
            vdso,
        ),
        (
            "target, started program, CLOCK_REALTIME: beside a vDSO",
            vdso,
        ),
        (
            "target, running program, CLOCK_MONOTONIC: beside a vDSO",
            vdso,
        ),
    ];
    let figures = compare_each(
        names,
        effort.pairs,
        (
            of_ours,
            || of_reference(references.next()?),
            || of_reference(twins.next()?),
        ),
    )?;
    tell_all(figures, A_TWENTIETH, tell)
}
