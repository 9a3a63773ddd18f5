//! Rows that are held out of training: those of other files, or some of the data set's own.

use crate::address::Address;
use crate::config::{self, HeldOut, Run};
use crate::data::{self, Dataset};
use crate::{Error, Result};
use rand::Rng;

/// Parts a data set into what is trained on and what `val_size` holds out. Which rows those are is a function of `seed` and of how many
/// rows there are, so that runs with the same data and seed hold out the same ones, whatever else their recipes say.
///
/// # Errors
/// Nothing would be left to train on.
pub(super) fn divide(run: &Run, mut dataset: Dataset) -> Result<(Dataset, Option<Dataset>)> {
    let rows = dataset.examples.len();
    let held_out = match run.evaluation.as_ref().map(|evaluation| &evaluation.held_out) {
        Some(HeldOut::Share(share)) => (share * rows as f64).ceil() as usize,
        Some(HeldOut::Rows(rows)) => *rows,
        Some(HeldOut::Nothing | HeldOut::Files(_)) | None => return Ok((dataset, None)),
    };
    // Where every row is unusable, that is the problem to tell.
    if held_out >= rows && rows > 0 {
        let what = format!("holds out {held_out} of {rows} rows, so that none is left to train on");
        return Err(Error::at("`val_size`", what).hint("hold out fewer, or add rows"));
    }
    let drawn = drawn("held-out row", run.seed, rows, held_out.min(rows));
    let (mut kept, mut apart) = (Vec::with_capacity(rows - held_out.min(rows)), Vec::with_capacity(held_out));
    for (example, held_out) in dataset.examples.into_iter().zip(drawn) {
        if held_out { apart.push(example) } else { kept.push(example) }
    }
    dataset.examples = kept;
    let apart = Dataset { examples: apart, problems: Vec::new(), left_out: Default::default() };
    Ok((dataset, Some(apart)))
}

/// Which of `rows` rows are drawn for a purpose: the `count` with the smallest numbers of their own.
pub(super) fn drawn(purpose: &str, seed: u64, rows: usize, count: usize) -> Vec<bool> {
    let number = |row: usize| Address { seed, epoch: 0, example: row as u64 }.rng(purpose).next_u64();
    let mut numbers: Vec<(u64, usize)> = (0..rows).map(|row| (number(row), row)).collect();
    numbers.sort_unstable();
    let mut drawn = vec![false; rows];
    numbers.iter().take(count).for_each(|&(_, row)| drawn[row] = true);
    drawn
}

/// The rows that are looked at: `own` ones of the data set, or those that `load` finds in other files; at most `max_eval_samples`, the first.
///
/// # Errors
/// As `load`.
pub(super) fn dataset(
    run: &Run,
    own: Option<Dataset>,
    load: impl FnOnce(&config::Data) -> Result<Dataset>,
) -> Result<Option<Dataset>> {
    let Some(evaluation) = &run.evaluation else { return Ok(None) };
    let found = match &evaluation.held_out {
        HeldOut::Files(paths) => {
            if let Some(path) = data::shared_files(paths, &run.data.paths)?.first() {
                let what = format!("`{}` is trained on too, as a file of `dataset_name`", path.display());
                let hint = "name files of their own (of a folder with splits, its `test` file), or hold out rows of the data set: `val_size: 0.05`";
                return Err(Error::at("`eval_dataset_name`", what).hint(hint));
            }
            Some(load(&config::Data { paths: paths.clone(), ..run.data.clone() })?)
        }
        HeldOut::Nothing | HeldOut::Share(_) | HeldOut::Rows(_) => own,
    };
    Ok(found.map(|mut dataset| {
        dataset.examples.truncate(evaluation.max_samples.unwrap_or(usize::MAX));
        dataset
    }))
}

/// A problem of rows that are held out says so.
pub(super) fn told(error: Error) -> Error {
    match error {
        Error::One(mut problem) => {
            problem.place = format!("held-out rows: {}", problem.place);
            Error::One(problem)
        }
        Error::Many(errors) => Error::Many(errors.into_iter().map(told).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_many_rows_are_held_out_as_asked_for_and_more_hold_out_the_same_ones(seed: u64, rows in 2usize..80, share in 0.0f64..1.0) {
            let fewer = (share * rows as f64) as usize;
            let (some, more) = (drawn("row", seed, rows, fewer), drawn("row", seed, rows, fewer + 1));
            prop_assert_eq!(some.iter().filter(|held_out| **held_out).count(), fewer);
            prop_assert!(some.iter().zip(&more).all(|(some, more)| !some || *more));
        }
    }

    #[test]
    fn which_rows_are_held_out_never_changes() {
        // A run of today must resume with any later version without having seen its held-out rows.
        let held_out: Vec<usize> = (0..20).filter(|&row| drawn("held-out row", 42, 20, 4)[row]).collect();
        assert_eq!(held_out, [5, 15, 16, 19]);
    }
}
