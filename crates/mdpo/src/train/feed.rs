//! Micro-batches made ahead of training: threads read, decode, corrupt, resize and tokenise what the next steps take while the model works on
//! this one.
//!
//! What is made, and in which order it is handed over, is a function of the step alone; threads only change when. None of them calls libtorch.

use super::micro::{Prepared, Steps};
use crate::error::caught;
use crate::{Error, Result};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// The micro-batches of a range of steps that are made here, in order. Dropped, it ends its threads and waits for them.
#[derive(Debug)]
pub struct Feed<'scope> {
    shared: Arc<Shared>,
    threads: Vec<ScopedJoinHandle<'scope, ()>>,
    waited: Duration,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something was made or taken, or the end has come.
    changed: Condvar,
    /// Micro-batches that may be in the making or ready at once.
    ahead: usize,
}

#[derive(Debug)]
struct State {
    /// Steps that are not begun.
    steps: Range<usize>,
    /// Epoch and examples of what the step begun last still needs.
    pending: VecDeque<(usize, Vec<usize>)>,
    /// Micro-batches that a thread has begun, and those that were handed over.
    begun: usize,
    taken: usize,
    ready: BTreeMap<usize, Result<Prepared>>,
    ended: bool,
}

/// How many threads make data: a quarter of the cores and at most four, since libtorch's own threads need the rest.
pub fn data_threads() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new((cores / 4).min(4)).unwrap_or(NonZeroUsize::MIN)
}

impl<'scope> Feed<'scope> {
    /// Begins with the first of the steps numbered `range`; its `threads`, at least one, live in `scope`.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new<'env>(
        scope: &'scope Scope<'scope, 'env>,
        steps: Steps<'env>,
        range: Range<usize>,
        threads: NonZeroUsize,
    ) -> Result<Feed<'scope>> {
        let threads = threads.get();
        let (pending, ready) = (VecDeque::new(), BTreeMap::new());
        let state = State { steps: range, pending, begun: 0, taken: 0, ready, ended: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), ahead: threads + 2 });
        let mut feed = Feed { shared, threads: Vec::new(), waited: Duration::ZERO };
        for number in 0..threads {
            let (shared, steps) = (feed.shared.clone(), steps.clone());
            let thread = std::thread::Builder::new().name(format!("data-{number}"));
            let thread = thread.spawn_scoped(scope, move || shared.make(&steps));
            feed.threads.push(thread.map_err(|error| Error::at("threads", format!("cannot start one: {error}")))?);
        }
        Ok(feed)
    }

    /// Seconds that [`Feed::next`] has waited since this was last asked.
    pub fn take_waited(&mut self) -> f64 {
        std::mem::take(&mut self.waited).as_secs_f64()
    }
}

impl Iterator for Feed<'_> {
    type Item = Result<Prepared>;

    fn next(&mut self) -> Option<Self::Item> {
        let began = Instant::now();
        let mut state = self.shared.lock();
        let found = loop {
            let number = state.taken;
            if let Some(made) = state.ready.remove(&number) {
                state.taken += 1;
                break Some(made);
            }
            if state.pending.is_empty() && state.steps.is_empty() && state.begun == number {
                break None;
            }
            state = self.shared.wait(state);
        };
        drop(state);
        self.shared.changed.notify_all();
        self.waited += began.elapsed();
        found
    }
}

impl Drop for Feed<'_> {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // What a thread panics with is an error of the micro-batch it made; it has no other.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does: one micro-batch after the other, until there is none or the feed has ended.
    fn make(&self, steps: &Steps) {
        while let Some((number, epoch, examples)) = self.begin(steps) {
            let made = caught(|| Prepared::read(steps.inputs, &examples, epoch));
            self.lock().ready.insert(number, made);
            self.changed.notify_all();
        }
    }

    /// Waits for room and takes the next micro-batch: its number, epoch and examples.
    fn begin(&self, steps: &Steps) -> Option<(usize, usize, Vec<usize>)> {
        let mut state = self.lock();
        while !state.ended && state.begun - state.taken >= self.ahead {
            state = self.wait(state);
        }
        if state.ended {
            return None;
        }
        while state.pending.is_empty() {
            let Some(step) = state.steps.next() else {
                // The last steps may have had nothing for this rank.
                self.changed.notify_all();
                return None;
            };
            let cut = steps.step(step);
            state.pending.extend(steps.own(&cut).map(|(_, examples)| (cut.epoch, examples.to_vec())));
        }
        let (epoch, examples) = state.pending.pop_front()?;
        let number = state.begun;
        state.begun += 1;
        Some((number, epoch, examples))
    }
}
