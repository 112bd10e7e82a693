//! What is told, whatever connections do and whenever somebody looks.

use proptest::prelude::*;

use super::*;

fn bytes(forward: u64, back: u64) -> Carried {
    Carried { server: 7, opened: 1, closed: 1, forward, back }
}

#[test]
fn what_was_told_is_not_told_again() {
    let told = Carried { server: 7, opened: 1, closed: 0, forward: 60, back: 5 };
    assert_eq!(
        news(&bytes(100, 5), (0, 0), &told),
        Some(Carried { server: 7, opened: 0, closed: 1, forward: 40, back: 0 })
    );
    assert_eq!(news(&bytes(100, 5), (0, 0), &bytes(100, 5)), None);
    // It has ended between the two looks.
    let open = Carried { closed: 0, forward: 0, back: 0, ..told };
    assert_eq!(news(&open, (0, 0), &told), None);
}

/// One pair's connections, as the kernel has them.
#[derive(Default)]
struct World {
    stats: Carried,
    open: Vec<u64>,
}

#[derive(Debug, Clone)]
enum Step {
    Open,
    Send(usize, u64),
    Close(usize),
    /// Somebody looks; so many of the open connections end between the look at the entries and that at the sockets, and so
    /// many begin.
    Look(usize, usize),
    /// Another agent goes on; what this one has counted stays with it.
    Replace,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Open),
        (0_usize..8, 1_u64..1000).prop_map(|(which, n)| Step::Send(which, n)),
        (0_usize..8).prop_map(Step::Close),
        (0_usize..3, 0_usize..3).prop_map(|(ends, begins)| Step::Look(ends, begins)),
        Just(Step::Replace),
    ];
    proptest::collection::vec(step, 0..60)
}

impl World {
    fn begin(&mut self) {
        self.stats.opened += 1;
        self.open.push(0);
    }

    fn end(&mut self, which: usize) {
        if which < self.open.len() {
            self.stats.forward += self.open.remove(which);
            self.stats.closed += 1;
        }
    }

    fn sent(&self) -> u64 {
        self.stats.forward + self.open.iter().sum::<u64>()
    }

    /// A look, and what is told by it.
    fn look(&mut self, ends: usize, begins: usize, told: &mut Carried) -> Carried {
        let stats = self.stats;
        (0..ends).for_each(|_| self.end(0));
        (0..begins).for_each(|_| self.begin());
        let new = news(&stats, (self.open.iter().sum(), 0), told).unwrap_or_default();
        *told = sum(told, &new);
        new
    }
}

proptest! {
    /// At no time more is told than was, however many agents tell; and when all is quiet, all of it.
    #[test]
    fn nothing_is_told_twice_and_nothing_is_lost(steps in steps()) {
        let (mut world, mut told) = (World::default(), Carried::default());
        // By agent.
        let mut counters = vec![Carried::default()];
        for step in steps {
            match step {
                Step::Open => world.begin(),
                Step::Send(which, n) => if let Some(sent) = world.open.get_mut(which) { *sent += n },
                Step::Close(which) => world.end(which),
                Step::Look(ends, begins) => {
                    let new = world.look(ends, begins, &mut told);
                    let last = counters.last_mut().unwrap();
                    *last = sum(last, &new);
                }
                Step::Replace => counters.push(Carried::default()),
            }
            let all = counters.iter().fold(Carried::default(), |all, one| sum(&all, one));
            prop_assert!(all.forward <= world.sent() && all.closed <= world.stats.closed);
        }
        for quiet in [false, true] {
            if quiet {
                (0..world.open.len()).for_each(|_| world.end(0));
            }
            let new = world.look(0, 0, &mut told);
            let last = counters.last_mut().unwrap();
            *last = sum(last, &new);
            let all = counters.iter().fold(Carried::default(), |all, one| sum(&all, one));
            prop_assert_eq!(all.forward, world.sent());
            prop_assert_eq!((all.opened, all.closed), (world.stats.opened, world.stats.closed));
        }
    }
}
