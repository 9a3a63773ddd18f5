//! What the reference says of a prompt's responses, computed once where it can be.
//!
//! The reference stands still, so its log-probs of a prompt depend on nothing but what the model is given: the tokens of the prompt and of the
//! responses on it, which of them count, and the pixels of its images. Their digest is the key, whatever example, view or epoch asks; a new
//! template, answer, image, processor or crop is another key. On a CPU a prompt runs alone, so a value that was kept is the one that would be computed,
//! to the bit; on a GPU, where the prompts of a batch run together, to rounding.

use super::Micro;
use super::feature_cache::ImageKey;
use super::inputs::Inputs;
use super::micro::Places;
use super::ranks::Ranks;
use super::reference_store::{Identity, Store};
use crate::Result;
use crate::config::{AdapterStart, Reference, Run, Tuning};
use crate::text::pack::{PackedBatch, PackedImage};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// SHA-256 of all that the model is given for a prompt and the responses on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PromptKey(pub(super) [u8; 32]);

/// A packed prompt as the reference sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferencePrompt {
    /// What it is.
    pub key: PromptKey,
    /// What the row says of its responses, where the recipe asks for that.
    pub given: Option<Vec<f64>>,
    /// Whether every epoch sees it: a rejected image that is drawn anew makes another prompt.
    pub recurs: bool,
}

impl ReferencePrompt {
    /// The prompts of a micro-batch of the examples `indices`, in order; none where no reference is needed.
    pub(super) fn all(
        inputs: &Inputs,
        indices: &[usize],
        packed: &PackedBatch,
        images: &[ImageKey],
        pairs: &[Places],
    ) -> Vec<Self> {
        if !inputs.needs.reference {
            return Vec::new();
        }
        let prompt = |(place, prompt): (usize, &crate::text::pack::PackedPrompt)| {
            let key = key(&packed.subset(&[place]), images);
            let inside = |answer: Option<usize>| answer.is_some_and(|answer| prompt.responses.contains(&answer));
            let own = |pair: &Places| inside(pair.chosen) || inside(pair.rejected);
            let row = pairs.iter().find(|pair| own(pair)).map(|pair| indices[pair.example]);
            let given = row.and_then(|row| inputs.examples[row].reference).map(|sums| match prompt.responses.len() {
                1 => vec![sums.chosen],
                _ => vec![sums.chosen, sums.rejected],
            });
            let recurs = pairs.iter().any(own) || inputs.rejected_images_recur();
            ReferencePrompt { key, given, recurs }
        };
        packed.prompts.iter().enumerate().map(prompt).collect()
    }
}

/// The key of the only prompt of `alone`.
fn key(alone: &PackedBatch, images: &[ImageKey]) -> PromptKey {
    let mut hash = Sha256::new();
    hash.update(b"mdpo prompt 2");
    add(&mut hash, &alone.ids);
    add(&mut hash, &alone.positions);
    add(&mut hash, &[alone.segments.len() as i64, alone.responses.len() as i64, alone.images.len() as i64]);
    for segment in &alone.segments {
        let (start, len) = segment.prefix.map_or((-1, -1), |(start, len)| (start as i64, len as i64));
        add(&mut hash, &[segment.start as i64, segment.len as i64, start, len]);
    }
    for response in &alone.responses {
        add(&mut hash, &response.from);
        add(&mut hash, &response.labels);
        add(&mut hash, &response.spans.iter().map(|span| span.labels as i64).collect::<Vec<_>>());
    }
    for PackedImage { start, len, image } in &alone.images {
        add(&mut hash, &[*start as i64, *len as i64]);
        hash.update(images[*image].0);
    }
    PromptKey(hash.finalize().into())
}

/// With the length in front, so that no two lists of lists give the same bytes.
fn add(hash: &mut Sha256, numbers: &[i64]) {
    hash.update((numbers.len() as u64).to_le_bytes());
    numbers.iter().for_each(|number| hash.update(number.to_le_bytes()));
}

/// What is known of a micro-batch's responses under the reference.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownReference {
    /// Summed log-prob of every span of the packed responses in nats; of a missing prompt's, 0.
    sums: Vec<f64>,
    /// Prompts that must be computed.
    missing: Vec<usize>,
    /// Prompts that were.
    computed: Vec<usize>,
}

/// The part of a micro-batch that must be computed.
#[derive(Debug)]
pub struct Missing {
    /// Its prompts; images are numbered as in `images`.
    pub packed: PackedBatch,
    /// Their images, by their place in the micro-batch.
    pub images: Vec<usize>,
}

impl KnownReference {
    /// Nothing of the batch is known.
    pub fn nothing(packed: &PackedBatch) -> Self {
        let missing = (0..packed.prompts.len()).collect();
        KnownReference { sums: vec![0.0; packed.span_count()], missing, computed: Vec::new() }
    }

    /// Whether every prompt of the batch must be computed.
    pub fn is_nothing(&self, packed: &PackedBatch) -> bool {
        self.missing.len() == packed.prompts.len()
    }

