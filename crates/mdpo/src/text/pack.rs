//! The packed batch: each prompt once, its responses hanging on it, nothing padded.
//!
//! All tokens of a batch stand in one flat sequence. A response attends to its prompt and to itself; its positions continue the
//! prompt's. The last token of a response is never an input, since nothing is predicted from it. The same answer under two images
//! is two prompts (prefix sharing as in arXiv 2410.20305, with any number of responses).

use super::Tokens;
use std::ops::Range;

/// A batch of prompts with their responses, ready for the model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackedBatch {
    /// Token ids, prompts and responses in turn; image slots hold the image token's id.
    pub ids: Vec<i64>,
    /// Position of each token in its own sequence, for rotary embeddings.
    pub positions: Vec<i64>,
    /// Runs of tokens that attend alike, in order, covering `ids` without gaps.
    pub segments: Vec<Segment>,
    /// Prompts with all that hangs on them, in order, covering `ids` without gaps; nothing of one sees anything of another.
    pub prompts: Vec<PackedPrompt>,
    /// What is predicted, one entry per response in the order in which they were added.
    pub responses: Vec<PackedResponse>,
    /// Where image features go.
    pub images: Vec<PackedImage>,
}

/// A run of tokens that attends causally to itself and wholly to its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First token.
    pub start: usize,
    /// How many tokens, at least one.
    pub len: usize,
    /// The prompt before it (start and length) for a response, nothing for a prompt.
    pub prefix: Option<(usize, usize)>,
}

/// A prompt and its responses within a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedPrompt {
    /// Its tokens and those of its responses.
    pub tokens: Range<usize>,
    /// Its own segment and those of its responses.
    pub segments: Range<usize>,
    /// Its responses.
    pub responses: Range<usize>,
}

/// The predictions of one response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedResponse {
    /// Flat index of the token from whose hidden state each label is predicted.
    pub from: Vec<i64>,
    /// The labels: counted tokens of the response.
    pub labels: Vec<i64>,
    /// Runs of labels that are summed apart, in order, covering all of them; one unless [`PackedBatch::cut`] says otherwise.
    pub spans: Vec<SpanOf>,
}

/// A run of a response's labels whose log-probs are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanOf {
    /// How many labels.
    pub labels: usize,
    /// What they are.
    pub kind: SpanKind,
}

/// What a run of labels is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// The whole answer, or a part of it that is cut by length.
    Whole,
    /// The assistant's turn of this number, from 0.
    Turn(usize),
    /// The EOS of a turn, where it is apart.
    Eos,
}

/// A run of image tokens of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedImage {
    /// First token.
    pub start: usize,
    /// How many tokens.
    pub len: usize,
    /// Index into the batch's own list of images.
    pub image: usize,
}

impl PackedBatch {
    /// Adds a prompt with the responses that hang on it.
    ///
    /// `images` maps an image of the row to the batch's list of images: it is what tells the true image from the rejected one.
    /// The prompt holds at least one token, each response at least one.
    pub fn push(&mut self, prompt: &Tokens, responses: &[&Tokens], images: impl Fn(usize) -> usize) {
        let prompt_start = self.ids.len();
        let (first_segment, first_response) = (self.segments.len(), self.responses.len());
        self.push_segment(prompt, prompt.ids.len(), 0, None, &images);
        let prompt_len = prompt.ids.len();
        for response in responses {
            let inputs = response.ids.len() - 1;
            let start = self.ids.len();
            if inputs > 0 {
                self.push_segment(response, inputs, prompt_len, Some((prompt_start, prompt_len)), &images);
            }
            let predictor = |i: usize| if i == 0 { prompt_start + prompt_len - 1 } else { start + i - 1 };
            let counted = || (0..response.ids.len()).filter(|&i| response.counted[i]);
            let labels: Vec<i64> = counted().map(|i| i64::from(response.ids[i])).collect();
            self.responses.push(PackedResponse {
                from: counted().map(|i| predictor(i) as i64).collect(),
                spans: vec![SpanOf { labels: labels.len(), kind: SpanKind::Whole }],
                labels,
            });
        }
        self.prompts.push(PackedPrompt {
            tokens: prompt_start..self.ids.len(),
            segments: first_segment..self.segments.len(),
            responses: first_response..self.responses.len(),
        });
    }

