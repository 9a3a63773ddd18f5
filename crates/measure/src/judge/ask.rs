//! Many requests at once: who asks what, who waits how long, and when to give up.

use std::{
    collections::{HashMap, hash_map},
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Judge,
    cache::{Found, Key},
    http::Outcome,
    reply::Reply,
    request::Request,
};
use crate::{Error, Result};

/// So many requests one after the other that come to nothing, with none between them that was answered, end a call.
const HOPELESS: usize = 3;
/// A judge that was never reached is tried less often: its address may simply be wrong.
const RETRIES_AT_FIRST_CONTACT: u32 = 2;
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A judge that asks for a longer wait is told to the user instead.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);

impl Judge {
    /// Asks all of `requests`, some at a time, and gives the answers in their order, each or why there is none.
    ///
    /// Equal requests are sent once. An answer is in the cache before its thread goes on, so that a call that fails or is killed loses
    /// none: the next one asks for the rest.
    ///
    /// # Errors
    /// What would go wrong for every request ends the call: a judge that cannot be reached, refuses the key, does not know the address or
    /// the model, or fails for several requests in a row; a picture that cannot be read; a cache that cannot be read or written.
    pub fn ask(&self, requests: &[Request]) -> Result<Vec<Result<Reply>>> {
        let call = Call {
            judge: self,
            requests,
            next: AtomicUsize::new(0),
            reached: AtomicBool::new(false),
            state: Mutex::new(State::new(requests.len())),
            stopped: Condvar::new(),
        };
        thread::scope(|scope| {
            for _ in 0..self.settings.concurrency.get().min(requests.len()) {
                scope.spawn(|| call.work());
            }
        });
        call.finish()
    }
}

struct Call<'a> {
    judge: &'a Judge,
    requests: &'a [Request],
    next: AtomicUsize,
    reached: AtomicBool,
    state: Mutex<State>,
    stopped: Condvar,
}

struct State {
    results: Vec<Slot>,
    /// Which request stands for all that are equal to it.
    asked: HashMap<Key, usize>,
    stop: Option<Error>,
    /// Nobody sends anything before.
    not_before: Instant,
    failed_in_a_row: usize,
}

impl State {
    fn new(requests: usize) -> Self {
        State {
            results: (0..requests).map(|_| Slot::Open).collect(),
            asked: HashMap::new(),
            stop: None,
            not_before: Instant::now(),
            failed_in_a_row: 0,
        }
    }
}

enum Slot {
    Open,
    Reply(Reply),
    /// Why there is none.
    Failed(String),
    /// As the request at this index.
    Same(usize),
}

/// Why a thread goes no further.
enum Ended {
    /// Another one has said stop.
    Stopped,
    /// It says stop itself.
    Because(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Ended::Because(error)
    }
}

type OrEnded<T> = std::result::Result<T, Ended>;

