//! Answers to many questions side by side: prompts run packed, then one token of each live answer at a time, each over its own keys and values.
//!
//! Where an answer ends another question takes its place. Nothing is padded, and on a CPU every prompt runs alone, so an answer depends on its
//! neighbours only as far as a product of several rows rounds differently from one of a single row.

use super::beams::{BeamSearch, Continuation, Next};
use super::decoding::{Decoding, Sampling, pick};
use super::generate::{End, check};
use crate::address::Address;
use crate::image::Pixels;
use crate::model::{Cache, DeviceBatch, Model, States};
use crate::nn::{Pass, Role, Span, precision};
use crate::text::Tokens;
use crate::text::pack::{PackedBatch, Segment};
use crate::{Error, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// With the adapter, where the model has one.
const POLICY: Pass = Pass { role: Role::Policy, dropout: None };
/// Rows of the cache that an answer begins with.
const FIRST_ROWS: usize = 32;

/// A question, ready for the model.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The prompt, generation prompt included.
    pub prompt: Tokens,
    /// Its processed images, in the order of the prompt's slots. Questions that share an image share it here, so that the tower sees it once.
    pub images: Vec<Arc<Pixels>>,
    /// With the seed, what random numbers are addressed by.
    pub number: u64,
}

/// How questions are answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How tokens are chosen.
    pub decoding: Decoding,
    /// The most tokens of an answer, at least one.
    pub max_new_tokens: usize,
    /// The ids that end an answer ([`crate::text::Encoder::eos_ids`]).
    pub stop: Vec<u32>,
    /// How many questions are answered at once, at least one; a search runs so many times its beams.
    pub batch_size: usize,
}

/// What the model said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Token ids, the one that ends it included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub end: End,
}

impl Answer {
    /// The ids of its text: all but the one that ends it.
    pub fn spoken(&self) -> &[u32] {
        match self.end {
            End::Stop => &self.ids[..self.ids.len() - 1],
            End::MaxNewTokens | End::ModelLimit(_) => &self.ids,
        }
    }
}

/// Answers every question and hands each answer over as it ends, with the index of its question.
///
/// An error among the questions ends the run after those before it are answered.
///
/// # Errors
/// As [`super::Request::check`]; logits that are not finite; what `asks` and `take` give.
pub fn answer_all(
    model: &Model,
    asks: impl IntoIterator<Item = Result<Ask>>,
    settings: &Settings,
    mut take: impl FnMut(usize, Answer) -> Result<()>,
) -> Result<()> {
    let mut batch = Batch::new(model, settings.clone());
    let mut asks = asks.into_iter().enumerate();
    let mut failed = None;
    loop {
        let mut fresh = Vec::new();
        while failed.is_none() && batch.rows.len() + fresh.len() < settings.batch_size.max(1) {
            match asks.next() {
                None => break,
                Some((index, Ok(ask))) => fresh.push((index, ask)),
                Some((_, Err(error))) => failed = Some(error),
            }
        }
        match (fresh.is_empty(), batch.rows.is_empty()) {
            (false, _) => batch.begin(fresh)?,
            (true, false) => batch.step()?,
            (true, true) => {
                debug_assert_eq!(batch.cache.owned(), 0, "an answer that ended still owns rows");
                return failed.map_or(Ok(()), Err);
            }
        }
        for (index, answer) in batch.ended.drain(..) {
            take(index, answer)?;
        }
    }
}

/// The questions that are being answered.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    model: &'a Model,
    settings: Settings,
    cache: Cache,
    pub(super) rows: Vec<Row>,
    /// What has ended and was not handed over.
    pub(super) ended: Vec<(usize, Answer)>,
    /// The newest images with their features `[1, tokens, width]`.
    seen: Vec<(Arc<Pixels>, Tensor)>,
}

