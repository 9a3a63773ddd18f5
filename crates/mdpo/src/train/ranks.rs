//! Data-parallel training over several processes ("ranks"), which `torchrun` or whoever sets the same variables has started.
//!
//! Every rank holds the whole model and the same state, runs its share of a step's micro-batches ([`super::Share`]) and adds up gradients with
//! the others before it clips and moves its weights, as PyTorch's `DistributedDataParallel` does; unlike there, an optimizer step is the same
//! whatever number of ranks takes part, and what could go wrong on one rank is agreed on by all before any goes on: whatever one rank
//! cannot do ends all of them, with one message, which the first rank tells. With one process there is nothing to agree on.

use super::device_of;
use super::launch::Launch;
use super::micro::Share;
use super::reference_store::hex;
use crate::checkpoint::manifest;
use crate::config::{self, Run};
use crate::model::load::Trainable;
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use torch_ext::{Group, Meeting};

/// How long a rank waits without a word.
const SAY_AFTER: Duration = Duration::from_secs(5);

/// How long ranks wait for each other.
#[derive(Debug, Clone, Copy)]
struct Waits {
    /// For the others at the start.
    join: Duration,
    /// For the others' next message.
    answer: Duration,
    /// How often the first rank says that it is still at work, while it works alone.
    beat: Duration,
}

impl Waits {
    const USUAL: Waits = Waits {
        // As PyTorch's store does.
        join: Duration::from_secs(300),
        // The first one writes checkpoints meanwhile (transformers' `ddp_timeout`).
        answer: Duration::from_secs(1800),
        beat: Duration::from_secs(10),
    };
}

/// Gradients are added up in pieces of this many numbers, so that a copy of all of them is never needed.
const PIECE: usize = 1 << 25;

/// This process among those that train together.
#[derive(Debug)]
pub struct Ranks {
    rank: usize,
    count: usize,
    local_rank: usize,
    /// Behind a lock since a thread of its own speaks while the first rank works alone.
    group: Option<Mutex<Group>>,
    waits: Waits,
    /// Another rank has gone: nothing more can be agreed on.
    lost: Cell<bool>,
    /// All ranks know of the problem that ends them.
    agreed_to_fail: Cell<bool>,
}

impl Ranks {
    /// One process by itself.
    pub fn one() -> Self {
        let (lost, agreed_to_fail) = (Cell::new(false), Cell::new(false));
        Ranks { rank: 0, count: 1, local_rank: 0, group: None, waits: Waits::USUAL, lost, agreed_to_fail }
    }

    /// Meets the others that were started with this process, if any were.
    ///
    /// # Errors
    /// Variables that are not what they should be; others that do not come within five minutes.
    pub fn from_environment() -> Result<Self> {
        Launch::from_environment()?.map_or_else(|| Ok(Self::one()), |launch| Self::join(&launch))
    }

    /// Meets the others.
    ///
    /// # Errors
    /// The others do not come within five minutes, or the place where they meet cannot be reached.
    pub fn join(launch: &Launch) -> Result<Self> {
        Self::join_within(launch, Waits::USUAL)
    }

