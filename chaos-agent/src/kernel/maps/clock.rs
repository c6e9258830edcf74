//! Maps of the clock family, and what rules of both families have in common.

use aya::maps::MapError;
use chaos_abi::clock::ClockRule;
use chaos_abi::network::Rule;

use super::{Pinned, Plain, TargetKind, batch};

impl Pinned {
    /// A clock rule; one with generation 0 is a free slot.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn clock_rule(&self, id: u32) -> Result<ClockRule, MapError> {
        self.clock_rules.get(&id, 0).map(|plain| plain.0)
    }

    /// Replaces a clock rule.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_clock_rule(&mut self, id: u32, rule: ClockRule) -> Result<(), MapError> {
        self.clock_rules.set(id, Plain(rule), 0)
    }

    /// All clock rules that are not free slots.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn clock_rules(&self) -> Result<Vec<(u32, ClockRule)>, MapError> {
        let all = (0..).zip(batch::elements(&self.clock_rules)?);
        Ok(all.filter(|(_, rule)| rule.generation != 0).collect())
    }

    /// Which life of its slot a rule of these targets has; 0 is a free slot.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn generation(&self, kind: TargetKind, id: u32) -> Result<u32, MapError> {
        Ok(self.life(kind, id)?.0)
    }

    /// The generation of a rule, and its deadline.
    fn life(&self, kind: TargetKind, id: u32) -> Result<(u32, u64), MapError> {
        Ok(match kind {
            TargetKind::Cgroup | TargetKind::Device => {
                let rule = self.rule(id)?;
                (rule.generation, rule.deadline_ns)
            }
            TargetKind::Clock => {
                let rule = self.clock_rule(id)?;
                (rule.generation, rule.deadline_ns)
            }
        })
    }

    /// Makes its slot a free one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn free_rule(&mut self, kind: TargetKind, id: u32) -> Result<(), MapError> {
        match kind {
            TargetKind::Cgroup | TargetKind::Device => self.set_rule(id, Rule::default()),
            TargetKind::Clock => self.set_clock_rule(id, ClockRule::default()),
        }
    }

    /// Until when a rule acts, CLOCK_MONOTONIC nanoseconds; `None` when its slot has another life, or
    /// none.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn deadline_of(
        &self,
        kind: TargetKind,
        id: u32,
        generation: u32,
    ) -> Result<Option<u64>, MapError> {
        let (held, deadline_ns) = self.life(kind, id)?;
        Ok((held == generation).then_some(deadline_ns))
    }

    /// Gives a rule another deadline, CLOCK_MONOTONIC nanoseconds, unless its slot has another life by
    /// now.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_deadline(
        &mut self,
        kind: TargetKind,
        id: u32,
        generation: u32,
        deadline_ns: u64,
    ) -> Result<(), MapError> {
        match kind {
            TargetKind::Cgroup | TargetKind::Device => {
                let mut rule = self.rule(id)?;
                if rule.generation != generation {
                    return Ok(());
                }
                rule.deadline_ns = deadline_ns;
                self.set_rule(id, rule)
            }
            TargetKind::Clock => {
                let mut rule = self.clock_rule(id)?;
                if rule.generation != generation {
                    return Ok(());
                }
                rule.deadline_ns = deadline_ns;
                self.set_clock_rule(id, rule)
            }
        }
    }

    /// Depths at which cgroups with clock rules sit, each in its place; 0 is a free one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn clock_depths(&self) -> Result<Vec<u32>, MapError> {
        self.clock_depths.iter().collect()
    }

    /// Replaces an element of `CLOCK_DEPTHS`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_clock_depth(&mut self, index: u32, depth: u32) -> Result<(), MapError> {
        self.clock_depths.set(index, depth, 0)
    }
}
