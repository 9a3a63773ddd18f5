//! Micro-batches: which examples of an optimizer step meet in one, and those examples packed with the images they need.
//!
//! Preparing one is plain work of the processor and may run on any thread ([`Prepared`]); libtorch is asked only when it goes to the device
//! ([`Micro`]).

use super::Inputs;
use super::feature_cache::ImageKey;
use super::inputs::Size;
use super::reference_cache::ReferencePrompt;
use crate::Result;
use crate::config;
use crate::data::order::{self, Order};
use crate::data::{Answer, ImageSource, Pair};
use crate::image::{Corrupted, Picture, Pixels};
use crate::model::DeviceBatch;
use crate::objective::{EosSpan, Spans, StepTotals};
use crate::text::pack::{PackedBatch, SpanKind, SpanOf};
use crate::text::{Encoded, Tokens};
use std::cmp::Reverse;
use std::ops::Range;
use tch::{Device, Tensor};

/// The optimizer steps of a run, each cut into micro-batches: a pure function of the step.
#[derive(Debug, Clone)]
pub struct Steps<'a> {
    /// What the examples are.
    pub inputs: &'a Inputs,
    /// Which of them a step takes.
    pub order: Order,
    /// How many go into a micro-batch.
    pub batch: config::Batch,
    /// Which of the micro-batches are made here.
    pub share: Share,
}

/// Which micro-batches of a step a rank runs: every so-manieth, since neighbours are of similar size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The rank, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub ranks: usize,
}

impl Share {
    /// All of them.
    pub const ALL: Share = Share { rank: 0, ranks: 1 };

    /// Whether micro-batch `index` of a step is one of them.
    pub fn takes(self, index: usize) -> bool {
        index % self.ranks == self.rank
    }
}

/// An optimizer step, cut.
#[derive(Debug, Clone)]
pub struct StepCut {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Sums over the whole step.
    pub totals: StepTotals,
    /// Indices of the examples of each micro-batch, of all ranks.
    pub micros: Vec<Vec<usize>>,
}

impl Steps<'_> {
    /// The micro-batches of a step that are made here, each with its number in the step.
    pub fn own<'c>(&self, cut: &'c StepCut) -> impl Iterator<Item = (usize, &'c [usize])> + use<'c> {
        let share = self.share;
        cut.micros
            .iter()
            .enumerate()
            .filter(move |(i, _)| share.takes(*i))
            .map(|(i, examples)| (i, examples.as_slice()))
    }

    /// Optimizer step `step`, from 0.
    pub fn step(&self, step: usize) -> StepCut {
        let order::Batch { epoch, examples } = self.order.batch(step);
        let sizes = &self.inputs.sizes;
        let sum = |of: fn(&Size) -> usize| examples.iter().map(|&i| of(&sizes[i])).sum();
        let totals = StepTotals {
            pairs: sum(|size| size.pairs),
            chosen_tokens: sum(|size| size.chosen_labels),
            answers: sum(|size| size.answers),
        };
        StepCut { epoch, totals, micros: cut(examples, sizes, &self.batch) }
    }
}

/// Cuts a step's examples into micro-batches of similar examples, the longest first: a step that is too large for the memory says so at once.
/// Each has `per_device` examples, or with a budget as many as it holds; an example over the budget stands alone.
fn cut(mut examples: Vec<usize>, sizes: &[Size], batch: &config::Batch) -> Vec<Vec<usize>> {
    examples.sort_by_key(|&i| (Reverse(sizes[i].packed), i));
    let Some(budget) = batch.max_tokens else {
        return examples.chunks(batch.per_device).map(<[usize]>::to_vec).collect();
    };
    let (mut micros, mut room) = (Vec::<Vec<usize>>::new(), 0);
    for example in examples {
        let tokens = sizes[example].packed;
        match micros.last_mut() {
            Some(micro) if tokens <= room => {
                micro.push(example);
                room -= tokens;
            }
            _ => {
                micros.push(vec![example]);
                room = budget.saturating_sub(tokens);
            }
        }
    }
    micros
}

/// Some examples as plain data, ready for any device.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Their indices.
    pub examples: Vec<usize>,
    /// Prompts with their responses.
    pub packed: PackedBatch,
    /// The distinct images.
    pub images: Vec<Pixels>,
    /// What each of them is.
    pub image_keys: Vec<ImageKey>,
    /// Which of them are of the data, and not rejected ones.
    pub origins: Vec<Origin>,
    /// Where each pair's responses are.
    pub pairs: Vec<Places>,
    /// The prompts as the reference sees them, where there is one.
    pub prompts: Vec<ReferencePrompt>,
}

