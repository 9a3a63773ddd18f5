//! In which order examples are seen: a pure function of seed and epoch, so that a step alone says which examples it takes.
//!
//! Steps are counted as transformers' `Trainer` does with `dataloader_drop_last` off: the last step of an epoch takes what is left,
//! and no step reaches over the end of an epoch.

use std::num::NonZeroUsize;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use crate::config::Length;

/// The order of a data set's examples over all epochs, cut into optimizer steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    examples: NonZeroUsize,
    examples_per_step: NonZeroUsize,
    /// Seed of the shuffle; without one every epoch has the order of the files.
    seed: Option<u64>,
}

/// Where an optimizer step begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The epoch, from 0.
    pub epoch: usize,
    /// How many examples of the epoch came before.
    pub position: usize,
}

/// The examples of one optimizer step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Indices of examples: as many as a step takes, fewer in the last step of an epoch.
    pub examples: Vec<usize>,
}

impl Order {
    /// Every epoch in an order of its own, drawn from `seed`.
    #[must_use]
    pub fn shuffled(examples: NonZeroUsize, examples_per_step: NonZeroUsize, seed: u64) -> Self {
        Order { examples, examples_per_step, seed: Some(seed) }
    }

    /// Every epoch in the order of the files.
    #[must_use]
    pub fn as_written(examples: NonZeroUsize, examples_per_step: NonZeroUsize) -> Self {
        Order { examples, examples_per_step, seed: None }
    }

    /// The same steps in the order of the files.
    #[must_use]
    pub fn unshuffled(&self) -> Self {
        Order { seed: None, ..self.clone() }
    }

    /// Optimizer steps in an epoch, the smaller last one included.
    #[must_use]
    pub fn steps_per_epoch(&self) -> usize {
        self.examples.get().div_ceil(self.examples_per_step.get())
    }

    /// Optimizer steps in the whole run; a fraction of an epoch is rounded up to whole steps, as in transformers.
    #[must_use]
    pub fn steps(&self, length: Length) -> usize {
        match length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => (epochs * self.steps_per_epoch() as f64).ceil() as usize,
        }
    }

    /// Where optimizer step `step`, from 0, begins.
    #[must_use]
    pub fn cursor(&self, step: usize) -> Cursor {
        let steps = self.steps_per_epoch();
        Cursor { epoch: step / steps, position: step % steps * self.examples_per_step.get() }
    }

    /// The examples of optimizer step `step`, from 0; the same however it was reached.
    #[must_use]
    pub fn batch(&self, step: usize) -> Batch {
        let Cursor { epoch, position } = self.cursor(step);
        let permutation = self.epoch_permutation(epoch);
        let end = permutation.len().min(position + self.examples_per_step.get());
        Batch { epoch, examples: permutation[position..end].to_vec() }
    }

    /// The order of an epoch: every index once (Fisher-Yates, from the end).
    #[must_use]
    pub fn epoch_permutation(&self, epoch: usize) -> Vec<usize> {
        let mut permutation: Vec<usize> = (0..self.examples.get()).collect();
        if let Some(seed) = self.seed {
            let mut rng = stream(seed, epoch);
            for last in (1..permutation.len()).rev() {
                permutation.swap(last, below(&mut rng, last as u64 + 1) as usize);
            }
        }
        permutation
    }
}

