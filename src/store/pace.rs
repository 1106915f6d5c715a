//! When a lane takes up what waits, and how much of it: enough to share its statements, and no more than its part.

use std::time::Duration;

/// What is held back for a fuller batch goes at the latest after this long, so that one lane that hangs does not stop
/// the others.
pub(super) const HOLD_MAX: Duration = Duration::from_millis(20);

/// The lanes of one kind, and how much is in flight on them.
///
/// Taking whatever waits as soon as a lane is free ends in batches of one: the answers of a batch come back as new
/// calls one by one, and the first of them would take the free lane for itself while its companions pile up behind the
/// other. So a further lane starts only with as much as the lanes at work have each, and takes only its part of all
/// there is; then the lanes take turns with batches of about one size. A call that finds no lane at work goes at once.
#[derive(Debug)]
pub(super) struct Lanes {
    max: usize,
    busy: usize,
    /// Taken in this epoch.
    in_flight: usize,
    /// What was taken in an earlier one hangs: nothing is held back for its sake.
    epoch: u64,
    /// A lane has been called to work and has not taken anything yet.
    is_starting: bool,
    /// A timer runs that will take up what is held back.
    is_timed: bool,
}

impl Lanes {
    pub fn new(max: usize) -> Self {
        Self { max, busy: 0, in_flight: 0, epoch: 0, is_starting: false, is_timed: false }
    }

    /// Whether a lane should be called to take up what waits.
    pub fn wants(&self, waiting: usize) -> bool {
        waiting > 0 && self.is_free() && waiting * self.busy >= self.in_flight
    }

    /// Whether a lane could be called.
    pub fn is_free(&self) -> bool {
        self.busy < self.max && !self.is_starting
    }

    /// A lane is called to work.
    pub fn start(&mut self) {
        debug_assert!(self.is_free(), "a lane is called that is not free");
        self.busy += 1;
        self.is_starting = true;
    }

    /// The most that the lane that was called should take.
    pub fn part(&self, waiting: usize) -> usize {
        (waiting + self.in_flight).div_ceil(self.max).max(1)
    }

    /// The lane that was called has taken so much.
    pub fn take(&mut self, calls: usize) -> Taken {
        self.is_starting = false;
        self.in_flight += calls;
        Taken { calls, epoch: self.epoch }
    }

    /// The lane that took this is free again.
    pub fn end(&mut self, taken: Taken) {
        self.busy -= 1;
        if taken.epoch == self.epoch {
            self.in_flight -= taken.calls;
        }
    }

    /// Whether somebody has to wait [`HOLD_MAX`] and then call [`Lanes::timed_out`].
    pub fn needs_timer(&mut self, waiting: usize) -> bool {
        let needs = waiting > 0 && self.is_free() && !self.is_timed;
        self.is_timed |= needs;
        needs
    }

    /// What is in flight now has been so for [`HOLD_MAX`] or nearly.
    pub fn timed_out(&mut self) {
        self.is_timed = false;
        self.in_flight = 0;
        self.epoch += 1;
    }
}

/// What a lane has in flight.
#[derive(Debug)]
#[must_use]
pub(super) struct Taken {
    calls: usize,
    epoch: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn begin(lanes: &mut Lanes, calls: usize) -> Taken {
        lanes.start();
        lanes.take(calls)
    }

    #[test]
    fn a_lone_call_goes_at_once() {
        let mut lanes = Lanes::new(2);
        assert!(lanes.wants(1));
        let first = begin(&mut lanes, 1);
        // And a second one beside it.
        assert!(lanes.wants(1));
        let _second = begin(&mut lanes, 1);
        assert!(!lanes.wants(9), "no third lane");
        lanes.end(first);
        assert!(lanes.wants(1));
    }

    #[test]
    fn a_further_lane_waits_for_a_batch_of_the_same_size() {
        let mut lanes = Lanes::new(2);
        let taken = begin(&mut lanes, 32);
        assert!(!lanes.wants(31));
        assert!(lanes.wants(32));
        lanes.end(taken);
        assert!(lanes.wants(1), "no lane is at work");
    }

    #[test]
    fn one_lane_is_called_at_a_time() {
        let mut lanes = Lanes::new(2);
        lanes.start();
        assert!(!lanes.wants(9));
        let _taken = lanes.take(5);
        assert!(lanes.wants(5));
    }

    #[test]
    fn a_lane_leaves_the_others_their_part() {
        let mut lanes = Lanes::new(2);
        assert_eq!(lanes.part(64), 32);
        let _taken = begin(&mut lanes, 32);
        assert_eq!(lanes.part(32), 32);
        assert_eq!(lanes.part(1), 17);
        assert_eq!(Lanes::new(1).part(64), 64);
        assert_eq!(Lanes::new(8).part(1), 1);
    }

    /// Callers that call again as soon as they are answered, one by one.
    #[test]
    fn closed_loops_do_not_fall_into_batches_of_one() {
        for callers in [8, 64, 256] {
            let mut lanes = Lanes::new(2);
            let (mut waiting, mut flying): (usize, VecDeque<Taken>) = (0, VecDeque::new());
            let (mut batches, mut calls) = (0, 0);
            let mut step =
                |lanes: &mut Lanes, waiting: &mut usize, flying: &mut VecDeque<Taken>| {
                    while lanes.wants(*waiting) {
                        let taken = begin(lanes, lanes.part(*waiting).min(*waiting));
                        *waiting -= taken.calls;
                        batches += 1;
                        calls += taken.calls;
                        flying.push_back(taken);
                    }
                };
            for _ in 0..100 {
                while waiting + flying.iter().map(|taken| taken.calls).sum::<usize>() < callers {
                    waiting += 1;
                    step(&mut lanes, &mut waiting, &mut flying);
                }
                lanes.end(flying.pop_front().expect("something is in flight"));
                step(&mut lanes, &mut waiting, &mut flying);
            }
            assert!(calls / batches >= callers / 4, "{callers} callers: {calls} in {batches}");
        }
    }

    #[test]
    fn what_is_held_back_gets_one_timer() {
        let mut lanes = Lanes::new(2);
        let hangs = begin(&mut lanes, 32);
        assert!(!lanes.needs_timer(0));
        assert!(lanes.needs_timer(1));
        assert!(!lanes.needs_timer(2), "one is running");
        lanes.timed_out();
        assert!(lanes.needs_timer(2));
        // Nobody waits any more for what hangs.
        assert!(lanes.wants(1));
        let taken = begin(&mut lanes, 1);
        lanes.end(taken);
        assert!(lanes.wants(1));
        lanes.end(hangs);
        let _taken = begin(&mut lanes, 7);
        assert!(!lanes.wants(6));
    }
}
