//! Figures with bootstrap intervals: every question adds counts to some columns, every figure is a ratio of sums of columns, and the
//! interval is what that ratio does when the questions are drawn anew.
//!
//! The percentile bootstrap of Efron (1979) over questions. A micro-averaged figure such as CHAIRi is resampled as a ratio of sums, so
//! a question with many objects weighs as much in its interval as it does in the figure.

use crate::figures::{Better, Figure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How a figure is made of sums of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formula {
    /// 100 · Σ `of` / Σ `among`, in percent.
    Share {
        /// The column that is counted.
        of: usize,
        /// The column that it is a part of.
        among: usize,
    },
    /// Σ `of` / Σ `count`, in the unit of `of`.
    Mean {
        /// The column that is averaged.
        of: usize,
        /// The column that says over how many.
        count: usize,
    },
    /// The harmonic mean of precision and recall in percent, 200 · Σ `right` / (Σ `said` + Σ `are`).
    F1 {
        /// Said and so.
        right: usize,
        /// All that were said.
        said: usize,
        /// All that are so.
        are: usize,
    },
}

impl Formula {
    /// The same over columns that begin `by` later.
    pub(crate) fn moved(self, by: usize) -> Self {
        match self {
            Formula::Share { of, among } => Formula::Share { of: of + by, among: among + by },
            Formula::Mean { of, count } => Formula::Mean { of: of + by, count: count + by },
            Formula::F1 { right, said, are } => Formula::F1 { right: right + by, said: said + by, are: are + by },
        }
    }

    /// The figure's value; nothing where the denominator is zero.
    fn value(self, sums: &[f64]) -> Option<f64> {
        let (top, bottom) = match self {
            Formula::Share { of, among } => (100.0 * sums[of], sums[among]),
            Formula::Mean { of, count } => (sums[of], sums[count]),
            Formula::F1 { right, said, are } => (200.0 * sums[right], sums[said] + sums[are]),
        };
        (bottom != 0.0).then(|| top / bottom)
    }
}

/// A figure that is wanted of a [`Tally`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    /// Name of the figure.
    pub name: String,
    /// Which direction is good.
    pub better: Better,
    /// How it is made of the columns.
    pub formula: Formula,
}

impl Measure {
    /// The share that column `of` is of column `among`, in percent.
    pub fn share(name: &str, better: Better, of: usize, among: usize) -> Self {
        Self { name: name.to_owned(), better, formula: Formula::Share { of, among } }
    }
}

/// What each question adds to each column; columns that a question does not name get nothing from it.
#[derive(Debug, Clone)]
pub struct Tally {
    columns: usize,
    /// Column and count, question after question.
    counts: Vec<(usize, f64)>,
    /// Where in `counts` each question ends.
    ends: Vec<usize>,
}

impl Tally {
    /// A tally of so many columns, without questions.
    pub fn new(columns: usize) -> Self {
        Self { columns, counts: Vec::new(), ends: Vec::new() }
    }

    /// Adds a question with what it adds to some columns.
    ///
    /// # Panics
    /// If a column is not below the number that the tally was made with.
    pub fn push(&mut self, counts: impl IntoIterator<Item = (usize, f64)>) {
        for (column, count) in counts {
            assert!(column < self.columns, "column {column} of {}", self.columns);
            if count != 0.0 {
                self.counts.push((column, count));
            }
        }
        self.ends.push(self.counts.len());
    }

    /// How many questions there are.
    pub fn questions(&self) -> usize {
        self.ends.len()
    }

    fn add(&self, question: usize, sums: &mut [f64]) {
        let start = question.checked_sub(1).map_or(0, |before| self.ends[before]);
        for (column, count) in &self.counts[start..self.ends[question]] {
            sums[*column] += count;
        }
    }
}

/// How intervals are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// How many times all questions are drawn anew, with replacement.
    pub resamples: usize,
    /// The same seed gives the same intervals.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 2_000, seed: 42 }
    }
}

impl Bootstrap {
    /// Each measure's value over all questions, with its 95 % interval: the 2.5th and 97.5th percentile over the resamples in which
    /// it has a value. All measures see the same resamples.
    pub fn figures(&self, tally: &Tally, measures: &[Measure]) -> Vec<Figure> {
        let questions = tally.questions();
        let mut sums = vec![0.0; tally.columns];
        (0..questions).for_each(|question| tally.add(question, &mut sums));
        let values: Vec<Option<f64>> = measures.iter().map(|measure| measure.formula.value(&sums)).collect();

        let mut drawn: Vec<Vec<f64>> = vec![Vec::with_capacity(self.resamples); measures.len()];
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        for _ in 0..self.resamples {
            sums.fill(0.0);
            (0..questions).for_each(|_| tally.add(below(questions, &mut random), &mut sums));
            for (measure, drawn) in measures.iter().zip(&mut drawn) {
                drawn.extend(measure.formula.value(&sums));
            }
        }
        let with_interval = |((measure, value), mut drawn): ((&Measure, Option<f64>), Vec<f64>)| {
            drawn.sort_by(f64::total_cmp);
            let interval = value.and(percentile(&drawn, 0.025).zip(percentile(&drawn, 0.975)));
            let (low, high) = interval.unzip();
            Figure { name: measure.name.clone(), value, low, high, better: measure.better }
        };
        measures.iter().zip(values).zip(drawn).map(with_interval).collect()
    }
}

