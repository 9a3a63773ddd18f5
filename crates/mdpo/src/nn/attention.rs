//! Attention over the segments of a packed batch: a response sees its prompt and itself, a prompt sees itself.
//!
//! Nothing is padded and nothing else is masked: each segment is one call of libtorch's fused kernel on exactly its own keys.

use super::precision::{self, Mask};
use crate::text::pack::Segment;
use tch::{Device, Kind, Tensor};

/// Some queries of a segment: a run of its tokens, which see the segment's prefix and its tokens up to themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The segment.
    pub segment: Segment,
    /// First query, counted from the segment's start.
    pub first: usize,
    /// How many queries, at least one.
    pub len: usize,
}

impl Span {
    /// All tokens of a segment.
    pub fn whole(segment: Segment) -> Self {
        Span { segment, first: 0, len: segment.len }
    }

    /// Flat indices of its queries.
    pub fn rows(&self) -> std::ops::Range<usize> {
        let start = self.segment.start + self.first;
        start..start + self.len
    }
}

/// Which queries see which keys, made once for all layers of a batch.
#[derive(Debug)]
pub struct Layout {
    spans: Vec<Span>,
    /// Per span what libtorch's own causal flag cannot say.
    masks: Vec<Option<Tensor>>,
}

impl Layout {
    /// A layout on `device`.
    pub fn new(spans: Vec<Span>, device: Device) -> Self {
        let mask = |span: &Span| {
            let keys = span.segment.prefix.map_or(0, |(_, len)| len) + span.first + span.len;
            (1 < span.len && span.len < keys).then(|| bottom_right(span.len, keys, (Kind::Float, device)))
        };
        Layout { masks: spans.iter().map(mask).collect(), spans }
    }

    /// Its spans in order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
}

/// Causal attention of every span.
///
/// Queries are `[queries, heads, head_dim]`, those of the spans one after the other; keys and values `[tokens, kv_heads, head_dim]`;
/// the result is like the queries. Grouped heads share keys as in transformers (`enable_gqa`); scores are scaled by 1/√head_dim.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, layout: &Layout) -> Tensor {
    let heads_first = |x: &Tensor, start: usize, len: usize| x.narrow(0, start as i64, len as i64).transpose(0, 1);
    let mut done = 0;
    let spans = layout.spans.iter().zip(&layout.masks);
    let outputs: Vec<Tensor> = spans
        .map(|(span, mask)| {
            let queries = heads_first(q, done, span.len);
            done += span.len;
            let own = |x: &Tensor| heads_first(x, span.segment.start, span.first + span.len);
            let seen = |x: &Tensor| match span.segment.prefix {
                None => own(x),
                Some((start, len)) => Tensor::cat(&[heads_first(x, start, len), own(x)], 1),
            };
            let mask = match mask {
                Some(mask) => Mask::Additive(mask),
                None if span.len == 1 => Mask::None,
                None => Mask::Causal,
            };
            attention(&queries, &seen(k), &seen(v), mask).transpose(0, 1)
        })
        .collect();
    Tensor::cat(&outputs, 0)
}

/// Attention of new tokens over all keys so far, for generation: queries `[new, heads, head_dim]`, keys and values
/// `[old + new, kv_heads, head_dim]`.
pub fn attend_cached(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let (new, all) = (q.size()[0] as usize, k.size()[0] as usize);
    let mask = (1 < new && new < all).then(|| bottom_right(new, all, (q.kind(), q.device())));
    let mask = match &mask {
        Some(mask) => Mask::Additive(mask),
        None if new == all => Mask::Causal,
        // One new token sees everything.
        None => Mask::None,
    };
    attention(&q.transpose(0, 1), &k.transpose(0, 1), &v.transpose(0, 1), mask).transpose(0, 1)
}

/// One sequence, `[heads, tokens, head_dim]`.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Tensor {
    // The fused kernels take a batch dimension.
    precision::attention(&q.unsqueeze(0), &k.unsqueeze(0), &v.unsqueeze(0), mask).squeeze_dim(0)
}

