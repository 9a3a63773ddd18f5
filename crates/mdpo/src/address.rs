//! Where in a run something random happens, and the stream of numbers that belongs there.
//!
//! Drawing is a pure function of (purpose, seed, epoch, example): it does not depend on the order of work, on threads, on ranks
//! or on where a resumed run began.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// An example in an epoch of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// The run's seed.
    pub seed: u64,
    /// The epoch, the first is 0.
    pub epoch: u64,
    /// Index of the example in the data set as it is written, before any shuffling.
    pub example: u64,
}

impl Address {
    /// The stream of random numbers for one `purpose` (`crop`, `shuffle` …) here: ChaCha8 under the SHA-256 of both.
    pub fn rng(&self, purpose: &str) -> ChaCha8Rng {
        let mut hash = Sha256::new();
        // The purpose has a length in front, so no two (purpose, address) pairs give the same bytes.
        hash.update(b"mdpo address 1");
        hash.update((purpose.len() as u64).to_le_bytes());
        hash.update(purpose);
        for number in [self.seed, self.epoch, self.example] {
            hash.update(number.to_le_bytes());
        }
        ChaCha8Rng::from_seed(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use std::collections::HashSet;

    const HERE: Address = Address { seed: 42, epoch: 0, example: 7 };

    #[test]
    fn the_stream_is_pinned() {
        // A change here changes every drawn crop and every order of every run: runs would no longer resume or repeat.
        assert_eq!(HERE.rng("crop").next_u64(), 8_742_777_453_392_565_201);
    }

    #[test]
    fn each_number_and_purpose_has_its_own_stream() {
        let others = [
            (HERE, "crop"),
            (HERE, "shuffle"),
            (Address { seed: 43, ..HERE }, "crop"),
            (Address { epoch: 1, ..HERE }, "crop"),
            (Address { example: 8, ..HERE }, "crop"),
            (Address { epoch: 7, example: 0, ..HERE }, "crop"),
        ];
        let firsts: HashSet<u64> = others.iter().map(|(address, purpose)| address.rng(purpose).next_u64()).collect();
        assert_eq!(firsts.len(), others.len());
        assert_eq!(HERE.rng("crop").next_u64(), HERE.rng("crop").next_u64());
    }
}