/// A number below `end`, each as likely as the other up to one part in 2⁶⁴ / `end`.
pub(crate) fn below(end: usize, random: &mut impl Rng) -> usize {
    // The upper half of the product is below `end`, so it fits.
    ((u128::from(random.next_u64()) * end as u128) >> 64) as usize
}

/// The value at a share of the way through sorted values, with a straight line between neighbours (numpy's default).
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share() -> Measure {
        let formula = Formula::Share { of: 0, among: 1 };
        Measure { name: "share".to_owned(), better: Better::Lower, formula }
    }

    fn tally(questions: &[(u32, u32)]) -> Tally {
        let mut tally = Tally::new(2);
        for (of, rest) in questions {
            tally.push([(0, f64::from(*of)), (1, f64::from(of + rest))]);
        }
        tally
    }

    #[test]
    fn a_figure_is_a_ratio_of_sums_and_never_a_mean_of_ratios() {
        let figures = Bootstrap::default().figures(&tally(&[(1, 0), (0, 9)]), &[share()]);
        assert_eq!(figures[0].value, Some(10.0));
    }

    #[test]
    fn formulas_of_known_sums() {
        let sums = [3.0, 4.0, 8.0];
        assert_eq!(Formula::Mean { of: 0, count: 1 }.value(&sums), Some(0.75));
        // Precision 3/4, recall 3/8.
        assert_eq!(Formula::F1 { right: 0, said: 1, are: 2 }.value(&sums), Some(50.0));
        assert_eq!(Formula::Share { of: 0, among: 1 }.value(&[0.0, 0.0]), None);
    }

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile([1, 2, 4, 8], [2.5, 97.5]) gives 1.075 and 7.7.
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert!((percentile(&sorted, 0.025).expect("values") - 1.075).abs() < 1e-12);
        assert!((percentile(&sorted, 0.975).expect("values") - 7.7).abs() < 1e-12);
        assert_eq!(percentile(&[], 0.5), None);
    }

    /// 100 questions of which 30 are so: the binomial standard error is 4.58 points, so the interval is about 30 ± 9.
    #[test]
    fn an_interval_has_the_width_that_theory_says() {
        let questions: Vec<(u32, u32)> = (0..100).map(|index| if index < 30 { (1, 0) } else { (0, 1) }).collect();
        let figures = Bootstrap { resamples: 10_000, seed: 1 }.figures(&tally(&questions), &[share()]);
        let (low, high) = (figures[0].low.expect("low"), figures[0].high.expect("high"));
        assert!((low - 21.0).abs() <= 1.0 && (high - 39.0).abs() <= 1.0, "{low} to {high}");
    }

    #[test]
    fn a_denominator_of_zero_has_neither_value_nor_interval() {
        for questions in [&[][..], &[(0, 0), (0, 0)]] {
            let figure = &Bootstrap::default().figures(&tally(questions), &[share()])[0];
            assert_eq!((figure.value, figure.low, figure.high), (None, None, None));
        }
    }

    #[test]
    fn numbers_below_an_end_are_spread_evenly() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut counts = [0; 5];
        (0..5_000).for_each(|_| counts[below(5, &mut random)] += 1);
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn an_interval_is_ordered_within_the_extremes_and_repeats(
            questions in prop::collection::vec((0u32..5, 0u32..5), 1..40), seed in 0u64..1_000
        ) {
            let bootstrap = Bootstrap { resamples: 200, seed };
            let figures = bootstrap.figures(&tally(&questions), &[share()]);
            prop_assert_eq!(&bootstrap.figures(&tally(&questions), &[share()]), &figures);
            let shares = questions.iter().filter(|(of, rest)| of + rest > 0);
            let shares: Vec<f64> = shares.map(|(of, rest)| 100.0 * f64::from(*of) / f64::from(of + rest)).collect();
            let (least, most) = shares.iter().fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
            if let (Some(low), Some(high), Some(value)) = (figures[0].low, figures[0].high, figures[0].value) {
                prop_assert!(least - 1e-9 <= low && low <= high && high <= most + 1e-9);
                prop_assert!(least - 1e-9 <= value && value <= most + 1e-9);
            } else {
                prop_assert!(shares.is_empty());
            }
        }

        #[test]
        fn questions_that_are_alike_leave_no_doubt(of in 0u32..5, rest in 1u32..5, count in 1usize..30) {
            let figures = Bootstrap { resamples: 100, seed: 3 }.figures(&tally(&vec![(of, rest); count]), &[share()]);
            let value = figures[0].value.expect("a value");
            let (low, high) = (figures[0].low.expect("low"), figures[0].high.expect("high"));
            prop_assert!((low - value).abs() < 1e-9 && (high - value).abs() < 1e-9);
        }
    }
}