/// Additive mask `[queries, keys]`: query i sees all keys but the last `queries - 1 - i`. libtorch's own causal flag is aligned
/// top-left on CPU, which is another mask when there are more keys than queries.
fn bottom_right(queries: usize, keys: usize, options: (Kind, Device)) -> Tensor {
    let size = [queries as i64, keys as i64];
    let hidden = Tensor::ones(size, (Kind::Bool, options.1)).triu((keys - queries) as i64 + 1);
    Tensor::zeros(size, options).masked_fill(&hidden, f64::NEG_INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Softmax attention written out, with grouped heads repeated: the definition.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let groups = q.size()[1] / k.size()[1];
        let repeat = |x: &Tensor| x.repeat_interleave_self_int(groups, 1, None).transpose(0, 1);
        let (q, k, v) = (q.transpose(0, 1), repeat(k), repeat(v));
        let scores = q.matmul(&k.transpose(1, 2)) / (q.size()[2] as f64).sqrt();
        let [rows, columns] = [q.size()[1] as usize, k.size()[1] as usize];
        (scores + bottom_right(rows, columns, (Kind::Double, Device::Cpu)))
            .softmax(-1, Kind::Double)
            .matmul(&v)
            .transpose(0, 1)
    }

    #[test]
    fn a_shared_prompt_gives_the_values_and_gradients_of_separate_sequences() {
        tch::manual_seed(3);
        let options = (Kind::Double, Device::Cpu);
        let (prompt, first, second) = (7, 4, 3);
        let leaf = |heads| Tensor::randn([prompt + first + second, heads, 8], options).set_requires_grad(true);
        let (q, k, v) = (leaf(4), leaf(2), leaf(2));
        let segment = |start, len, prefix| Segment { start: start as usize, len: len as usize, prefix };
        let prefix = Some((0, prompt as usize));
        let segments =
            [segment(0, prompt, None), segment(prompt, first, prefix), segment(prompt + first, second, prefix)];
        let weights = Tensor::randn([prompt + first + second, 4, 8], options);

        let layout = Layout::new(segments.map(Span::whole).to_vec(), Device::Cpu);
        let ours = attend(&q, &k, &v, &layout);
        let ours_grad = Tensor::run_backward(&[(&ours * &weights).sum(Kind::Double)], &[&q, &k, &v], false, false);

        let rows =
            |x: &Tensor, start: i64, len: i64| Tensor::cat(&[x.narrow(0, 0, prompt), x.narrow(0, start, len)], 0);
        let separate = |start, len| plain(&rows(&q, start, len), &rows(&k, start, len), &rows(&v, start, len));
        let (one, two) = (separate(prompt, first), separate(prompt + first, second));
        let theirs =
            Tensor::cat(&[one.narrow(0, 0, prompt), one.narrow(0, prompt, first), two.narrow(0, prompt, second)], 0);
        let theirs_grad = Tensor::run_backward(&[(&theirs * &weights).sum(Kind::Double)], &[&q, &k, &v], false, false);

        let difference = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(difference(&ours, &theirs) < 1e-12);
        for (a, b) in ours_grad.iter().zip(&theirs_grad) {
            assert!(difference(a, b) < 1e-12);
        }

        // Some of the queries see what they would see among all.
        let spans = [(0, 6, 1), (1, 1, 2), (2, 0, 3)].map(|(i, first, len)| Span { segment: segments[i], first, len });
        let rows: Vec<i64> = spans.iter().flat_map(|span| span.rows().map(|row| row as i64)).collect();
        let rows = Tensor::from_slice(&rows);
        let some = attend(&q.index_select(0, &rows), &k, &v, &Layout::new(spans.to_vec(), Device::Cpu));
        assert!(difference(&some, &ours.index_select(0, &rows)) < 1e-12);
    }
}
