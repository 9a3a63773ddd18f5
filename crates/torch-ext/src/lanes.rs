//! Work side by side, each part of it on its share of libtorch's threads (`lanes.cpp`).
//!
//! A product that all threads share packs its factors for each of them, and all wait for the last: two pieces of work on one thread each take
//! less than one after the other on two.

use std::cell::RefCell;
use std::ffi::{c_char, c_int};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tch::{TchError, Tensor};

use crate::ext::done;

/// Bytes of a lane's stack: as much as a program's first thread has.
const STACK: usize = 8 << 20;

// SAFETY: these are the signatures in lanes.cpp; what returns a message catches C++ exceptions, the others throw none. They read and set
// what belongs to the calling thread.
#[expect(unsafe_code, reason = "the C interface of lanes.cpp")]
unsafe extern "C" {
    safe fn torch_ext_has_lanes() -> c_int;
    safe fn torch_ext_use_threads(threads: c_int) -> *mut c_char;
    safe fn torch_ext_keeps_graph() -> c_int;
}

/// A tensor that several threads may use at once.
#[derive(Debug)]
pub struct Shared(Tensor);

// SAFETY: libtorch allows any number of threads to use one handle as long as none assigns to it, which takes `&mut` here: counts of
// references are atomic, and autograd guards what it adds to a shared leaf. tch, whose tensors can be sent to another thread while a
// `shallow_clone` of them stays, leaves it to its callers that no thread writes into numbers that another reads; so does this.
#[expect(unsafe_code, reason = "tch marks no tensor as shareable")]
unsafe impl Sync for Shared {}

impl From<Tensor> for Shared {
    fn from(tensor: Tensor) -> Self {
        Shared(tensor)
    }
}

impl Deref for Shared {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}

/// How many threads libtorch uses for the calling thread, set back when dropped.
struct Threads {
    before: usize,
}

impl Threads {
    fn use_only(threads: usize) -> Result<Self, TchError> {
        let before = threads_here();
        use_threads(threads)?;
        Ok(Threads { before })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Setting a number that was set before does not fail.
        let _ = use_threads(self.before);
    }
}

fn use_threads(threads: usize) -> Result<(), TchError> {
    // SAFETY: the message is ours to free.
    #[expect(unsafe_code, reason = "takes the message of lanes.cpp")]
    unsafe {
        done(torch_ext_use_threads(threads as c_int))
    }
}

fn threads_here() -> usize {
    tch::get_num_threads().max(1) as usize
}

/// How many of `count` pieces of work [`side_by_side`] runs at once from the calling thread.
pub fn lanes(count: usize) -> usize {
    if torch_ext_has_lanes() == 0 { 1 } else { threads_here().min(count).max(1) }
}

/// What `work` gives for each of `items`, in their order. As many run at once as libtorch has threads, each on its share of them; what is
/// left over when all have had as many runs after them, on larger shares. They begin in the order of `items`. So the number of threads for
/// each depends on how many there are and on nothing that takes time.
///
/// Gradients are recorded where the caller records them. A panic of `work` becomes one of the caller.
///
/// # Errors
/// Threads that the system does not give.
pub fn side_by_side<I: Send, R: Send>(items: Vec<I>, work: impl Fn(I) -> R + Sync) -> Result<Vec<R>, TchError> {
    let all = items.len();
    let mut items = items.into_iter();
    let mut results = Vec::with_capacity(all);
    while results.len() < all {
        let left = all - results.len();
        let lanes = lanes(left);
        match lanes {
            1 => results.extend(items.by_ref().map(&work)),
            _ => results.extend(in_lanes(items.by_ref().take(left - left % lanes).collect(), lanes, &work)?),
        }
    }
    Ok(results)
}

thread_local! {
    /// Of the thread that asks, which no other waits for.
    static OTHERS: RefCell<Option<Rc<ThreadPool>>> = const { RefCell::new(None) };
}

/// `count` threads beside the calling one, or more. They stay: what a thread has freed goes back to the system when it ends (jemalloc gives
/// up the arena of which it was the last), and would be asked for again, page by page, by the next pass.
fn other_threads(count: usize) -> Result<Rc<ThreadPool>, TchError> {
    OTHERS.with_borrow_mut(|others| match others {
        Some(pool) if pool.current_num_threads() >= count => Ok(Rc::clone(pool)),
        _ => {
            let threads = ThreadPoolBuilder::new().num_threads(count).stack_size(STACK);
            let pool = threads.thread_name(|number| format!("lane {}", number + 1)).build();
            let pool = Rc::new(pool.map_err(|error| TchError::FileFormat(format!("no thread: {error}")))?);
            Ok(Rc::clone(others.insert(pool)))
        }
    })
}