    /// Cuts the labels of a response into `spans`, which cover all of them in order.
    pub fn cut(&mut self, response: usize, spans: Vec<SpanOf>) {
        let response = &mut self.responses[response];
        debug_assert_eq!(spans.iter().map(|span| span.labels).sum::<usize>(), response.labels.len());
        response.spans = spans;
    }

    /// How many spans all responses have together.
    pub fn span_count(&self) -> usize {
        self.responses.iter().map(|response| response.spans.len()).sum()
    }

    /// Where the spans of each response stand among those of all.
    pub fn span_ranges(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let of = |response: &PackedResponse| {
            let range = start..start + response.spans.len();
            start = range.end;
            range
        };
        self.responses.iter().map(of).collect()
    }

    /// Where the spans of a prompt's responses stand among those of all.
    pub fn prompt_spans(&self, prompt: usize) -> Range<usize> {
        let count = |responses: Range<usize>| self.responses[responses].iter().map(|r| r.spans.len()).sum::<usize>();
        let responses = self.prompts[prompt].responses.clone();
        let start = count(0..responses.start);
        start..start + count(responses)
    }

    fn push_segment(
        &mut self,
        tokens: &Tokens,
        len: usize,
        first_position: usize,
        prefix: Option<(usize, usize)>,
        images: &impl Fn(usize) -> usize,
    ) {
        let start = self.ids.len();
        self.ids.extend(tokens.ids[..len].iter().map(|&id| i64::from(id)));
        self.positions.extend((first_position..first_position + len).map(|p| p as i64));
        self.segments.push(Segment { start, len, prefix });
        self.images.extend(tokens.images.iter().map(|slot| PackedImage {
            start: start + slot.start,
            len: slot.len,
            image: images(slot.image),
        }));
    }