impl Call<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the state")
    }

    fn work(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(request) = self.requests.get(index) else { return };
            if self.state().stop.is_some() {
                return;
            }
            match self.one(index, request) {
                Ok(slot) => self.state().results[index] = slot,
                Err(Ended::Stopped) => return,
                Err(Ended::Because(error)) => return self.stop(error),
            }
        }
    }

    /// The first reason stays, all who wait wake up.
    fn stop(&self, error: Error) {
        self.state().stop.get_or_insert(error);
        self.stopped.notify_all();
    }

    fn one(&self, index: usize, request: &Request) -> OrEnded<Slot> {
        let judge = self.judge;
        let body = request.body(&judge.settings)?;
        let key = Key::of(&judge.endpoint.address(), &body);
        match self.state().asked.entry(key) {
            hash_map::Entry::Occupied(first) => return Ok(Slot::Same(*first.get())),
            hash_map::Entry::Vacant(place) => place.insert(index),
        };
        match judge.cache.as_ref().map(|cache| cache.get(key)).transpose()? {
            Some(Found::Reply(reply)) => {
                judge.count().cached += 1;
                return Ok(Slot::Reply(reply));
            }
            Some(Found::Damaged) => judge.count().damaged += 1,
            Some(Found::Nothing) | None => {}
        }
        let slot = self.send(&body)?;
        if let (Slot::Reply(reply), Some(cache)) = (&slot, &judge.cache) {
            cache.put(key, reply)?;
        }
        Ok(slot)
    }

    /// Sends a request until it is answered, or as often as the settings say.
    fn send(&self, body: &[u8]) -> OrEnded<Slot> {
        let Judge { settings, endpoint, .. } = self.judge;
        let mut tries = 0;
        let mut at = Instant::now();
        loop {
            self.wait_until(at)?;
            if tries > 0 {
                self.judge.count().retries += 1;
            }
            let (why, after, reached) = match endpoint.attempt(body) {
                Outcome::Answered(reply) => {
                    self.reached.store(true, Ordering::Relaxed);
                    self.state().failed_in_a_row = 0;
                    let mut spent = self.judge.count();
                    spent.answered += 1;
                    spent.pay(reply.usage);
                    return Ok(Slot::Reply(reply));
                }
                Outcome::Stop { what, hint } => return Err(Error::at(endpoint.address(), what).hint(hint).into()),
                Outcome::Again { why, after, reached, paid } => {
                    if paid.is_some() {
                        self.judge.count().pay(paid);
                    }
                    (why, after, reached)
                }
            };
            tries += 1;
            if reached {
                self.reached.store(true, Ordering::Relaxed);
            }
            let patience = match self.reached.load(Ordering::Relaxed) {
                true => settings.retries,
                false => settings.retries.min(RETRIES_AT_FIRST_CONTACT),
            };
            if tries > patience {
                return Ok(self.give_up(tries, &why, reached)?);
            }
            if let Some(after) = after {
                if after > LONGEST_WAIT {
                    return Err(Error::at(
                        endpoint.address(),
                        format!("the judge asks for a wait of {} s: {why}", after.as_secs()),
                    )
                    .hint("run the same command again after that time")
                    .into());
                }
                let mut state = self.state();
                state.not_before = state.not_before.max(Instant::now() + after);
            }
            at = Instant::now() + backoff(settings.backoff, tries);
        }
    }

    fn give_up(&self, tries: u32, why: &str, reached: bool) -> Result<Slot> {
        let address = self.judge.endpoint.address();
        let times = if tries == 1 { "once".to_owned() } else { format!("{tries} times") };
        if !reached {
            return Err(Error::at(address, format!("the judge cannot be reached (tried {times}): {why}"))
                .hint("check `--judge-url`, that the server runs, and the proxies of the environment (`https_proxy`, `no_proxy`)"));
        }
        let what = format!("no usable answer (asked {times}); the last time {why}");
        self.judge.count().failed += 1;
        let in_a_row = {
            let mut state = self.state();
            state.failed_in_a_row += 1;
            state.failed_in_a_row
        };
        if in_a_row >= HOPELESS {
            return Err(Error::at(address, format!("the judge failed for {in_a_row} requests in a row: {what}"))
                .hint("run the same command again when it works"));
        }
        Ok(Slot::Failed(what))
    }

    /// Waits for `time`, and for the time before which nobody sends anything, also when that moves meanwhile.
    fn wait_until(&self, time: Instant) -> OrEnded<()> {
        let mut state = self.state();
        loop {
            if state.stop.is_some() {
                return Err(Ended::Stopped);
            }
            let left = time.max(state.not_before).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            state = self.stopped.wait_timeout(state, left).expect("no thread panics while it holds the state").0;
        }
    }

    fn finish(self) -> Result<Vec<Result<Reply>>> {
        let state = self.state.into_inner().expect("no thread panics while it holds the state");
        let judge = self.judge;
        if let Some(stop) = state.stop {
            let kept = state.results.iter().filter(|slot| matches!(slot, Slot::Reply(_))).count();
            return Err(match &judge.cache {
                Some(cache) if kept > 0 => {
                    with_kept(stop, kept, self.requests.len(), &cache.folder().display().to_string())
                }
                _ => stop,
            });
        }
        let result = |slot: &Slot| match slot {
            Slot::Reply(reply) => Ok(reply.clone()),
            Slot::Failed(what) => Err(Error::at(judge.endpoint.address(), what)),
            Slot::Open | Slot::Same(_) => {
                unreachable!("without a stop every request has an outcome, and those that are equal name the first")
            }
        };
        Ok(state
            .results
            .iter()
            .map(|slot| match slot {
                Slot::Same(first) => {
                    let first = result(&state.results[*first]);
                    match &first {
                        Ok(_) => judge.count().cached += 1,
                        Err(_) => judge.count().failed += 1,
                    }
                    first
                }
                slot => result(slot),
            })
            .collect())
    }
}

/// Says in the message what is not lost.
fn with_kept(error: Error, kept: usize, all: usize, folder: &str) -> Error {
    match error {
        Error::One(mut problem) => {
            problem.what = format!(
                "{}; {kept} of {all} answers are kept in `{folder}` and will not be asked for again",
                problem.what
            );
            Error::One(problem)
        }
        several => several,
    }
}

/// Doubles from the first retry on, and is shortened at random, so that those who failed together do not come back together.
fn backoff(first: Duration, tries: u32) -> Duration {
    let doubled = first.saturating_mul(2u32.saturating_pow(tries.saturating_sub(1)));
    doubled.min(LONGEST_BACKOFF).mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_differ() {
        let first = Duration::from_millis(500);
        for (tries, full) in [(1, 500), (2, 1000), (5, 8000), (7, 30_000), (u32::MAX, 30_000)] {
            let waits: Vec<Duration> = (0..50).map(|_| backoff(first, tries)).collect();
            let full = Duration::from_millis(full);
            assert!(waits.iter().all(|wait| *wait >= full / 2 && *wait <= full), "{tries}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]));
        }
    }
}