/// Some examples, ready for the model.
#[derive(Debug)]
pub struct Micro {
    /// Prompts with their responses.
    pub batch: DeviceBatch,
    /// The distinct images.
    pub images: Vec<Pixels>,
    /// What each of them is.
    pub image_keys: Vec<ImageKey>,
    /// Which of them are of the data, and not rejected ones.
    pub origins: Vec<Origin>,
    /// Where each pair's responses are.
    pub pairs: Vec<Places>,
    /// The prompts as the reference sees them, where there is one.
    pub prompts: Vec<ReferencePrompt>,
}

/// Where an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A row's `images`: every epoch shows it.
    Data,
    /// A rejected image.
    Rejected,
}

/// Where a pair's answers are in the packed batch, and what its row says of them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Places {
    /// Which example of the micro-batch it is a pair of.
    pub example: usize,
    /// The chosen answer under the true image; none for a row with one answer that is not wanted.
    pub chosen: Option<usize>,
    /// The rejected answer under the true image.
    pub rejected: Option<usize>,
    /// The chosen answer under the rejected image; none for a row without images.
    pub corrupted: Option<usize>,
    /// The same under the rejected image that the reference sees, where it sees another.
    pub corrupted_of_reference: Option<usize>,
    /// Another example's answer after this prompt.
    pub mismatched: Option<usize>,
    /// Scores of the chosen and the rejected answer.
    pub scores: Option<[f64; 2]>,
    /// Auxiliary rewards of the chosen and the rejected answer, weighted; 0 for one that is not there.
    pub rewards: Option<[f64; 2]>,
}

impl Prepared {
    /// Reads the examples `indices` as `epoch` sees them.
    ///
    /// # Errors
    /// An image that cannot be decoded, with its row.
    pub fn read(inputs: &Inputs, indices: &[usize], epoch: usize) -> Result<Self> {
        let encode = |&i: &usize| Ok(inputs.encode(&inputs.examples[i])?.encoded);
        let encoded = indices.iter().map(encode).collect::<Result<Vec<_>>>()?;
        Prepared::new(inputs, indices, &encoded, epoch)
    }

    /// Packs the examples `indices` (with their token ids) as `epoch` sees them.
    ///
    /// # Errors
    /// An image that cannot be decoded, with its row.
    pub fn new(inputs: &Inputs, indices: &[usize], encoded: &[Encoded], epoch: usize) -> Result<Self> {
        let mut batch = Batch::new(inputs);
        for (example, (&index, encoded)) in indices.iter().zip(encoded).enumerate() {
            batch.push(example, index, encoded, epoch)?;
        }
        let Batch { packed, images, origins, pairs, .. } = batch;
        let image_keys: Vec<ImageKey> = images.iter().map(ImageKey::of).collect();
        let prompts = ReferencePrompt::all(inputs, indices, &packed, &image_keys, &pairs);
        Ok(Prepared { examples: indices.to_vec(), packed, images, image_keys, origins, pairs, prompts })
    }

    /// Moves them to `device`.
    pub fn to_device(self, device: Device) -> Micro {
        let Prepared { examples: _, packed, images, image_keys, origins, pairs, prompts } = self;
        Micro { batch: DeviceBatch::new(packed, device), images, image_keys, origins, pairs, prompts }
    }
}

impl Micro {
    /// Packs the examples `indices` (with their token ids) as `epoch` sees them, on `device`.
    ///
    /// # Errors
    /// An image that cannot be decoded, with its row.
    pub fn new(inputs: &Inputs, indices: &[usize], encoded: &[Encoded], epoch: usize, device: Device) -> Result<Self> {
        Ok(Prepared::new(inputs, indices, encoded, epoch)?.to_device(device))
    }

    /// The sum of the response at a place, from those of all spans f64 `[spans]`.
    pub fn sum(&self, sums: &Tensor, place: usize) -> f64 {
        self.batch.packed.span_ranges()[place].clone().map(|span| sums.double_value(&[span as i64])).sum()
    }

    /// The sum of each turn of the response at a place, an EOS that stands apart included; none where it is not cut by turns.
    pub fn turns(&self, sums: &Tensor, place: usize) -> Vec<f64> {
        let packed = &self.batch.packed;
        let mut turns = Vec::new();
        for (span, of) in packed.span_ranges()[place].clone().zip(&packed.responses[place].spans) {
            let sum = sums.double_value(&[span as i64]);
            match (of.kind, turns.last_mut()) {
                (SpanKind::Turn(_), _) => turns.push(sum),
                (SpanKind::Eos, Some(turn)) => *turn += sum,
                (SpanKind::Eos | SpanKind::Whole, _) => {}
            }
        }
        turns
    }