    fn join_within(launch: &Launch, waits: Waits) -> Result<Self> {
        let meeting = Meeting {
            host: launch.host.clone(),
            port: launch.port,
            store: launch.store,
            name: format!("mdpo/{}", launch.restart),
            rank: launch.rank,
            world: launch.world,
            join_within: waits.join,
            answer_within: waits.answer,
        };
        // Where somebody is missing, nobody should have to guess why nothing happens.
        let (arrived, waiting) = std::sync::mpsc::channel::<()>();
        let (place_of_meeting, others) = (format!("{}:{}", launch.host, launch.port), launch.world - 1);
        let rank = launch.rank;
        std::thread::spawn(move || {
            if waiting.recv_timeout(SAY_AFTER) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let minutes = waits.join.as_secs() / 60;
                eprintln!(
                    "rank {rank} waits for the {others} others at {place_of_meeting}, for at most {minutes} minutes"
                );
            }
        });
        let joined = Group::join(&meeting);
        drop(arrived);
        let group = joined.map_err(|error| {
            let what =
                format!("cannot meet the other ranks at {}:{}: {}", launch.host, launch.port, first_line(&error));
            Error::at(place(launch.rank, launch.world), what)
                .hint("all `WORLD_SIZE` processes must be started, and reach `MASTER_ADDR` at `MASTER_PORT`")
        })?;
        let Launch { rank, world: count, local_rank, .. } = *launch;
        Ok(Ranks { rank, count, local_rank, group: Some(Mutex::new(group)), waits, ..Self::one() })
    }

    /// How many ranks there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether this is the first rank, which alone writes and talks.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// Which micro-batches of a step this rank runs.
    pub fn share(&self) -> Share {
        Share { rank: self.rank, ranks: self.count }
    }

    /// Whether the problem that ended this rank is told by the first one, so that this one need not.
    pub fn another_tells(&self) -> bool {
        !self.leads() && self.agreed_to_fail.get()
    }

    /// Where this rank computes; NCCL is made ready where that is a GPU.
    ///
    /// # Errors
    /// On any rank: no such device, or no NCCL.
    pub fn device(&self, wanted: config::Device) -> Result<Device> {
        let opened = device_of(wanted, self.local_rank).and_then(|device| {
            if let (Some(group), Device::Cuda(index)) = (&self.group, device) {
                locked(group).open_gpu(index).map_err(|error| Error::at("NCCL", first_line(&error)))?;
            }
            Ok(device)
        });
        let device = self.agree(opened)?;
        let kind = if device == Device::Cpu { "cpu" } else { "cuda" };
        self.check_equal([("device".to_owned(), kind.to_owned())])?;
        Ok(device)
    }

    /// What all ranks say, in their order.
    ///
    /// # Errors
    /// Another rank has gone.
    fn exchange<T: Serialize + DeserializeOwned>(&self, mine: T) -> Result<Vec<T>> {
        let Some(group) = &self.group else { return Ok(vec![mine]) };
        if self.lost.get() {
            return Err(self.lost("an earlier message did not come through"));
        }
        gather(group, &mine).map_err(|what| self.lost(&what))
    }

    fn lost(&self, what: &str) -> Error {
        self.lost.set(true);
        Error::at(place(self.rank, self.count), format!("lost another rank: {what}"))
            .hint("see what the other ranks say; `resume_from_checkpoint: true` goes on from the newest checkpoint")
    }

    /// What all ranks have, in their order, or the problem of the first one that has one, on all of them.
    ///
    /// # Errors
    /// That problem; another rank that has gone.
    pub fn all<T: Serialize + DeserializeOwned>(&self, mine: Result<T>) -> Result<Vec<T>> {
        if self.group.is_none() {
            return Ok(vec![mine?]);
        }
        if self.lost.get() {
            return Err(mine.err().unwrap_or_else(|| self.lost("an earlier message did not come through")));
        }
        let told = self.exchange(mine.map_err(|error| Told::of(&error)))?;
        let failed = told.iter().position(std::result::Result::is_err);
        let mut all = Vec::with_capacity(told.len());
        for (rank, told) in told.into_iter().enumerate() {
            match told {
                Ok(theirs) => all.push(theirs),
                Err(told) if failed == Some(rank) => {
                    self.agreed_to_fail.set(true);
                    return Err(told.error((rank > 0).then(|| place(rank, self.count))));
                }
                Err(_) => {}
            }
        }
        Ok(all)
    }

    /// What this rank has, unless any rank has a problem.
    ///
    /// # Errors
    /// As [`Ranks::all`].
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        let (mine, outcome) = match mine {
            Ok(mine) => (Some(mine), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.all(outcome)?;
        Ok(mine.expect("no rank has a problem"))
    }

    /// A result that all ranks have found alike, so that nothing need be exchanged.
    ///
    /// # Errors
    /// The problem, which the first rank tells.
    pub fn alike<T>(&self, found: Result<T>) -> Result<T> {
        self.agreed_to_fail.set(found.is_err() || self.agreed_to_fail.get());
        found
    }

    /// Whether it is so on any rank.
    ///
    /// # Errors
    /// Another rank has gone.
    pub fn any(&self, mine: bool) -> Result<bool> {
        Ok(self.exchange(mine)?.contains(&true))
    }

    /// Does something on the first rank, and then on the others: they find what it has left on the disk.
    ///
    /// # Errors
    /// That of any rank.
    pub fn first_one_then_others<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.leads() {
            let done = self.agree(work())?;
            self.agree(Ok(()))?;
            return Ok(done);
        }
        self.agree(Ok(()))?;
        self.agree(work())
    }

    /// Does something on the first rank alone.
    ///
    /// # Errors
    /// That of the first rank.
    pub fn first_one(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.agree(if self.leads() { work() } else { Ok(()) })
    }

    /// As [`Ranks::first_one`] for work that may take longer than ranks wait for a message: meanwhile the first rank says again and again
    /// that it is at it. Where another rank is lost, `stop` is raised.
    ///
    /// # Errors
    /// That of the first rank, on that one alone: a message to all must follow. Another rank has gone.
    pub fn first_one_at_length(&self, stop: &AtomicBool, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(group) = &self.group else { return work() };
        if !self.leads() {
            while self.exchange(Meanwhile::Waits)?[0] != Meanwhile::Done {}
            return Ok(());
        }
        let beat = self.waits.beat;
        let (worked, spoken) = std::thread::scope(|scope| {
            let (done, finished) = mpsc::channel::<()>();
            let speaking = scope.spawn(move || {
                while finished.recv_timeout(beat) == Err(mpsc::RecvTimeoutError::Timeout) {
                    if let Err(what) = gather(group, &Meanwhile::Works) {
                        stop.store(true, Ordering::Relaxed);
                        return Err(what);
                    }
                }
                Ok(())
            });
            let worked = work();
            drop(done);
            (worked, speaking.join().unwrap_or_else(|_| Err("the thread that speaks to the others ended".to_owned())))
        });
        if let Err(what) = spoken {
            let lost = self.lost(&what);
            return worked.and(Err(lost));
        }
        self.exchange(Meanwhile::Done)?;
        worked
    }

    /// Refuses ranks that do not have the same texts as the first.
    ///
    /// # Errors
    /// The first rank that differs, with what it has.
    pub fn check_equal(&self, mine: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        if self.group.is_none() {
            return Ok(());
        }
        let all: Vec<BTreeMap<String, String>> = self.exchange(mine.into_iter().collect())?;
        let Some((rank, other)) = all.iter().enumerate().find(|(_, other)| **other != all[0]) else { return Ok(()) };
        self.agreed_to_fail.set(true);
        let value = |of: &BTreeMap<String, String>, name: &str| of.get(name).map_or("not set".to_owned(), Clone::clone);
        let mut names: Vec<&String> = all[0].keys().chain(other.keys()).collect();
        names.sort();
        names.dedup();
        let differing = names.into_iter().filter(|name| all[0].get(*name) != other.get(*name));
        let differing = differing
            .map(|name| format!("`{name}` (there {}, on rank 0 {})", value(other, name), value(&all[0], name)));
        let what = format!("not the run of rank 0: {}", differing.collect::<Vec<_>>().join(", "));
        let hint = "all ranks must run the same program with the same recipe, overrides, data and checkpoint, on the same kind of processor \
            with the same number of threads";
        Err(Error::at(place(rank, self.count), what).hint(hint))
    }

    /// Refuses ranks that run another program or another recipe than the first.
    ///
    /// # Errors
    /// As [`Ranks::check_equal`].
    pub fn check_run(&self, run: &Run) -> Result<()> {
        if self.group.is_none() {
            return Ok(());
        }
        let program = std::env::current_exe()
            .map_err(|error| Error::at("program", error))
            .and_then(|path| Ok(manifest::digest(&path)?.1[..16].to_owned()));
        let program = self.agree(program)?;
        let keys = run.to_keys().into_iter().map(|(name, value)| (name, value.to_string()));
        let versions = [
            ("mdpo", env!("CARGO_PKG_VERSION")),
            ("libtorch", torch_ext::LIBTORCH_VERSION),
            ("program", program.as_str()),
        ];
        self.check_equal(keys.chain(versions.map(|(name, value)| (name.to_owned(), value.to_owned()))))
    }

    /// Refuses ranks whose trained weights are not those of the first, to the bit.
    ///
    /// # Errors
    /// As [`Ranks::check_equal`].
    pub fn check_weights(&self, trainables: &[Trainable]) -> Result<()> {
        if self.group.is_none() {
            return Ok(());
        }
        let mut hash = Sha256::new();
        for trainable in trainables {
            let bits = trainable.leaf.detach().f_contiguous()?.f_view_dtype(Kind::Int)?;
            // The bits of all numbers in one exact sum: cheap on any device, and weights that drift apart do so in all of them.
            hash.update(bits.f_sum(Kind::Int64)?.f_int64_value(&[])?.to_le_bytes());
        }
        self.check_equal([("trained weights".to_owned(), hex(&hash.finalize()[..8]))])
    }

    /// Makes every gradient the sum over all ranks, to the bit the same on all of them; `there` says which leaves have one on any rank.
    ///
    /// # Errors
    /// Another rank has gone.
    pub fn sum_gradients(&self, trainables: &[Trainable], there: &[bool]) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let mut leaves = trainables.iter().zip(there).filter(|(_, there)| **there).map(|(t, _)| &t.leaf).peekable();
        while leaves.peek().is_some() {
            let (mut piece, mut size) = (Vec::new(), 0);
            while let Some(leaf) = leaves.next_if(|leaf| size == 0 || size + leaf.numel() <= PIECE) {
                size += leaf.numel();
                piece.push(leaf);
            }
            let flat = |leaf: &&Tensor| -> Result<Tensor> {
                let gradient = leaf.grad();
                let gradient = if gradient.defined() { gradient } else { leaf.detach().f_zeros_like()? };
                Ok(gradient.f_reshape([-1])?)
            };
            let parts = piece.iter().map(flat).collect::<Result<Vec<_>>>()?;
            let mut sum = Tensor::f_cat(&parts, 0)?;
            locked(group).sum(&mut sum).map_err(|error| self.lost(&first_line(&error)))?;
            let sizes: Vec<i64> = piece.iter().map(|leaf| leaf.numel() as i64).collect();
            for (leaf, sum) in piece.into_iter().zip(sum.f_split_with_sizes(sizes.as_slice(), 0)?) {
                give(leaf, &sum.f_view(leaf.size().as_slice())?)?;
            }
        }
        Ok(())
    }
}

