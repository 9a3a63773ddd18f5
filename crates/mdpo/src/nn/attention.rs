//! Attention over the segments of a packed batch: a response sees its prompt and itself, a prompt sees itself.
//!
//! Nothing is padded and nothing else is masked. On a CPU that multiplies in f32 all segments are one call of a kernel of ours
//! (`torch_ext::span_attention`), else each meets exactly its own keys in libtorch's fused kernel; on CUDA all of them are one call of its
//! variable-length kernels, whose causal mask is aligned at the ends of queries and keys.

use super::precision::{self, Mask};
use crate::text::pack::Segment;
use std::ops::Range;
use tch::{Device, Kind, Tensor};
use torch_ext::{Gather, QuerySpan, QuerySpans, Shared};

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

    /// Whether `next` holds the first tokens of a response that stands right behind this prompt, which this span reaches the end of:
    /// causal attention over both together is what each sees.
    fn goes_on_in(&self, next: &Span) -> bool {
        let Segment { start, len, prefix } = self.segment;
        let (ends, begins) = (self.first + self.len == len, next.first == 0 && next.segment.start == start + len);
        ends && begins && prefix.is_none() && next.segment.prefix == Some((start, len))
    }
}

/// Which queries see which keys, made once for all layers of a batch.
#[derive(Debug)]
pub struct Layout {
    spans: Vec<Span>,
    way: Way,
}

/// How it is computed.
#[derive(Debug)]
enum Way {
    /// On a CPU: all of them by our kernel, or one span after the other.
    Apart(QuerySpans),
    /// One call for all.
    Together(Runs),
}

/// The keys of each span as `torch_ext` takes them.
fn query_spans(spans: &[Span]) -> QuerySpans {
    let mut done = 0;
    let spans = spans.iter().map(|span| {
        let query = done;
        done += span.len;
        let (prefix, prefixed) = span.segment.prefix.unwrap_or_default();
        QuerySpan { query, queries: span.len, prefix, prefixed, own: span.segment.start, owned: span.first + span.len }
    });
    QuerySpans::new(&spans.collect::<Vec<_>>()).expect("spans follow each other, and each sees its own tokens")
}

impl Layout {
    /// A layout on `device`.
    pub fn new(spans: Vec<Span>, device: Device) -> Self {
        let way = match device {
            Device::Cuda(_) => Way::Together(Runs::new(&spans, device)),
            _ => Way::Apart(query_spans(&spans)),
        };
        Layout { spans, way }
    }

    /// Its spans in order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
}

/// Runs of queries, one behind the other, and the keys of each: the last query of a run sees all of its keys, each query before it one
/// less.
#[derive(Debug)]
struct Runs {
    keys: Keys,
    /// First query of each run, and their number; i32.
    query_starts: Shared,
    /// First key of each run, and their number; i32.
    key_starts: Shared,
    /// The most queries and the most keys of a run.
    longest: (usize, usize),
}

/// Rows of keys and values, those of one run after those of the other.
#[derive(Debug)]
enum Keys {
    /// As they stand.
    AsTheyStand(Range<usize>),
    /// A prompt's again for each of its responses but the first.
    Gathered(Gather),
}

impl Runs {
    fn new(spans: &[Span], device: Device) -> Self {
        let (mut queries, mut key_starts, mut keys) = (vec![0], vec![0], Vec::<usize>::new());
        let mut done = 0;
        for (i, span) in spans.iter().enumerate() {
            let Segment { start, prefix, .. } = span.segment;
            let before = i.checked_sub(1).map(|before| &spans[before]);
            match before.is_some_and(|before| before.goes_on_in(span)) {
                // A prompt and its first response are one run, whose keys stand side by side.
                true => drop((queries.pop(), key_starts.pop())),
                false => keys.extend(prefix.map_or(0..0, |(start, len)| start..start + len)),
            }
            keys.extend(start..start + span.first + span.len);
            done += span.len;
            queries.push(done);
            key_starts.push(keys.len());
        }
        let most = |starts: &[usize]| starts.windows(2).map(|run| run[1] - run[0]).max().unwrap_or(0);
        let longest = (most(&queries), most(&key_starts));
        let first = keys.first().copied().unwrap_or(0);
        let as_they_stand = keys.iter().copied().eq(first..first + keys.len());
        let starts = |starts: &[usize]| {
            let starts: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
            Tensor::from_slice(&starts).to_device(device).into()
        };
        Runs {
            keys: match as_they_stand {
                true => Keys::AsTheyStand(first..first + keys.len()),
                false => Keys::Gathered(Gather::new(&keys, device)),
            },
            query_starts: starts(&queries),
            key_starts: starts(&key_starts),
            longest,
        }
    }