    /// The places of all pairs' chosen and rejected answers under the true image, with the names of their sides.
    pub fn answers(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let sides = |pair: &Places| [("chosen", pair.chosen), ("rejected", pair.rejected)];
        self.pairs.iter().flat_map(sides).filter_map(|(name, place)| Some((name, place?)))
    }

    /// Labels of the response at a place.
    pub fn labels(&self, place: usize) -> usize {
        self.batch.packed.responses[place].labels.len()
    }
}

/// A micro-batch while examples are packed into it.
struct Batch<'a> {
    inputs: &'a Inputs,
    packed: PackedBatch,
    images: Vec<Pixels>,
    origins: Vec<Origin>,
    /// Images of the data that are there already, and where.
    sources: Vec<(&'a ImageSource, usize)>,
    pairs: Vec<Places>,
}

impl<'a> Batch<'a> {
    fn new(inputs: &'a Inputs) -> Self {
        let (packed, images, origins) = (PackedBatch::default(), Vec::new(), Vec::new());
        Batch { inputs, packed, images, origins, sources: Vec::new(), pairs: Vec::new() }
    }

    /// Adds example `index`, which is number `place` of the micro-batch: its prompt with all answers, and where the objective asks for it the chosen ones under the rejected image.
    fn push(&mut self, place: usize, index: usize, encoded: &Encoded, epoch: usize) -> Result<()> {
        let (inputs, example) = (self.inputs, &self.inputs.examples[index]);
        let pictures = inputs.pictures(index, epoch)?;
        let true_images = self.true_images(&example.images, &pictures.true_images);
        let mismatched = inputs.mismatched(index, &encoded.prompt)?;
        let answers: Vec<&Tokens> = encoded.answers.iter().chain(&mismatched).collect();
        let first = self.packed.responses.len();
        self.packed.push(&encoded.prompt, &answers, |image| true_images[image]);
        for (answer, tokens) in encoded.answers.iter().enumerate() {
            self.packed.cut(first + answer, spans(inputs, answer, tokens, encoded, &example.pairs));
        }
        let mismatched = mismatched.map(|_| first + encoded.answers.len());

        let chosen = example.chosen_answers();
        let corrupted = self.corrupted(&chosen, encoded, &example.pairs, &pictures.rejected);
        let of_reference = self.corrupted(&chosen, encoded, &example.pairs, &pictures.rejected_of_reference);
        for pair in &example.pairs {
            let under = |start: Option<usize>| Some(start? + chosen.binary_search(&pair.chosen?).ok()?);
            let both = |of: &dyn Fn(&Answer) -> f64| {
                [pair.chosen, pair.rejected].map(|answer| answer.map_or(0.0, |answer| of(&example.answers[answer])))
            };
            self.pairs.push(Places {
                example: place,
                chosen: pair.chosen.map(|answer| first + answer),
                rejected: pair.rejected.map(|answer| first + answer),
                corrupted: under(corrupted),
                corrupted_of_reference: under(of_reference),
                mismatched,
                scores: inputs.needs.scores.then(|| both(&|answer| answer.score.unwrap_or(f64::NAN))),
                rewards: inputs.needs.rewards.then(|| both(&|answer| inputs.reward(answer))),
            });
        }
        Ok(())
    }

    /// Where an example's own images stand among the distinct ones; those that are new are processed.
    fn true_images(&mut self, sources: &'a [ImageSource], pictures: &[Picture]) -> Vec<usize> {
        let mut places = Vec::with_capacity(sources.len());
        for (source, picture) in sources.iter().zip(pictures) {
            let known = self.sources.iter().find(|(other, _)| *other == source).map(|(_, image)| *image);
            let place = known.unwrap_or(self.images.len());
            if known.is_none() {
                self.add(picture, Origin::Data);
                self.sources.push((source, place));
            }
            places.push(place);
        }
        places
    }

    fn add(&mut self, picture: &Picture, origin: Origin) {
        self.images.extend(self.inputs.processor.as_ref().map(|processor| processor.process(picture)));
        self.origins.resize(self.images.len(), origin);
    }