/// What ranks say while the first one works alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Meanwhile {
    /// The first rank is at it.
    Works,
    /// Another one waits.
    Waits,
    /// The first rank has finished.
    Done,
}

/// A panic elsewhere leaves a group as usable as it was.
fn locked(group: &Mutex<Group>) -> MutexGuard<'_, Group> {
    group.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all ranks say, or why that cannot be known.
fn gather<T: Serialize + DeserializeOwned>(group: &Mutex<Group>, mine: &T) -> std::result::Result<Vec<T>, String> {
    let bytes = postcard::to_allocvec(mine).map_err(|error| error.to_string())?;
    let all = locked(group).gather_bytes(&bytes).map_err(|error| first_line(&error))?;
    let read = |bytes: &Vec<u8>| postcard::from_bytes(bytes).map_err(|error| error.to_string());
    all.iter().map(read).collect()
}

/// Makes `gradient` that of a leaf.
fn give(leaf: &Tensor, gradient: &Tensor) -> Result<()> {
    let mut own = leaf.grad();
    if own.defined() {
        tch::no_grad(|| own.f_copy_(gradient))?;
    } else {
        // The derivative of Σ w g with respect to w is g itself.
        (leaf * gradient).f_sum(Kind::Float)?.f_backward()?;
    }
    Ok(())
}