    /// The rows of all runs from keys or values `[tokens, kv_heads, head_dim]`.
    fn rows(&self, x: &Tensor) -> Tensor {
        match &self.keys {
            Keys::AsTheyStand(rows) => x.narrow(0, rows.start as i64, rows.len() as i64),
            Keys::Gathered(rows) => precision::done(rows.of(x)),
        }
    }
}

/// Causal attention of every span.
///
/// Queries are `[queries, heads, head_dim]`, those of the spans one after the other; keys and values `[tokens, kv_heads, head_dim]`;
/// the result is like the queries. Grouped heads share keys as in transformers (`enable_gqa`); scores are scaled by 1/√head_dim.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, layout: &Layout) -> Tensor {
    match &layout.way {
        Way::Apart(spans) => {
            precision::span_attention(q, k, v, spans).unwrap_or_else(|| attend_apart(q, k, v, &layout.spans))
        }
        Way::Together(runs) => {
            let (k, v) = (runs.rows(k), runs.rows(v));
            let (max_q, max_k) = runs.longest;
            let found = torch_ext::varlen_attention(q, &k, &v, &runs.query_starts, &runs.key_starts, max_q, max_k);
            // As every operation of tch; the step turns it into an error.
            found.unwrap_or_else(|error| panic!("{error}"))
        }
    }
}

/// One span after the other in libtorch's kernel.
fn attend_apart(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Span]) -> Tensor {
    let heads_first = |x: &Tensor, start: usize, len: usize| x.narrow(0, start as i64, len as i64).transpose(0, 1);
    let mut done = 0;
    let of = |span: &Span| {
        let queries = heads_first(q, done, span.len);
        done += span.len;
        let own = |x: &Tensor| heads_first(x, span.segment.start, span.first + span.len);
        let seen = |x: &Tensor| match span.segment.prefix {
            None => own(x),
            Some((start, len)) => Tensor::cat(&[heads_first(x, start, len), own(x)], 1),
        };
        let (keys, values) = (seen(k), seen(v));
        attention(&queries, &keys, &values, span.len, keys.size()[1] as usize).transpose(0, 1)
    };
    Tensor::cat(&spans.iter().map(of).collect::<Vec<_>>(), 0)
}