    /// Flat indices of the tokens that predict a label, ascending, each once: only their hidden states are needed.
    pub fn predictors(&self) -> Vec<i64> {
        let mut all: Vec<i64> = self.responses.iter().flat_map(|response| response.from.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The batch of some of its prompts, in the order of `which`; images keep their numbers.
    pub fn subset(&self, which: &[usize]) -> PackedBatch {
        let mut subset = PackedBatch::default();
        for prompt in which.iter().map(|&i| &self.prompts[i]) {
            let (old, new) = (prompt.tokens.start, subset.ids.len());
            let (first_segment, first_response) = (subset.segments.len(), subset.responses.len());
            subset.ids.extend(&self.ids[prompt.tokens.clone()]);
            subset.positions.extend(&self.positions[prompt.tokens.clone()]);
            let segments = self.segments[prompt.segments.clone()].iter();
            subset.segments.extend(segments.map(|segment| Segment {
                start: segment.start - old + new,
                prefix: segment.prefix.map(|(start, len)| (start - old + new, len)),
                ..*segment
            }));
            let responses = self.responses[prompt.responses.clone()].iter();
            subset.responses.extend(responses.map(|response| PackedResponse {
                from: response.from.iter().map(|from| from - old as i64 + new as i64).collect(),
                labels: response.labels.clone(),
                spans: response.spans.clone(),
            }));
            let inside = self.images.iter().filter(|image| prompt.tokens.contains(&image.start));
            subset.images.extend(inside.map(|image| PackedImage { start: image.start - old + new, ..*image }));
            subset.prompts.push(PackedPrompt {
                tokens: new..subset.ids.len(),
                segments: first_segment..subset.segments.len(),
                responses: first_response..subset.responses.len(),
            });
        }
        subset
    }

    /// How many labels all responses predict together.
    pub fn label_count(&self) -> usize {
        self.responses.iter().map(|response| response.labels.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(ids: Vec<u32>, counted: bool) -> Tokens {
        Tokens { counted: vec![counted; ids.len()], ids, ..Tokens::default() }
    }

    #[test]
    fn two_responses_hang_on_one_prompt() {
        let mut batch = PackedBatch::default();
        let mut prompt = tokens(vec![1, 9, 9, 2], false);
        prompt.images.push(super::super::ImageSlot { start: 1, len: 2, image: 0 });
        batch.push(&prompt, &[&tokens(vec![5, 6, 7], true), &tokens(vec![8], true)], |image| image + 3);
        assert_eq!(batch.ids, [1, 9, 9, 2, 5, 6]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 4, 5]);
        assert_eq!(
            batch.segments,
            [Segment { start: 0, len: 4, prefix: None }, Segment { start: 4, len: 2, prefix: Some((0, 4)) }]
        );
        let response = |from: Vec<i64>, labels: Vec<i64>| {
            let spans = vec![SpanOf { labels: labels.len(), kind: SpanKind::Whole }];
            PackedResponse { from, labels, spans }
        };
        assert_eq!(batch.responses[0], response(vec![3, 4, 5], vec![5, 6, 7]));
        assert_eq!(batch.responses[1], response(vec![3], vec![8]));
        assert_eq!(batch.span_ranges(), [0..1, 1..2]);
        let turns = [(1, SpanKind::Turn(0)), (2, SpanKind::Turn(1))].map(|(labels, kind)| SpanOf { labels, kind });
        batch.cut(0, turns.to_vec());
        assert_eq!((batch.span_ranges(), batch.span_count()), (vec![0..2, 2..3], 3));
        assert_eq!(batch.images, [PackedImage { start: 1, len: 2, image: 3 }]);
    }

    proptest! {
        #[test]
        fn segments_cover_the_batch_and_labels_are_predicted_by_the_token_before(
            groups in prop::collection::vec((1usize..9, prop::collection::vec(1usize..7, 0..4)), 0..5)
        ) {
            let mut batch = PackedBatch::default();
            let mut next = 0u32;
            let mut fresh = |n: usize| (0..n).map(|_| { next += 1; next }).collect::<Vec<_>>();
            for (prompt, responses) in &groups {
                let prompt = tokens(fresh(*prompt), false);
                let responses: Vec<_> = responses.iter().map(|&n| tokens(fresh(n), true)).collect();
                batch.push(&prompt, &responses.iter().collect::<Vec<_>>(), |_| 0);
                for (response, packed) in responses.iter().zip(&batch.responses[batch.responses.len() - responses.len()..]) {
                    let before = std::iter::once(prompt.ids[prompt.ids.len() - 1]).chain(response.ids.iter().copied());
                    for ((&from, &label), (before, &id)) in packed.from.iter().zip(&packed.labels).zip(before.zip(&response.ids)) {
                        prop_assert_eq!(batch.ids[from as usize], i64::from(before));
                        prop_assert_eq!(label, i64::from(id));
                    }
                }
            }
            let mut end = 0;
            for segment in &batch.segments {
                prop_assert_eq!(segment.start, end);
                prop_assert!(segment.len > 0);
                end += segment.len;
                let first = segment.prefix.map_or(0, |(_, len)| len as i64);
                for i in 0..segment.len {
                    prop_assert_eq!(batch.positions[segment.start + i], first + i as i64);
                }
            }
            prop_assert_eq!(end, batch.ids.len());
        }

        #[test]
        fn a_subset_is_what_its_prompts_would_have_been_packed_as(
            groups in prop::collection::vec((1usize..9, prop::collection::vec(1usize..7, 0..4)), 1..5), skip in 0usize..5
        ) {
            let pack = |which: &[usize]| {
                let mut batch = PackedBatch::default();
                for &i in which {
                    let (prompt, responses) = &groups[i];
                    let mut prompt = tokens((0..*prompt as u32).map(|id| id + 100 * i as u32).collect(), false);
                    prompt.images.push(super::super::ImageSlot { start: 0, len: 1, image: 0 });
                    let responses: Vec<_> =
                        responses.iter().map(|&n| tokens((0..n as u32).map(|id| id + 50).collect(), true)).collect();
                    batch.push(&prompt, &responses.iter().collect::<Vec<_>>(), |_| i);
                }
                batch
            };
            let all: Vec<usize> = (0..groups.len()).collect();
            let some: Vec<usize> = all.iter().copied().filter(|&i| i != skip).collect();
            prop_assert_eq!(pack(&all).subset(&some), pack(&some));
        }
    }
}