fn place(rank: usize, count: usize) -> String {
    format!("rank {rank} of {count}")
}

fn first_line(error: &tch::TchError) -> String {
    error.to_string().lines().next().unwrap_or("unknown error").to_owned()
}

/// A problem on its way to the other ranks: place, what, hint.
#[derive(Debug, Serialize, Deserialize)]
struct Told(Vec<(String, String, Option<String>)>);

impl Told {
    fn of(error: &Error) -> Self {
        match error {
            Error::One(problem) => Told(vec![(problem.place.clone(), problem.what.clone(), problem.hint.clone())]),
            Error::Many(errors) => Told(errors.iter().flat_map(|error| Told::of(error).0).collect()),
        }
    }

    /// The problem again; `whose` says which rank has it, where that is not plain.
    fn error(self, whose: Option<String>) -> Error {
        let whose = whose.map_or(String::new(), |whose| format!(" ({whose})"));
        let one = |(place, what, hint): (String, String, Option<String>)| {
            let error = Error::at(place, format!("{what}{whose}"));
            hint.into_iter().fold(error, |error, hint| error.hint(hint))
        };
        let mut errors: Vec<Error> = self.0.into_iter().map(one).collect();
        if errors.len() == 1 { errors.remove(0) } else { Error::Many(errors) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::load::Group as Part;
    use std::net::TcpListener;
    use std::time::Instant;
    use torch_ext::StoreHolder;

    /// Runs `work` as every one of `count` ranks, each on a thread of its own.
    fn on_ranks<T: Send>(count: usize, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        on_waiting_ranks(count, Waits::USUAL, work)
    }

    fn on_waiting_ranks<T: Send>(count: usize, waits: Waits, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let launch = |rank| Launch {
            rank,
            world: count,
            local_rank: rank,
            host: "127.0.0.1".to_owned(),
            port,
            store: if rank == 0 { StoreHolder::This } else { StoreHolder::Another },
            restart: 0,
        };
        std::thread::scope(|scope| {
            let work = &work;
            let start = |rank| scope.spawn(move || work(Ranks::join_within(&launch(rank), waits).unwrap()));
            let threads: Vec<_> = (0..count).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn a_problem_of_one_rank_is_that_of_all_and_told_by_the_first() {
        let found = on_ranks(3, |ranks| {
            let problem = || Error::Many(vec![Error::at("row 1", "is bad"), Error::at("row 2", "too").hint("mend it")]);
            let mine = if ranks.share().rank == 1 { Err(problem()) } else { Ok(ranks.share().rank) };
            let error = ranks.agree(mine).unwrap_err().to_string();
            (error, ranks.another_tells(), ranks.any(ranks.share().rank == 2).unwrap())
        });
        for (rank, (error, another_tells, any)) in found.iter().enumerate() {
            assert_eq!(error, "2 problems\nrow 1: is bad (rank 1 of 3)\nrow 2: too (rank 1 of 3)\n  hint: mend it");
            assert_eq!((*another_tells, *any), (rank > 0, true));
        }
        let one = Ranks::one();
        assert!(one.agree::<()>(Err(Error::at("a", "b"))).is_err() && !one.another_tells() && !one.any(false).unwrap());
    }

    /// The first rank works for longer than a message may take.
    #[test]
    fn ranks_wait_for_what_the_first_one_does_at_length() {
        let (answer, beat) = (Duration::from_secs(2), Duration::from_millis(300));
        let at_length = |waits: Waits, work: fn() -> Result<()>| {
            on_waiting_ranks(3, waits, |ranks| {
                let stop = AtomicBool::new(false);
                let mine = ranks.first_one_at_length(&stop, || {
                    std::thread::sleep(Duration::from_millis(4500));
                    work()
                });
                (ranks.agree(mine).map_err(|error| error.to_string()), stop.into_inner())
            })
        };
        let waits = Waits { answer, beat, ..Waits::USUAL };
        assert_eq!(at_length(waits, || Ok(())), vec![(Ok(()), false); 3]);
        let problem = "row 1: is bad".to_owned();
        assert_eq!(at_length(waits, || Err(Error::at("row 1", "is bad"))), vec![(Err(problem), false); 3]);
        // Without a word in between they do not wait as long.
        let silent = Waits { beat: Duration::from_secs(60), ..waits };
        let told = at_length(silent, || Ok(())).remove(1).0.unwrap_err();
        assert!(told.starts_with("rank 1 of 3: lost another rank: "), "{told}");
    }

    #[test]
    fn a_rank_that_goes_while_the_first_one_works_is_noticed_and_the_work_is_told_to_stop() {
        let waits = Waits { beat: Duration::from_millis(100), ..Waits::USUAL };
        let found = on_waiting_ranks(2, waits, |ranks| {
            if !ranks.leads() {
                return None;
            }
            let (stop, began) = (AtomicBool::new(false), Instant::now());
            let mine = ranks.first_one_at_length(&stop, || {
                while !stop.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(20) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            });
            Some((ranks.agree(mine).unwrap_err().to_string(), began.elapsed()))
        });
        let (told, took) = found[0].as_ref().unwrap();
        assert!(told.contains("lost another rank") && *took < Duration::from_secs(15), "{told} after {took:?}");
    }

    #[test]
    fn ranks_that_differ_are_named_with_what_differs() {
        for error in on_ranks(2, |ranks| {
            let rate = if ranks.leads() { "0.1" } else { "0.2" };
            let mut all = vec![("seed".to_owned(), "7".to_owned()), ("rate".to_owned(), rate.to_owned())];
            all.extend((!ranks.leads()).then(|| ("more".to_owned(), "1".to_owned())));
            ranks.check_equal(all).unwrap_err().to_string()
        }) {
            let expected = "rank 1 of 2: not the run of rank 0: `more` (there 1, on rank 0 not set), `rate` (there 0.2, on rank 0 0.1)\n";
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn gradients_are_summed_and_weights_compared() {
        let found = on_ranks(2, |ranks| {
            let rank = ranks.share().rank as f32;
            let leaf = |values: &[f32]| Tensor::from_slice(values).set_requires_grad(true);
            let leaves = [leaf(&[1.0, 2.0]), leaf(&[3.0]), leaf(&[4.0])];
            // The first has a gradient on both ranks, the second on one, the third on none.
            (&leaves[0] * Tensor::from_slice(&[rank + 0.25, 1.0])).sum(Kind::Float).backward();
            if !ranks.leads() {
                (&leaves[1] * 5.0).sum(Kind::Float).backward();
            }
            let trainables = leaves.map(|leaf| Trainable { name: String::new(), leaf, group: Part::Model });
            let there = ranks.all(Ok(trainables.iter().map(|t| t.leaf.grad().defined()).collect::<Vec<_>>())).unwrap();
            let there: Vec<bool> = (0..3).map(|i| there.iter().any(|there| there[i])).collect();
            ranks.sum_gradients(&trainables, &there).unwrap();
            let gradients: Vec<Vec<f32>> = trainables[..2].iter().map(|t| t.leaf.grad().try_into().unwrap()).collect();
            assert!(!trainables[2].leaf.grad().defined());
            ranks.check_weights(&trainables).unwrap();
            if !ranks.leads() {
                // The next number that f32 has.
                let _ = trainables[0].leaf.detach().get(0).fill_(f64::from(1f32.next_up()));
            }
            (gradients, ranks.check_weights(&trainables).unwrap_err().to_string())
        });
        for (gradients, error) in found {
            assert_eq!(gradients, [vec![1.5, 2.0], vec![5.0]]);
            assert!(error.starts_with("rank 1 of 2: not the run of rank 0: `trained weights`"), "{error}");
        }
    }
}