    /// What must be computed of the batch; none where everything is known.
    pub fn missing(&self, packed: &PackedBatch) -> Option<Missing> {
        if self.missing.is_empty() {
            return None;
        }
        let mut packed = packed.subset(&self.missing);
        let mut images: Vec<usize> = packed.images.iter().map(|slot| slot.image).collect();
        images.sort_unstable();
        images.dedup();
        for slot in &mut packed.images {
            slot.image = images.binary_search(&slot.image).expect("every image of the prompts is listed");
        }
        Some(Missing { packed, images })
    }

    /// Takes the sums f64 `[spans]` of [`KnownReference::missing`].
    pub fn fill(&mut self, packed: &PackedBatch, sums: &Tensor) {
        let missing = std::mem::take(&mut self.missing);
        let spans = missing.iter().flat_map(|&prompt| packed.prompt_spans(prompt));
        spans.enumerate().for_each(|(row, span)| self.sums[span] = sums.double_value(&[row as i64]));
        self.computed.extend(missing);
    }

    /// Summed log-probs of all spans, f64 `[spans]`.
    pub fn sums(&self) -> Tensor {
        Tensor::from_slice(&self.sums)
    }
}

/// What the reference said of the prompts it has seen.
#[derive(Debug)]
pub struct ReferenceCache {
    known: HashMap<PromptKey, Vec<f64>>,
    kept: Kept,
    /// What other ranks were not told yet, where there are some.
    untold: Option<Learned>,
    /// Who writes what is kept on disk.
    writer: Writer,
}

/// What a reference said, for other ranks.
pub type Learned = Vec<(PromptKey, Vec<f64>)>;

/// Whether this process writes the file of kept values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    This,
    AnotherRank,
}

/// What is kept of what was computed.
#[derive(Debug)]
enum Kept {
    /// Nothing.
    Nothing,
    /// What later epochs see again.
    WhatRecurs,
    /// Everything, on disk too.
    Everything { store: Store, unwritten: usize, written: Instant },
}

/// How long values stay in memory alone.
const WRITE_AFTER: Duration = Duration::from_secs(300);

impl ReferenceCache {
    /// Keeps nothing: the reference is computed for every prompt of every step.
    pub fn nothing() -> Self {
        Self::with(HashMap::new(), Kept::Nothing)
    }

    fn with(known: HashMap<PromptKey, Vec<f64>>, kept: Kept) -> Self {
        ReferenceCache { known, kept, untold: None, writer: Writer::This }
    }

    /// The cache of one of several ranks, which tell each other what they compute: an example may be another rank's in the next epoch. Only
    /// the first writes.
    #[must_use]
    pub fn among(mut self, ranks: &Ranks) -> Self {
        if ranks.count() > 1 {
            self.untold = Some(Vec::new());
            self.writer = if ranks.leads() { Writer::This } else { Writer::AnotherRank };
        }
        self
    }

    /// What was computed since this was last asked.
    pub fn take_untold(&mut self) -> Learned {
        self.untold.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes in what another rank has computed.
    pub fn hear(&mut self, learned: Learned) {
        for (key, sums) in learned {
            if self.known.insert(key, sums).is_none() {
                self.count();
            }
        }
    }

    /// The cache of a run's reference on `device`, with what earlier runs left in its `reference_cache`.
    ///
    /// # Errors
    /// The checkpoint or the adapter cannot be read; the folder cannot be made; its file is damaged.
    pub fn of_run(run: &Run, device: Device) -> Result<Self> {
        let adapter: Option<&PathBuf> = match &run.tuning {
            Tuning::Lora(lora) => match &lora.start {
                AdapterStart::From { path, reference: Reference::Adapter } => Some(path),
                _ => None,
            },
            Tuning::Full { .. } => None,
        };
        Self::of_model(run, adapter.map(PathBuf::as_path), device)
    }

    /// The cache of the run's checkpoint with an adapter as the reference.
    ///
    /// # Errors
    /// As [`ReferenceCache::of_run`].
    pub fn of_model(run: &Run, adapter: Option<&Path>, device: Device) -> Result<Self> {
        let Some(folder) = run.reference.cache.as_deref().filter(|_| run.objective.needs().reference) else {
            return Ok(Self::with(HashMap::new(), Kept::WhatRecurs));
        };
        let store = Store::new(folder, Identity::of(folder, &run.model, adapter, device)?)?;
        let known = store.read()?;
        Ok(Self::with(known, Kept::Everything { store, unwritten: 0, written: Instant::now() }))
    }

    /// How many prompts are known, and the file they are kept in.
    pub fn stored(&self) -> Option<(usize, &Path)> {
        match &self.kept {
            Kept::Everything { store, .. } => Some((self.known.len(), store.path())),
            Kept::Nothing | Kept::WhatRecurs => None,
        }
    }

    /// What is known of a micro-batch.
    pub fn known(&self, micro: &Micro) -> KnownReference {
        let packed = &micro.batch.packed;
        let mut known = KnownReference::nothing(packed);
        let value = |place: &usize| {
            let prompt: &ReferencePrompt = micro.prompts.get(*place)?;
            prompt.given.as_ref().or_else(|| self.known.get(&prompt.key))
        };
        let (there, missing) = known.missing.drain(..).partition(|place| value(place).is_some());
        known.missing = missing;
        let there: Vec<usize> = there;
        for place in there {
            let sums = value(&place).into_iter().flatten();
            packed.prompt_spans(place).zip(sums).for_each(|(span, sum)| known.sums[span] = *sum);
        }
        known
    }

    /// As [`ReferenceCache::known`], but what no later epoch sees again counts as known.
    pub fn known_of_recurring(&self, micro: &Micro) -> KnownReference {
        let mut known = self.known(micro);
        known.missing.retain(|&place| micro.prompts.get(place).is_some_and(|prompt| prompt.recurs));
        known
    }

    /// Keeps what was computed; every five minutes it goes to the disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn learn(&mut self, micro: &Micro, known: &KnownReference) -> Result<()> {
        for &place in &known.computed {
            let Some(prompt) = micro.prompts.get(place) else { continue };
            let sums = known.sums[micro.batch.packed.prompt_spans(place)].to_vec();
            let kept = match &self.kept {
                Kept::Nothing => false,
                Kept::WhatRecurs => prompt.recurs,
                Kept::Everything { .. } => true,
            };
            // A reference that overflows ends the run, which says so; nobody else should start from it.
            if kept && sums.iter().all(|sum| sum.is_finite()) && !self.known.contains_key(&prompt.key) {
                self.untold.iter_mut().for_each(|untold| untold.push((prompt.key, sums.clone())));
                self.known.insert(prompt.key, sums);
                self.count();
            }
        }
        match &self.kept {
            Kept::Everything { written, .. } if written.elapsed() > WRITE_AFTER => self.write(),
            _ => Ok(()),
        }
    }