/// The random stream of one epoch's order: ChaCha8 keyed by SHA-256 of `mdpo/order`, seed and epoch (little-endian, 64 bits each).
fn stream(seed: u64, epoch: usize) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(b"mdpo/order");
    hash.update(seed.to_le_bytes());
    hash.update((epoch as u64).to_le_bytes());
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// A number below `bound`, each equally likely (Lemire 2019); written out so that no update of a crate changes a run's order.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    loop {
        let wide = u128::from(rng.next_u64()) * u128::from(bound);
        if wide as u64 >= bound.wrapping_neg() % bound {
            return (wide >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at_least_one(number: usize) -> NonZeroUsize {
        NonZeroUsize::new(number).expect("not zero")
    }

    fn shuffled(examples: usize, per_step: usize, seed: u64) -> Order {
        Order::shuffled(at_least_one(examples), at_least_one(per_step), seed)
    }

    proptest! {
        #[test]
        fn an_epoch_visits_every_example_once(examples in 1usize..200, per_step in 1usize..50, seed: u64, epoch in 0usize..5) {
            let order = shuffled(examples, per_step, seed);
            let steps = order.steps_per_epoch();
            let batches: Vec<Batch> = (epoch * steps..(epoch + 1) * steps).map(|step| order.batch(step)).collect();
            prop_assert!(batches.iter().all(|batch| batch.epoch == epoch && !batch.examples.is_empty()));
            prop_assert!(batches[..steps - 1].iter().all(|batch| batch.examples.len() == per_step.min(examples)));
            let seen: Vec<usize> = batches.into_iter().flat_map(|batch| batch.examples).collect();
            prop_assert_eq!(&seen, &order.epoch_permutation(epoch));
            let mut sorted = seen;
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..examples).collect::<Vec<_>>());
        }

        #[test]
        fn epochs_and_seeds_differ(seed: u64, epoch in 0usize..1000) {
            // 50 examples: two equal orders have a chance of 1 / 50!.
            let order = shuffled(50, 8, seed);
            prop_assert_ne!(order.epoch_permutation(epoch), order.epoch_permutation(epoch + 1));
            prop_assert_ne!(order.epoch_permutation(epoch), shuffled(50, 8, seed ^ 1).epoch_permutation(epoch));
        }

        #[test]
        fn a_step_is_the_same_however_it_is_reached(examples in 1usize..60, per_step in 1usize..20, seed: u64, step in 0usize..40) {
            let straight = shuffled(examples, per_step, seed);
            for before in 0..step {
                let _ = straight.batch(before);
            }
            prop_assert_eq!(straight.batch(step), shuffled(examples, per_step, seed).batch(step));
        }

        #[test]
        fn accumulation_does_not_change_the_order(examples in 1usize..60, seed: u64, epoch in 0usize..3) {
            prop_assert_eq!(shuffled(examples, 4, seed).epoch_permutation(epoch), shuffled(examples, 7, seed).epoch_permutation(epoch));
        }
    }

    #[test]
    fn the_order_of_a_run_never_changes() {
        // A checkpoint of today must resume in the same order with any later version.
        assert_eq!(shuffled(10, 4, 42).epoch_permutation(0), GOLDEN[0]);
        assert_eq!(shuffled(10, 4, 42).epoch_permutation(1), GOLDEN[1]);
    }

    /// What `parity/data/order.py` prints.
    const GOLDEN: [[usize; 10]; 2] = [[4, 9, 0, 2, 3, 7, 5, 8, 1, 6], [8, 7, 6, 9, 1, 0, 3, 4, 5, 2]];

    #[test]
    fn every_place_is_equally_likely() {
        // 3,000 orders of 3: each of the 6 has expectation 500, standard deviation 20.4.
        let mut counts = std::collections::BTreeMap::<Vec<usize>, i32>::new();
        for epoch in 0..3000 {
            *counts.entry(shuffled(3, 1, 7).epoch_permutation(epoch)).or_default() += 1;
        }
        assert!(counts.len() == 6 && counts.values().all(|count| (count - 500).abs() < 82), "{counts:?}");
    }

    #[test]
    fn steps_are_counted_as_transformers_does() {
        let order = shuffled(10, 4, 0);
        assert_eq!(order.steps_per_epoch(), 3);
        assert_eq!([0.5, 1.0, 1.2, 3.0].map(|epochs| order.steps(Length::Epochs(epochs))), [2, 3, 4, 9]);
        assert_eq!(order.steps(Length::Steps(7)), 7);
        assert_eq!(order.cursor(5), Cursor { epoch: 1, position: 8 });
        assert_eq!(order.batch(5).examples.len(), 2);
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_files() {
        let order = Order::as_written(at_least_one(5), at_least_one(2));
        assert_eq!(order.batch(3), Batch { epoch: 1, examples: vec![0, 1] });
        assert_eq!(order.batch(5), Batch { epoch: 1, examples: vec![4] });
    }
}