/// A question with its answers in the making.
#[derive(Debug)]
pub(super) struct Row {
    index: usize,
    /// Rows of the cache.
    prompt: Range<usize>,
    /// The most tokens of an answer, and what it means when there are so many.
    room: (usize, End),
    /// One answer, or one for each running beam; an empty one until the prompt has run.
    pub(super) answers: Vec<Draft>,
    course: Course,
}

/// An answer in the making.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) ids: Vec<u32>,
    /// Rows of the cache; those of all tokens but the last are written.
    kept: Range<usize>,
}

/// How its tokens are chosen.
#[derive(Debug)]
enum Course {
    Greedy,
    Sample { random: Box<ChaCha8Rng>, temperature: f64, top_p: f64, top_k: usize },
    Beams(BeamSearch),
}

impl<'a> Batch<'a> {
    pub fn new(model: &'a Model, settings: Settings) -> Self {
        let cache = model.language.cache();
        Batch { model, settings, cache, rows: Vec::new(), ended: Vec::new(), seen: Vec::new() }
    }

    /// Runs prompts and chooses what their answers begin with.
    pub fn begin(&mut self, asks: Vec<(usize, Ask)>) -> Result<()> {
        for (_, ask) in &asks {
            check(&ask.prompt, ask.images.len(), self.settings.max_new_tokens, &self.model.shape)?;
        }
        let (mut packed, mut pictures) = (PackedBatch::default(), Vec::<Arc<Pixels>>::new());
        let mut rows: Vec<i64> = Vec::new();
        let first = self.rows.len();
        for (index, ask) in asks {
            let mut place = |image: usize| {
                let known = pictures.iter().position(|known| Arc::ptr_eq(known, &ask.images[image]));
                known.unwrap_or_else(|| {
                    pictures.push(ask.images[image].clone());
                    pictures.len() - 1
                })
            };
            let places: Vec<usize> = (0..ask.images.len()).map(&mut place).collect();
            packed.push(&ask.prompt, &[], |image| places[image]);
            let prompt = self.cache.take(ask.prompt.ids.len());
            rows.extend(prompt.clone().map(|row| row as i64));
            self.rows.push(self.row(index, prompt, ask.number));
        }
        let features = self.features(&pictures);
        let batch = DeviceBatch::with_states(packed, self.model.device, States::Last);
        let hidden = self.model.prefill(&batch, features.as_ref(), &rows, &mut self.cache, POLICY);
        self.choose(first, &hidden)
    }

    fn row(&self, index: usize, prompt: Range<usize>, number: u64) -> Row {
        let limit = self.model.shape.language.max_length;
        let left = limit - prompt.len();
        let room = match self.settings.max_new_tokens <= left {
            true => (self.settings.max_new_tokens, End::MaxNewTokens),
            false => (left, End::ModelLimit(limit)),
        };
        let course = match self.settings.decoding {
            Decoding::Sampling(Sampling::Greedy) => Course::Greedy,
            Decoding::Sampling(Sampling::Sample { temperature, top_p, top_k, seed }) => {
                let random = Box::new(Address { seed, epoch: 0, example: number }.rng("sample"));
                Course::Sample { random, temperature, top_p, top_k }
            }
            Decoding::Beams(beams) => Course::Beams(BeamSearch::new(beams, room.0)),
        };
        Row { index, prompt, room, answers: vec![Draft::default()], course }
    }

    /// Features `[images, tokens, width]` of distinct images, of which the newest are remembered.
    fn features(&mut self, pictures: &[Arc<Pixels>]) -> Option<Tensor> {
        let place = |seen: &[(Arc<Pixels>, Tensor)], picture: &Arc<Pixels>| {
            seen.iter().position(|(known, _)| Arc::ptr_eq(known, picture))
        };
        let new: Vec<&Arc<Pixels>> = pictures.iter().filter(|picture| place(&self.seen, picture).is_none()).collect();
        let pixels: Vec<&Pixels> = new.iter().map(|picture| picture.as_ref()).collect();
        if let Some(features) = tch::no_grad(|| self.model.features_for_answers(&pixels, POLICY)) {
            self.seen.extend(new.into_iter().cloned().zip(features.split(1, 0)));
        }
        let found: Vec<&Tensor> =
            pictures.iter().filter_map(|picture| Some(&self.seen[place(&self.seen, picture)?].1)).collect();
        let all = (!found.is_empty()).then(|| Tensor::cat(&found, 0));
        let kept = self.seen.len().min(self.settings.batch_size.max(1));
        self.seen.drain(..self.seen.len() - kept);
        all
    }