    fn count(&mut self) {
        if let Kept::Everything { unwritten, .. } = &mut self.kept {
            *unwritten += 1;
        }
    }

    /// Writes what the disk does not have yet, where there is one to write to and no other rank does it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self) -> Result<()> {
        if let Kept::Everything { store, unwritten, written } = &mut self.kept
            && *unwritten > 0
            && self.writer == Writer::This
        {
            store.write(&mut self.known)?;
            (*unwritten, *written) = (0, Instant::now());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Pixels;
    use crate::text::{ImageSlot, Tokens};

    fn tokens(ids: &[u32], counted: bool) -> Tokens {
        Tokens { ids: ids.to_vec(), counted: vec![counted; ids.len()], ..Tokens::default() }
    }

    fn packed(prompt: &[u32], chosen: &[u32], rejected: &[u32], counted: bool) -> PackedBatch {
        let mut batch = PackedBatch::default();
        let mut prompt = tokens(prompt, false);
        prompt.images.push(ImageSlot { start: 1, len: 1, image: 0 });
        batch.push(&prompt, &[&tokens(chosen, counted), &tokens(rejected, true)], |image| image);
        batch
    }

    #[test]
    fn all_that_the_model_is_given_is_in_the_key() {
        let pixels = |value: f32| Pixels { values: vec![value, 0.5, 0.25], height: 1, width: 1 };
        let image = [ImageKey::of(&pixels(1.0))];
        let base = key(&packed(&[1, 9, 2], &[5, 6], &[7], true), &image);
        assert_eq!(base, key(&packed(&[1, 9, 2], &[5, 6], &[7], true), &image));
        let others = [
            key(&packed(&[1, 9, 3], &[5, 6], &[7], true), &image),
            // The last token of a response is a label only.
            key(&packed(&[1, 9, 2], &[5, 8], &[7], true), &image),
            key(&packed(&[1, 9, 2], &[5, 6], &[8], true), &image),
            key(&packed(&[1, 9, 2], &[5], &[6, 7], true), &image),
            key(&packed(&[1, 9, 2], &[5, 6], &[7], false), &image),
            key(&packed(&[1, 9, 2], &[5, 6], &[7], true), &[ImageKey::of(&pixels(1.0f32.next_up()))]),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(*other != base && !others[..i].contains(other), "case {i}");
        }
    }

    #[test]
    fn what_is_missing_keeps_its_place() {
        let mut batch = PackedBatch::default();
        for image in 0..3 {
            let mut prompt = tokens(&[1, 9], false);
            prompt.images.push(ImageSlot { start: 1, len: 1, image });
            batch.push(&prompt, &[&tokens(&[5], true), &tokens(&[6, 7], true)][..2 - image % 2], |image| image);
        }
        let mut known = KnownReference { missing: vec![0, 2], ..KnownReference::nothing(&batch) };
        known.sums[2] = -3.0;
        let missing = known.missing(&batch).unwrap();
        assert_eq!(missing.images, [0, 2]);
        assert_eq!(missing.packed.images.iter().map(|slot| slot.image).collect::<Vec<_>>(), [0, 1]);
        known.fill(&batch, &Tensor::from_slice(&[-1.0, -2.0, -4.0, -5.0f64]));
        assert_eq!(known.sums, [-1.0, -2.0, -3.0, -4.0, -5.0]);
        assert!(known.missing(&batch).is_none() && known.computed == [0, 2]);
    }
}
