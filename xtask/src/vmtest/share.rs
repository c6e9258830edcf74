//! Which of a kernel's tests a machine has to run, when it is not all of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// One of two machines that share the tests of a kernel: one goes from the first test on, the other
/// from the last one back, and where they meet both are done. Or a machine that has them to itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Share {
    pub(super) backwards: bool,
    /// No test begins later.
    until: Option<Instant>,
    /// Each test that has begun, and whether in the one that goes backwards.
    begun: Arc<Mutex<HashMap<String, bool>>>,
}

impl Share {
    /// All that begin before this time.
    pub(crate) fn until(until: Option<Instant>) -> Share {
        Share {
            until,
            ..Share::default()
        }
    }

    /// The other one.
    pub(crate) fn other(&self) -> Share {
        Share {
            backwards: !self.backwards,
            until: self.until,
            begun: Arc::clone(&self.begun),
        }
    }

    /// Takes a test for this machine; false if the other one has it, or there is no time left for it.
    pub(super) fn take(&self, test: &str) -> bool {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = self.until.is_some_and(|until| Instant::now() > until);
        if is_late && !begun.contains_key(test) {
            return false;
        }
        *begun.entry(test.to_owned()).or_insert(self.backwards) == self.backwards
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_run_by_the_machine_that_began_it() {
        let one = Share::default();
        let other = one.other();
        assert!(one.take("a") && other.take("z"));
        // Also when its machine is booted again.
        assert!(one.take("a") && !other.take("a"));
        assert!(!one.take("z"));
    }

    #[test]
    fn what_has_begun_in_time_is_run_to_its_end_and_no_more_begins() {
        let early = Share::default();
        assert!(early.take("a"));
        let late = Share {
            until: Some(Instant::now()),
            ..early
        };
        while Some(Instant::now()) <= late.until {}
        assert!(late.take("a") && !late.take("b") && !late.other().take("b"));
    }
}