/// One sequence, `[heads, queries, head_dim]` over `[kv_heads, keys, head_dim]`, causal from the bottom right.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, queries: usize, keys: usize) -> Tensor {
    let mask = (1 < queries && queries < keys).then(|| bottom_right(queries, keys, (q.kind(), q.device())));
    let mask = match &mask {
        Some(mask) => Mask::Additive(mask),
        None if queries == keys => Mask::Causal,
        // One new token sees everything.
        None => Mask::None,
    };
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

    /// f64 takes libtorch's kernel, f32 and bf16 ours (bf16 where a CPU has no products of it).
    #[test]
    fn a_shared_prompt_gives_the_values_and_gradients_of_separate_sequences() {
        for (kind, bound) in [(Kind::Double, 1e-12), (Kind::Float, 1e-5), (Kind::BFloat16, 0.2)] {
            check_shared_prompt(kind, bound);
        }
    }

    fn check_shared_prompt(kind: Kind, bound: f64) {
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
        let attend = |q: &Tensor, layout: &Layout| {
            attend(&q.to_kind(kind), &k.to_kind(kind), &v.to_kind(kind), layout).to_kind(Kind::Double)
        };
        let ours = attend(&q, &layout);
        let ours_grad = Tensor::run_backward(&[(&ours * &weights).sum(Kind::Double)], &[&q, &k, &v], false, false);

        let rows =
            |x: &Tensor, start: i64, len: i64| Tensor::cat(&[x.narrow(0, 0, prompt), x.narrow(0, start, len)], 0);
        let separate = |start, len| plain(&rows(&q, start, len), &rows(&k, start, len), &rows(&v, start, len));
        let (one, two) = (separate(prompt, first), separate(prompt + first, second));
        let theirs =
            Tensor::cat(&[one.narrow(0, 0, prompt), one.narrow(0, prompt, first), two.narrow(0, prompt, second)], 0);
        let theirs_grad = Tensor::run_backward(&[(&theirs * &weights).sum(Kind::Double)], &[&q, &k, &v], false, false);

        let difference = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(difference(&ours, &theirs) < bound);
        for (a, b) in ours_grad.iter().zip(&theirs_grad) {
            assert!(difference(a, b) < bound, "{kind:?}: {}", difference(a, b));
        }

        // Some of the queries see what they would see among all.
        let spans = [(0, 6, 1), (1, 1, 2), (2, 0, 3)].map(|(i, first, len)| Span { segment: segments[i], first, len });
        let rows: Vec<i64> = spans.iter().flat_map(|span| span.rows().map(|row| row as i64)).collect();
        let rows = Tensor::from_slice(&rows);
        let some = attend(&q.index_select(0, &rows), &Layout::new(spans.to_vec(), Device::Cpu));
        assert!(difference(&some, &ours.index_select(0, &rows)) < bound);
    }

    /// What the kernels of CUDA compute from `runs`, written out.
    fn emulated(q: &Tensor, k: &Tensor, v: &Tensor, runs: &Runs) -> Tensor {
        let starts = |starts: &Tensor| -> Vec<i64> {
            assert_eq!(starts.kind(), Kind::Int);
            Vec::<i32>::try_from(starts).unwrap().into_iter().map(i64::from).collect()
        };
        let (queries, keys) = (starts(&runs.query_starts), starts(&runs.key_starts));
        let (k, v) = (runs.rows(k), runs.rows(v));
        assert_eq!((queries.len(), queries[queries.len() - 1]), (keys.len(), q.size()[0]));
        assert_eq!(keys[keys.len() - 1], k.size()[0]);
        let mut longest = (0, 0);
        let parts = queries.windows(2).zip(keys.windows(2)).map(|(queries, keys)| {
            let (of_q, of_k) = (queries[1] - queries[0], keys[1] - keys[0]);
            assert!(0 < of_q && of_q <= of_k);
            longest = (longest.0.max(of_q as usize), longest.1.max(of_k as usize));
            let of_run = |x: &Tensor| x.narrow(0, keys[0], of_k);
            plain(&q.narrow(0, queries[0], of_q), &of_run(&k), &of_run(&v))
        });
        let parts: Vec<Tensor> = parts.collect();
        assert_eq!(longest, runs.longest);
        Tensor::cat(&parts, 0)
    }

    #[test]
    fn runs_of_keys_are_what_each_span_sees() {
        tch::manual_seed(4);
        let options = (Kind::Double, Device::Cpu);
        let segment = |start, len, prefix| Segment { start, len, prefix };
        // Two prompts with two and one responses, a third with none: the shared prompt's keys are there twice, the others' once.
        let segments = [
            segment(0, 5, None),
            segment(5, 3, Some((0, 5))),
            segment(8, 4, Some((0, 5))),
            segment(12, 2, None),
            segment(14, 6, Some((12, 2))),
            segment(20, 3, None),
        ];
        let (q, k, v) = (
            Tensor::randn([23, 4, 8], options),
            Tensor::randn([23, 2, 8], options),
            Tensor::randn([23, 2, 8], options),
        );
        let span = |(i, first, len): (usize, usize, usize)| Span { segment: segments[i], first, len };
        let all = segments.map(Span::whole).to_vec();
        // Spans as the last layer has them: ends of prompts, parts of responses, a response whose prompt has no query.
        let ends = [(0, 4, 1), (1, 0, 3), (2, 1, 2), (4, 0, 6)].map(span).to_vec();
        let broken = [(0, 2, 2), (1, 0, 2), (2, 3, 1), (3, 1, 1), (4, 2, 3), (5, 0, 1)].map(span).to_vec();
        let alone = [(3, 1, 1), (4, 0, 6)].map(span).to_vec();
        for (spans, gathered, runs) in [(all, 28, 4), (ends, 24, 3), (broken, 30, 6), (alone, 8, 1)] {
            let rows: Vec<i64> = spans.iter().flat_map(|span| span.rows().map(|row| row as i64)).collect();
            let q = q.index_select(0, &Tensor::from_slice(&rows));
            let found = Runs::new(&spans, Device::Cpu);
            assert_eq!((found.rows(&k).size()[0], found.query_starts.size()[0] - 1), (gathered, runs), "{spans:?}");
            let expected = attend(&q, &k, &v, &Layout::new(spans.clone(), Device::Cpu));
            let difference = (emulated(&q, &k, &v, &found) - expected).abs().max().double_value(&[]);
            assert!(difference < 1e-12, "{difference} {spans:?}");
        }
        let one = Runs::new(&[Span::whole(segments[3]), Span::whole(segments[4])], Device::Cpu);
        assert!(matches!(one.keys, Keys::AsTheyStand(Range { start: 12, end: 20 })), "{one:?}");
    }
}