    /// Runs one more token of every live answer.
    pub fn step(&mut self) -> Result<()> {
        let mut next = Vec::new();
        for row in &mut self.rows {
            let prompt = row.prompt.clone();
            for draft in &mut row.answers {
                draft.make_room(&mut self.cache, row.room.0);
                let Some(&id) = draft.ids.last() else { continue };
                let len = draft.ids.len();
                let segment = Segment { start: draft.kept.start, len, prefix: Some((prompt.start, prompt.len())) };
                next.push((id, prompt.len() + len - 1, Span { segment, first: len - 1, len: 1 }));
            }
        }
        let hidden = self.model.decode(&next, &mut self.cache, POLICY);
        self.choose(0, &hidden)
    }

    /// Chooses the next tokens of the rows from `first` on, whose answers' last states are `hidden`, and takes out what has ended.
    fn choose(&mut self, first: usize, hidden: &Tensor) -> Result<()> {
        let head = self.model.language.head(POLICY);
        let logits = tch::no_grad(|| precision::linear(hidden, &head, None).to_kind(Kind::Float));
        let likely = Likely::of(&logits, &self.settings)?;
        let mut done = 0;
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for mut row in self.rows.split_off(first) {
            let answers = done..done + row.answers.len();
            done = answers.end;
            if !answers.clone().all(|answer| likely.is_finite(answer)) {
                let tokens = row.prompt.len() + row.answers.first().map_or(0, |draft| draft.ids.len());
                let what = format!("the model's logits after {tokens} tokens are not finite");
                return Err(Error::at("generation", what).hint("use bfloat16 or float32 instead of float16"));
            }
            let ended = match &mut row.course {
                Course::Greedy => row.add(likely.best(answers.start), &self.settings.stop),
                Course::Sample { random, temperature, top_p, top_k } => {
                    let id = pick(likely.values(answers.start), *temperature, *top_p, *top_k, random.random());
                    row.add(id as u32, &self.settings.stop)
                }
                Course::Beams(search) => {
                    let running: Vec<&[u32]> = row.answers.iter().map(|draft| draft.ids.as_slice()).collect();
                    let likeliest: Vec<_> = answers.map(|answer| likely.pairs(answer)).collect();
                    match search.step(&running, &likeliest, &self.settings.stop) {
                        Next::Ended(ids) => Some(ids),
                        Next::Running(next) => {
                            row.follow(&next, &mut self.cache, (&mut from, &mut to));
                            None
                        }
                    }
                }
            };
            match ended {
                None => self.rows.push(row),
                Some(ids) => {
                    let end = match ids.last().is_some_and(|id| self.settings.stop.contains(id)) {
                        true => End::Stop,
                        false => row.room.1,
                    };
                    self.ended.push((row.index, Answer { ids, end }));
                    let kept = row.answers.into_iter().map(|draft| draft.kept);
                    kept.chain([row.prompt]).for_each(|rows| self.cache.give_back(rows));
                }
            }
        }
        self.cache.copy(&from, &to);
        Ok(())
    }
}

impl Row {
    /// Adds a token to its one answer, and gives the answer when that ends it.
    fn add(&mut self, id: u32, stop: &[u32]) -> Option<Vec<u32>> {
        let ids = &mut self.answers.first_mut()?.ids;
        ids.push(id);
        (stop.contains(&id) || ids.len() >= self.room.0).then(|| std::mem::take(ids))
    }