/// All of `items` on `lanes` threads, one of which is the caller's.
fn in_lanes<I: Send, R: Send>(
    items: Vec<I>,
    lanes: usize,
    work: &(impl Fn(I) -> R + Sync),
) -> Result<Vec<R>, TchError> {
    let share = threads_here() / lanes;
    let keeps_graph = torch_ext_keeps_graph() != 0;
    let queue = Mutex::new(items.into_iter().enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let lane = || -> Result<Vec<(usize, R)>, TchError> {
        let _threads = Threads::use_only(share)?;
        // Set back when a piece panics too: the thread stays.
        let _no_graph = (!keeps_graph).then(tch::no_grad_guard);
        Ok(std::iter::from_fn(next).map(|(place, item)| (place, work(item))).collect())
    };
    let found = Mutex::new(Vec::with_capacity(lanes));
    let run = || {
        let of_lane = lane();
        found.lock().unwrap_or_else(PoisonError::into_inner).push(of_lane);
    };
    // Goes on when all have ended, with the panic of one that had one.
    other_threads(lanes - 1)?.in_place_scope(|scope| {
        (1..lanes).for_each(|_| scope.spawn(|_| run()));
        run();
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut found: Vec<(usize, R)> = found.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    found.sort_unstable_by_key(|(place, _)| *place);
    Ok(found.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::thread::ThreadId;
    use tch::{Device, Kind};

    /// libtorch's number of threads for this test alone.
    fn with_threads<T>(threads: usize, work: impl FnOnce() -> T) -> T {
        let _threads = Threads::use_only(threads).unwrap();
        work()
    }

    #[test]
    fn work_runs_side_by_side_on_its_share_of_threads_and_comes_in_order() {
        if torch_ext_has_lanes() == 0 {
            return;
        }
        with_threads(4, || {
            // Neither would pass the barrier alone.
            let barrier = Barrier::new(2);
            let seen = side_by_side(vec!["a", "b"], |item| {
                barrier.wait();
                (item, threads_here(), std::thread::current().id())
            });
            let seen = seen.unwrap();
            assert_eq!(
                seen.iter().map(|(item, threads, _)| (*item, *threads)).collect::<Vec<_>>(),
                [("a", 2), ("b", 2)]
            );
            assert_ne!(seen[0].2, seen[1].2);
            // Four at once, then what is left on larger shares.
            let shares = |count: usize| side_by_side(vec![(); count], |()| threads_here()).unwrap();
            assert_eq!(shares(5), [1, 1, 1, 1, 4]);
            assert_eq!(shares(6), [1, 1, 1, 1, 2, 2]);
            assert_eq!(threads_here(), 4);
        });
        let here: Vec<ThreadId> =
            with_threads(1, || side_by_side(vec![(); 3], |()| std::thread::current().id()).unwrap());
        assert_eq!(here, [std::thread::current().id(); 3]);
    }

    #[test]
    fn lanes_stay_the_same_threads_from_one_time_to_the_next() {
        if torch_ext_has_lanes() == 0 {
            return;
        }
        let barrier = Barrier::new(3);
        let ids = |()| {
            barrier.wait();
            std::thread::current().id()
        };
        let seen = || -> HashSet<ThreadId> { side_by_side(vec![(); 3], ids).unwrap().into_iter().collect() };
        with_threads(3, || {
            let first = seen();
            assert_eq!(first.len(), 3);
            assert_eq!(seen(), first);
        });
    }

    #[test]
    fn lanes_record_gradients_as_their_caller_does() {
        let weight: Shared = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true).into();
        let grows = || side_by_side(vec![1.0, 2.0], |by| (&*weight * by).requires_grad()).unwrap();
        with_threads(2, || {
            assert_eq!(grows(), [true, true]);
            assert_eq!(tch::no_grad(grows), [false, false]);
        });
    }

    #[test]
    fn a_lane_that_panicked_without_a_graph_records_gradients_again() {
        if torch_ext_has_lanes() == 0 {
            return;
        }
        // Each lane has one of the two pieces.
        let barrier = Barrier::new(2);
        let all_panic = || {
            side_by_side(vec![(); 2], |()| {
                barrier.wait();
                panic!("bad");
            })
        };
        with_threads(2, || {
            let no_graph = tch::no_grad_guard();
            catch_unwind(AssertUnwindSafe(all_panic)).expect_err("it panicked");
            drop(no_graph);
            let records = side_by_side(vec![(); 2], |()| {
                barrier.wait();
                torch_ext_keeps_graph()
            });
            assert_eq!(records.unwrap(), [1, 1]);
        });
    }

    #[test]
    fn a_panic_of_one_lane_is_that_of_the_caller_whose_threads_are_set_back() {
        with_threads(2, || {
            for bad in 0..4 {
                let run = || side_by_side((0..4).collect(), |i| assert!(i != bad, "piece {i} is bad"));
                let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("it panicked");
                assert_eq!(panic.downcast_ref::<String>().unwrap(), &format!("piece {bad} is bad"));
                assert_eq!(threads_here(), 2);
            }
        });
    }
}
