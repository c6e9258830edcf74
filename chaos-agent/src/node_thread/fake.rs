//! A node without a kernel, for the tests of what stands before it.
//!
//! It models only this: a fault is armed by the `reconcile` after it was desired, and gone by the
//! second one after it was not desired any more, being `Recovering` in between. Faults end by
//! themselves when their time is over, and leased ones of an orphan after its time-out. While the
//! halt word is set, what is armed is taken off and shown as failed. Nothing
//! about targets, mechanisms or errors: that is the planner's and the kernel's part.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chaos_planner::capabilities::{Capabilities, Capability, Mechanism};
use chaos_planner::fault::{Fault, FaultId, Lifetime};
use chaos_planner::observed::{Counts, Observed, Phase};

use super::{NodePort, Owner};

/// What a test can see and set while the thread runs.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) faults: BTreeMap<FaultId, Armed>,
    pub(crate) halted: bool,
    pub(crate) handed_over: bool,
    pub(crate) orphans: Vec<Owner>,
    /// What is still to be loaded, and how often it was: with an endless supply the thread is never idle.
    pub(crate) unloaded: u64,
    pub(crate) loaded: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Armed {
    pub(crate) fault: Fault,
    pub(crate) owner: Owner,
    pub(crate) phase: Phase,
    pub(crate) counts: Counts,
    since: Instant,
}

#[derive(Clone, Debug)]
pub(crate) struct FakeNode {
    capabilities: Capabilities,
    pub(crate) world: Arc<Mutex<World>>,
}

impl FakeNode {
    pub(crate) fn new() -> Self {
        let mechanisms = Mechanism::ALL.map(|mechanism| Capability {
            mechanism,
            supported: true,
            only_loss: false,
            reason: String::new(),
        });
        Self {
            capabilities: Capabilities {
                kernel: "6.12.0-fake".to_owned(),
                mechanisms: mechanisms.into(),
            },
            world: Arc::default(),
        }
    }
}

impl NodePort for FakeNode {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn adopted(&self) -> Vec<(Owner, Fault)> {
        let world = self.world.lock().unwrap();
        world
            .faults
            .values()
            .map(|armed| (armed.owner.clone(), armed.fault.clone()))
            .collect()
    }

    fn set_desired(&mut self, owner: Owner, faults: Vec<Fault>) {
        let mut world = self.world.lock().unwrap();
        for armed in world
            .faults
            .values_mut()
            .filter(|armed| armed.owner == owner)
        {
            if !faults.iter().any(|fault| fault.id == armed.fault.id) {
                armed.phase = Phase::Recovering;
            }
        }
        for fault in faults {
            let since = Instant::now();
            let (owner, counts) = (owner.clone(), Counts::default());
            world
                .faults
                .entry(fault.id.clone())
                .and_modify(|armed| armed.fault = fault.clone())
                .or_insert(Armed {
                    fault,
                    owner,
                    phase: Phase::Pending,
                    counts,
                    since,
                });
        }
    }

    fn orphan(&mut self, owner: Owner) {
        let mut world = self.world.lock().unwrap();
        for armed in world
            .faults
            .values_mut()
            .filter(|armed| armed.owner == owner)
        {
            if let Lifetime::Leased {
                orphan_timeout: Some(timeout),
            } = armed.fault.lifetime
            {
                armed.fault.lifetime = Lifetime::For(armed.since.elapsed() + timeout);
            }
        }
        world.orphans.push(owner);
    }

    fn load_ahead(&mut self) -> bool {
        let mut world = self.world.lock().unwrap();
        let left = world.unloaded.checked_sub(1);
        world.loaded += u64::from(left.is_some());
        world.unloaded = left.unwrap_or(0);
        left.is_some()
    }

    fn reconcile(&mut self) -> Duration {
        let mut world = self.world.lock().unwrap();
        let (mut gone, halted) = (Vec::new(), world.halted);
        for (id, armed) in &mut world.faults {
            match armed.phase {
                Phase::Pending | Phase::Failed if !halted => armed.phase = Phase::Injected,
                Phase::Pending | Phase::Injected if halted => armed.phase = Phase::Failed,
                Phase::Recovering => gone.push(id.clone()),
                Phase::Injected => {
                    if matches!(armed.fault.lifetime, Lifetime::For(d) if armed.since.elapsed() >= d)
                    {
                        armed.phase = Phase::Expired;
                    }
                }
                _ => {}
            }
        }
        // `Recovering` is seen by one `observed` before the fault is gone.
        for id in gone {
            world.faults.remove(&id);
        }
        Duration::from_millis(20)
    }

    fn observed(&mut self, owner: Option<&Owner>) -> Vec<Observed> {
        let world = self.world.lock().unwrap();
        world
            .faults
            .values()
            .filter(|armed| owner.is_none_or(|owner| armed.owner == *owner))
            .map(|armed| Observed {
                id: armed.fault.id.clone(),
                kind: armed.fault.kind.clone(),
                namespace: armed.fault.namespace.clone(),
                name: armed.fault.name.clone(),
                record: armed.fault.record.clone(),
                phase: armed.phase,
                mechanisms: vec![Mechanism::CgroupDrop],
                reason: String::new(),
                degraded: false,
                counts: armed.counts,
                expires_in: Duration::from_secs(30),
                armed_ago: armed.since.elapsed(),
                first_hit_ago: (armed.counts.injected > 0).then_some(Duration::from_secs(1)),
            })
            .collect()
    }

    fn hand_over(&mut self) {
        self.world.lock().unwrap().handed_over = true;
    }

    fn purge(self) -> Result<(), String> {
        self.world.lock().unwrap().faults.clear();
        Ok(())
    }

    fn halted(&self) -> bool {
        self.world.lock().unwrap().halted
    }

    fn set_halted(&mut self, halted: bool) -> Result<(), String> {
        self.world.lock().unwrap().halted = halted;
        Ok(())
    }
}