    /// Replaces its answers by their continuations. The first that continues an answer takes over its rows of the cache, others get rows of their
    /// own, into which `copies` (from, to) are still to be made.
    fn follow(&mut self, next: &[Continuation], cache: &mut Cache, copies: (&mut Vec<i64>, &mut Vec<i64>)) {
        let before = std::mem::take(&mut self.answers);
        let written: Vec<Range<usize>> =
            before.iter().map(|draft| draft.kept.start..draft.kept.start + draft.ids.len()).collect();
        let mut kept: Vec<Option<Range<usize>>> = before.iter().map(|draft| Some(draft.kept.clone())).collect();
        for &Continuation { parent, id, .. } in next {
            let rows = kept[parent].take().unwrap_or_else(|| {
                let rows = cache.take(before[parent].kept.len());
                copies.0.extend(written[parent].clone().map(|row| row as i64));
                copies.1.extend(rows.clone().take(written[parent].len()).map(|row| row as i64));
                rows
            });
            self.answers.push(Draft { ids: [&before[parent].ids[..], &[id]].concat(), kept: rows });
        }
        kept.into_iter().flatten().for_each(|rows| cache.give_back(rows));
    }
}

impl Draft {
    /// Sees to a row for the last token; an answer has at most `room` tokens.
    fn make_room(&mut self, cache: &mut Cache, room: usize) {
        let needed = self.ids.len();
        if self.kept.len() < needed {
            let rows = cache.take((2 * self.kept.len()).max(FIRST_ROWS).min(room).max(needed));
            let numbers = |rows: &Range<usize>| rows.clone().take(needed - 1).map(|row| row as i64).collect::<Vec<_>>();
            cache.copy(&numbers(&self.kept), &numbers(&rows));
            cache.give_back(std::mem::replace(&mut self.kept, rows));
        }
    }
}

/// What logits `[answers, vocab]` say, as much of it as the decoding asks for, out of the device.
struct Likely {
    /// How many tokens of each answer.
    width: usize,
    /// Their ids, the likeliest first; all in order where there are none.
    ids: Vec<i64>,
    /// Their logits, for a search their log-probs.
    values: Vec<f32>,
}

impl Likely {
    fn of(logits: &Tensor, settings: &Settings) -> Result<Self> {
        let (values, ids) = match settings.decoding {
            Decoding::Sampling(Sampling::Greedy) => {
                let (most, ids) = logits.max_dim(-1, true);
                (most, Some(ids))
            }
            Decoding::Sampling(Sampling::Sample { .. }) => (logits.shallow_clone(), None),
            Decoding::Beams(beams) => {
                let count = (beams.looked_at(settings.stop.len()) as i64).min(logits.size()[1]);
                let (most, ids) = logits.log_softmax(-1, Kind::Float).topk(count, -1, true, true);
                (most, Some(ids))
            }
        };
        let flat = |x: &Tensor| x.flatten(0, -1).to_device(Device::Cpu);
        Ok(Likely {
            width: values.size()[1] as usize,
            ids: ids.map_or(Ok(Vec::new()), |ids| Vec::try_from(flat(&ids)))?,
            values: Vec::try_from(flat(&values))?,
        })
    }

    fn values(&self, answer: usize) -> &[f32] {
        &self.values[answer * self.width..(answer + 1) * self.width]
    }

    /// libtorch counts NaN as the largest number, so that it is found where there is one.
    fn is_finite(&self, answer: usize) -> bool {
        let values = self.values(answer);
        values.iter().all(|value| !value.is_nan())
            && values.iter().copied().fold(f32::NEG_INFINITY, f32::max).is_finite()
    }

    fn best(&self, answer: usize) -> u32 {
        self.ids[answer * self.width] as u32
    }

    fn pairs(&self, answer: usize) -> Vec<(u32, f32)> {
        let ids = &self.ids[answer * self.width..(answer + 1) * self.width];
        ids.iter().map(|&id| id as u32).zip(self.values(answer).iter().copied()).collect()
    }
}
