//! Many seeds at once: a thread for each job, each seed in a runtime of its own. What comes of them
//! is handed over in the order of the seeds, however many jobs there are.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use super::run::{Report, RunError, Setup, run};

/// As many jobs as there are cores.
pub fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Runs seeds. `setup` is asked for each, `kept` takes out of its report what is wanted (in the
/// thread that ran it), `each` is given that in the order of the seeds.
pub fn in_order<T: Send>(
    seeds: Range<u64>,
    jobs: NonZeroUsize,
    setup: impl Fn(u64) -> Setup + Sync,
    kept: impl Fn(Report) -> T + Sync,
    mut each: impl FnMut(T),
) -> Result<(), RunError> {
    let next = AtomicU64::new(seeds.start);
    let (done, came) = mpsc::channel();
    std::thread::scope(|threads| {
        for _ in 0..jobs.get() {
            let (next, done, seeds) = (&next, done.clone(), seeds.clone());
            let (setup, kept) = (&setup, &kept);
            threads.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    let report = run(&setup(seed)).map(kept);
                    if done.send((seed, report)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut early = BTreeMap::new();
        let mut turn = seeds.start;
        for (seed, report) in came {
            early.insert(seed, report);
            while let Some(report) = early.remove(&turn) {
                each(report?);
                turn = turn.saturating_add(1);
            }
        }
        Ok(())
    })
}
