//! Keys and values of many growing sequences, for generation.
//!
//! Each layer has one table for all of them. A sequence owns runs of its rows: one for its prompt, which several answers may share, and
//! one for its answer, which is exchanged for a longer one when it is full. So a new token writes one row and copies none, and attention
//! over sequences of different lengths needs no padding.

use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// The tables of all layers, and which of their rows are free.
#[derive(Debug)]
pub struct Cache {
    pub(super) tables: Tables,
    rows: Rows,
}

/// Handles on the tables of all layers.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) layers: Vec<Kept>,
}

/// Keys and values of one layer, `[rows, kv_heads, head_dim]`; rows that nobody owns hold anything.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

impl Cache {
    /// Empty tables for `layers` layers.
    pub(super) fn new(layers: usize, (kv_heads, head_dim): (i64, i64), kind: Kind, device: Device) -> Self {
        let table = || Tensor::empty([0, kv_heads, head_dim], (kind, device));
        let layers = (0..layers).map(|_| Kept { keys: table(), values: table() }).collect();
        Cache { tables: Tables { layers }, rows: Rows::default() }
    }

    /// Handles of their own on the same tables, for a thread that writes rows which are its own.
    pub(super) fn handles(&self) -> Tables {
        let again = |kept: &Kept| Kept { keys: kept.keys.shallow_clone(), values: kept.values.shallow_clone() };
        Tables { layers: self.tables.layers.iter().map(again).collect() }
    }

    /// Takes `len` rows in a row; the tables grow where there are none.
    pub fn take(&mut self, len: usize) -> Range<usize> {
        let taken = self.rows.take(len);
        let grown = |table: &Tensor| {
            let (old, mut size) = (table.size()[0], table.size());
            size[0] = self.rows.all as i64;
            let new = Tensor::empty(size, (table.kind(), table.device()));
            new.narrow(0, 0, old).copy_(table);
            new
        };
        for kept in &mut self.tables.layers {
            if (kept.keys.size()[0] as usize) < self.rows.all {
                (kept.keys, kept.values) = (grown(&kept.keys), grown(&kept.values));
            }
        }
        taken
    }

    /// Gives rows back that [`Cache::take`] gave.
    pub fn give_back(&mut self, rows: Range<usize>) {
        self.rows.give_back(rows);
    }

    /// Copies what stands in some rows to others, none of which is among the former.
    pub fn copy(&mut self, from: &[i64], to: &[i64]) {
        let Some(device) = self.tables.layers.first().map(|kept| kept.keys.device()) else { return };
        if from.is_empty() {
            return;
        }
        let [from, to] = [from, to].map(|rows| Tensor::from_slice(rows).to_device(device));
        for Kept { keys, values } in &mut self.tables.layers {
            for table in [keys, values] {
                let moved = table.index_select(0, &from);
                let _ = table.index_copy_(0, &to, &moved);
            }
        }
    }

    /// How many rows are owned.
    pub fn owned(&self) -> usize {
        self.rows.all - self.rows.free.iter().map(ExactSizeIterator::len).sum::<usize>()
    }
}

/// Rows that are numbered, some of them free.
#[derive(Debug, Default)]
struct Rows {
    all: usize,
    /// Ascending, none next to another.
    free: Vec<Range<usize>>,
}

impl Rows {
    /// The first free run of `len` rows; there are half as many again, or as many as are missing, where there is none.
    fn take(&mut self, len: usize) -> Range<usize> {
        if len == 0 {
            return 0..0;
        }
        let fits = |free: &Range<usize>| free.len() >= len;
        let place = match self.free.iter().position(fits) {
            Some(place) => place,
            None => {
                let at_the_end = self.free.last().filter(|free| free.end == self.all).map_or(0, ExactSizeIterator::len);
                let more = (self.all / 2).max(len - at_the_end);
                self.all += more;
                self.give_back(self.all - more..self.all);
                self.free.len() - 1
            }
        };
        let free = &mut self.free[place];
        let taken = free.start..free.start + len;
        free.start = taken.end;
        if free.start == free.end {
            self.free.remove(place);
        }
        taken
    }

    fn give_back(&mut self, rows: Range<usize>) {
        if rows.is_empty() {
            return;
        }
        let place = self.free.partition_point(|free| free.start < rows.start);
        self.free.insert(place, rows);
        for place in [place, place.wrapping_sub(1)] {
            if let Some([one, next]) = self.free.get(place..).and_then(|free| free.first_chunk::<2>())
                && one.end == next.start
            {
                self.free[place].end = next.end;
                self.free.remove(place + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_keep_what_was_written_when_tables_grow() {
        let mut cache = Cache::new(1, (1, 2), Kind::Float, Device::Cpu);
        let write = |cache: &mut Cache, rows: &Range<usize>, value: f64| {
            let _ = cache.tables.layers[0].keys.narrow(0, rows.start as i64, rows.len() as i64).fill_(value);
        };
        let read = |cache: &Cache, row: usize| cache.tables.layers[0].keys.double_value(&[row as i64, 0, 1]);
        let first = cache.take(3);
        write(&mut cache, &first, 1.0);
        let second = cache.take(5);
        write(&mut cache, &second, 2.0);
        cache.copy(&[first.start as i64], &[second.end as i64 - 1]);
        let third = cache.take(40);
        assert_eq!([first.clone(), second.clone(), third.clone()], [0..3, 3..8, 8..48]);
        assert_eq!([0, 2, 3, 6, 7].map(|row| read(&cache, row)), [1.0, 1.0, 2.0, 2.0, 1.0]);
        cache.give_back(second);
        assert_eq!((cache.take(5), cache.owned()), (3..8, 48));
    }

    proptest! {
        #[test]
        fn no_row_is_owned_twice_and_all_come_back(
            steps in prop::collection::vec((any::<bool>(), 0usize..20, any::<prop::sample::Index>()), 0..60)
        ) {
            let (mut rows, mut held) = (Rows::default(), Vec::<Range<usize>>::new());
            for (take, len, which) in steps {
                if take || held.is_empty() {
                    let taken = rows.take(len);
                    prop_assert!(taken.len() == len && taken.end <= rows.all);
                    let apart = |other: &Range<usize>| other.end <= taken.start || taken.end <= other.start;
                    prop_assert!(len == 0 || held.iter().all(apart));
                    held.push(taken);
                } else {
                    rows.give_back(held.swap_remove(which.index(held.len())));
                }
                let free: usize = rows.free.iter().map(ExactSizeIterator::len).sum();
                prop_assert_eq!(free + held.iter().map(ExactSizeIterator::len).sum::<usize>(), rows.all);
            }
            held.into_iter().for_each(|taken| rows.give_back(taken));
            prop_assert!(rows.free.len() <= 1);
        }
    }
}