    /// Packs the `chosen` answers under rejected images; gives the place of the first, where there are images.
    fn corrupted(
        &mut self,
        chosen: &[usize],
        encoded: &Encoded,
        pairs: &[Pair],
        images: &[Corrupted],
    ) -> Option<usize> {
        if images.is_empty() || chosen.is_empty() {
            return None;
        }
        let (start, first) = (self.images.len(), self.packed.responses.len());
        images.iter().for_each(|corrupted| self.add(&corrupted.picture, Origin::Rejected));
        let answers: Vec<&Tokens> = chosen.iter().map(|&answer| &encoded.answers[answer]).collect();
        self.packed.push(&encoded.prompt, &answers, |image| start + image);
        for (i, &answer) in chosen.iter().enumerate() {
            let own = spans(self.inputs, answer, &encoded.answers[answer], encoded, pairs);
            self.packed.cut(first + i, own);
        }
        Some(first)
    }
}

/// How the labels of an answer are summed.
fn spans(inputs: &Inputs, answer: usize, tokens: &Tokens, encoded: &Encoded, pairs: &[Pair]) -> Vec<SpanOf> {
    let whole = |labels: usize| SpanOf { labels, kind: SpanKind::Whole };
    match inputs.needs.spans {
        Spans::Whole => vec![whole(tokens.labels())],
        Spans::SharedLength => {
            let others = pairs.iter().filter_map(|pair| match (pair.chosen, pair.rejected) {
                (Some(own), Some(other)) if own == answer => Some(other),
                (Some(other), Some(own)) if own == answer => Some(other),
                _ => None,
            });
            let mut cuts: Vec<usize> = others.map(|other| encoded.answers[other].labels()).collect();
            cuts.retain(|&cut| cut < tokens.labels());
            cuts.push(tokens.labels());
            cuts.sort_unstable();
            cuts.dedup();
            let starts = std::iter::once(0).chain(cuts.iter().copied());
            starts.zip(&cuts).map(|(start, end)| whole(end - start)).collect()
        }
        Spans::Turns { eos } => {
            let counted = |range: Range<usize>| tokens.counted[range].iter().filter(|&&counted| counted).count();
            let is_eos = |at: usize| inputs.encoder.eos_ids().contains(&tokens.ids[at]);
            let turn = |(turn, range): (usize, &Range<usize>)| {
                // With it goes what the template writes behind it.
                let end = range.clone().rfind(|&at| is_eos(at)).filter(|_| eos == EosSpan::Apart).unwrap_or(range.end);
                let said = SpanOf { labels: counted(range.start..end), kind: SpanKind::Turn(turn) };
                let closing = SpanOf { labels: counted(end..range.end), kind: SpanKind::Eos };
                [said, closing].into_iter().filter(|span| span.labels > 0)
            };
            tokens.turns.iter().enumerate().flat_map(turn).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(per_device: usize, max_tokens: Option<usize>) -> config::Batch {
        let length = config::Length::Steps(1);
        let checkpointing = config::GradientCheckpointing::Layers;
        config::Batch { per_device, accumulation: 1, max_tokens, length, checkpointing }
    }

    fn sizes(tokens: &[usize]) -> Vec<Size> {
        tokens.iter().map(|&packed| Size { packed, pairs: 1, answers: 2, chosen_labels: 1 }).collect()
    }

    proptest! {
        #[test]
        fn a_cut_keeps_the_examples_and_lets_the_like_meet(
            tokens in prop::collection::vec(1usize..500, 1..40), per_device in 1usize..9, budget in prop::option::of(1usize..900)
        ) {
            let sizes = sizes(&tokens);
            let settings = batch(per_device, budget);
            let micros = cut((0..tokens.len()).collect(), &sizes, &settings);
            // However the step is ordered, its micro-batches are the same.
            prop_assert_eq!(&micros, &cut((0..tokens.len()).rev().collect(), &sizes, &settings));
            let mut all = micros.concat();
            prop_assert!(all.is_sorted_by_key(|&i| (Reverse(tokens[i]), i)));
            all.sort_unstable();
            prop_assert_eq!(all, (0..tokens.len()).collect::<Vec<_>>());
            let sum = |micro: &[usize]| micro.iter().map(|&i| tokens[i]).sum::<usize>();
            match budget {
                None => prop_assert!(micros.iter().rev().skip(1).all(|micro| micro.len() == per_device)),
                Some(budget) => {
                    prop_assert!(micros.iter().all(|micro| micro.len() == 1 || sum(micro) <= budget));
                    // None could have taken in the next one's first.
                    prop_assert!(micros.windows(2).all(|pair| sum(&pair[0]) + tokens[pair[1][0]] > budget));
                }
            }
        }
    }
}
