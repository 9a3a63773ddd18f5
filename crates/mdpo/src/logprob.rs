//! 6: hidden states and labels to log-probs.
//!
//! Only positions that predict a response token meet the head, a chunk of them at a time; logits and softmax are f32, whole logits never
//! exist. A head in bf16 or f16 is widened on a CPU; on CUDA it is multiplied as it is, with f32 results, in both directions. No chunk spans
//! two prompts, so that a log-prob does not depend on what else is in the batch. Beside the log-prob of a label, a chunk yields its
//! gradient with respect to the hidden state, (one-hot − softmax) W, which the chain rule later scales by one number per response: a
//! frozen head is passed once, forward and backward together.

use crate::nn::precision;
use crate::text::pack::{PackedBatch, PackedPrompt};
use tch::{Device, Kind, Tensor};
use torch_ext::SoftmaxStatistics;

/// Positions that meet the head together.
const CHUNK: i64 = 512;

/// Log-probs of every label of a batch.
#[derive(Debug)]
pub struct LogProbs {
    /// Of each label, f32 `[labels]`, responses one after the other.
    pub per_token: Tensor,
    /// How many labels each response has.
    pub lengths: Vec<usize>,
    /// How many labels each span has, those of one response after those of the other.
    spans: Vec<i64>,
    /// What the head says at each label beside its log-prob, where that is wanted.
    pub statistics: Option<Statistics>,
    /// d log-prob / d hidden state, f32 `[labels, width]`, where asked for.
    gradients: Option<Tensor>,
    /// Row of the hidden state behind each label.
    from: Tensor,
    /// Labels of each chunk.
    chunks: Vec<i64>,
}

/// Per label, f32 `[labels]`; the names are those of TRL's logs.
#[derive(Debug)]
pub struct Statistics {
    /// Entropy of the prediction in nats.
    pub entropy: Tensor,
    /// 1 where the label is the likeliest token, else 0 (`mean_token_accuracy`).
    pub top1: Tensor,
    /// Mean logit over the vocabulary (`logits/…`).
    pub mean_logit: Tensor,
}

/// Whether gradients will be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradients {
    /// Later, by [`LogProbs::pull_back`]; statistics are there too.
    Wanted,
    /// Never, but statistics are.
    OnlyStatistics,
    /// Never, and statistics are not wanted either.
    Unwanted,
}

/// The log-probs of the batch's labels (at least one) from the final hidden states of its predictors, `[predictors, width]`, and the
/// head `[vocab, width]`.
pub fn log_probs(hidden: &Tensor, head: &Tensor, batch: &PackedBatch, gradients: Gradients) -> LogProbs {
    let lengths = batch.responses.iter().map(|response| response.labels.len()).collect();
    let spans = batch.responses.iter().flat_map(|response| &response.spans).map(|span| span.labels as i64).collect();
    let predictors = batch.predictors();
    let rank = |flat: &i64| predictors.binary_search(flat).expect("every label has its predictor") as i64;
    let from: Vec<i64> = batch.responses.iter().flat_map(|response| response.from.iter().map(rank)).collect();
    let labels: Vec<i64> = batch.responses.iter().flat_map(|response| response.labels.iter().copied()).collect();
    let on_device = |values: &[i64]| Tensor::from_slice(values).to_device(hidden.device());
    let (from, labels, sizes) = (on_device(&from), on_device(&labels), chunk_sizes(batch));
    tch::no_grad(|| {
        let factors = of_factors(hidden, head);
        let states = hidden.index_select(0, &from).to_kind(factors);
        let head = head.to_kind(factors);
        let states = states.split_with_sizes(sizes.as_slice(), 0);
        let chunks = states.into_iter().zip(labels.split_with_sizes(sizes.as_slice(), 0));
        let chunks = chunks.map(|(states, labels)| Chunk::new(&states, &labels, &head, gradients));
        let chunks: Vec<Chunk> = chunks.collect();
        let join = |of: fn(&Chunk) -> &Tensor| Tensor::cat(&chunks.iter().map(of).collect::<Vec<_>>(), 0);
        LogProbs {
            per_token: join(|chunk| &chunk.log_probs),
            lengths,
            spans,
            statistics: (gradients != Gradients::Unwanted).then(|| Statistics {
                entropy: join(|chunk| &chunk.entropy),
                top1: join(|chunk| &chunk.top1),
                mean_logit: join(|chunk| &chunk.mean_logit),
            }),
            gradients: (gradients == Gradients::Wanted).then(|| join(|chunk| &chunk.gradients)),
            from,
            chunks: sizes.clone(),
        }
    })
}

/// How many labels meet the head together: those of one prompt, at most [`CHUNK`].
fn chunk_sizes(batch: &PackedBatch) -> Vec<i64> {
    let of = |prompt: &PackedPrompt| -> i64 {
        batch.responses[prompt.responses.clone()].iter().map(|response| response.labels.len() as i64).sum()
    };
    let cut = |labels: i64| (0..labels).step_by(CHUNK as usize).map(move |start| (labels - start).min(CHUNK));
    batch.prompts.iter().map(of).flat_map(cut).collect()
}

/// What one chunk of labels gives; all but the log-probs are empty where they are not wanted.
struct Chunk {
    log_probs: Tensor,
    entropy: Tensor,
    top1: Tensor,
    mean_logit: Tensor,
    gradients: Tensor,
}

impl Chunk {
    fn new(states: &Tensor, labels: &Tensor, head: &Tensor, gradients: Gradients) -> Self {
        let mut logits = product(states, &head.tr());
        let empty = || Tensor::zeros([0], (Kind::Float, states.device()));
        if gradients == Gradients::Unwanted {
            let log_probs = label_log_probs(&logits, labels);
            return Chunk { log_probs, entropy: empty(), top1: empty(), mean_logit: empty(), gradients: empty() };
        }
        let found = softmax_with_statistics(&mut logits, labels);
        let gradients = match gradients {
            Gradients::Wanted => head.index_select(0, labels) - product(&logits.to_kind(head.kind()), head),
            Gradients::OnlyStatistics | Gradients::Unwanted => empty(),
        };
        let SoftmaxStatistics { log_probs, entropy, top1, mean_logit } = found;
        Chunk { log_probs, entropy, top1, mean_logit, gradients }
    }
}

/// The log-prob of each label under its row of f32 logits.
fn label_log_probs(logits: &Tensor, labels: &Tensor) -> Tensor {
    if precision::is_fused(logits) {
        return precision::done(torch_ext::label_log_probs(logits, labels));
    }
    logits.log_softmax(-1, Kind::Float).gather(1, &labels.unsqueeze(1), false).squeeze_dim(1)
}

/// What rows of f32 logits say of their labels; the logits become their softmax.
fn softmax_with_statistics(logits: &mut Tensor, labels: &Tensor) -> SoftmaxStatistics {
    if precision::is_fused(logits) {
        return precision::done(torch_ext::softmax_with_statistics(logits, labels));
    }
    let width = [-1i64];
    let log_softmax = logits.log_softmax(-1, Kind::Float);
    let softmax = log_softmax.exp();
    let found = SoftmaxStatistics {
        log_probs: log_softmax.gather(1, &labels.unsqueeze(1), false).squeeze_dim(1),
        entropy: -(&softmax * &log_softmax).sum_dim_intlist(width.as_slice(), false, Kind::Float),
        top1: logits.argmax(-1, false).eq_tensor(labels).to_kind(Kind::Float),
        mean_logit: logits.mean_dim(width.as_slice(), false, Kind::Float),
    };
    *logits = softmax;
    found
}

/// The precision in which states and head are multiplied.
fn of_factors(states: &Tensor, head: &Tensor) -> Kind {
    match (states.device(), states.kind() == head.kind()) {
        (Device::Cuda(_), true) => head.kind(),
        _ => Kind::Float,
    }
}

/// `a b` in f32, accumulated in f32.
fn product(a: &Tensor, b: &Tensor) -> Tensor {
    match a.kind() {
        Kind::BFloat16 | Kind::Half => a.mm_dtype(b, Kind::Float),
        _ => a.matmul(b),
    }
}

impl LogProbs {
    /// The log-prob of each span in nats: the sum over its labels, accumulated in f64 on the CPU, `[spans]`.
    pub fn sums(&self) -> Tensor {
        let per_token = self.per_token.to_device(Device::Cpu).to_kind(Kind::Double);
        let spans = per_token.split_with_sizes(self.spans.as_slice(), 0);
        Tensor::stack(&spans.iter().map(|part| part.sum(Kind::Double)).collect::<Vec<_>>(), 0)
    }

    /// Gradient of the hidden states `[predictors, width]` in their dtype, from that of each span's sum, `[spans]`.
    pub fn pull_back(&self, gradient: &Tensor, hidden: &Tensor) -> Tensor {
        let rows = self.gradients.as_ref().expect("gradients were wanted when the log-probs were computed");
        let scaled = rows * self.per_label(gradient).unsqueeze(1);
        let sums = Tensor::zeros(hidden.size(), (Kind::Float, hidden.device()));
        // The last prompt token predicts the first label of every response, so rows may meet.
        sums.index_add(0, &self.from, &scaled).to_kind(hidden.kind())
    }

    /// Pushes the gradient of each span's sum into a trained head, chunk by chunk.
    pub fn push_into_head(&self, gradient: &Tensor, hidden: &Tensor, head: &Tensor, batch: &PackedBatch) {
        let labels: Vec<i64> = batch.responses.iter().flat_map(|response| response.labels.iter().copied()).collect();
        let labels = Tensor::from_slice(&labels).to_device(hidden.device());
        let states = hidden.detach().index_select(0, &self.from).to_kind(Kind::Float);
        let weights = self.per_label(gradient);
        let split = |tensor: &Tensor| tensor.split_with_sizes(self.chunks.as_slice(), 0);
        for ((states, labels), weights) in split(&states).into_iter().zip(split(&labels)).zip(split(&weights)) {
            let log_softmax = states.matmul(&head.to_kind(Kind::Float).tr()).log_softmax(-1, Kind::Float);
            (log_softmax.gather(1, &labels.unsqueeze(1), false).squeeze_dim(1) * weights).sum(Kind::Float).backward();
        }
    }

    /// A span's number for each of its labels, f32 on the device of the states.
    fn per_label(&self, gradient: &Tensor) -> Tensor {
        let repeats = Tensor::from_slice(&self.spans);
        gradient.to_kind(Kind::Float).repeat_interleave_self_tensor(&repeats, 0, None).to_device(self.from.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::pack::{PackedResponse, SpanKind, SpanOf};

    #[test]
    fn chunks_give_the_plain_formula_and_its_gradients() {
        tch::manual_seed(5);
        let (tokens, width, vocab) = (700, 6, 11);
        let options = (Kind::Float, Device::Cpu);
        let hidden = Tensor::randn([tokens, width], options).set_requires_grad(true);
        let head = Tensor::randn([vocab, width], options).set_requires_grad(true);
        // Two responses whose first labels come from one state; together longer than a chunk. The first is summed in two spans.
        let response = |start: i64, len: i64, cut: &[usize]| PackedResponse {
            from: std::iter::once(20).chain(start..start + len).collect::<Vec<i64>>(),
            labels: (0..=len).map(|i| (i * 7 + start) % vocab).collect(),
            spans: cut.iter().map(|&labels| SpanOf { labels, kind: SpanKind::Whole }).collect(),
        };
        let responses = vec![response(21, 300, &[90, 211]), response(321, 350, &[351])];
        let weights = Tensor::from_slice(&[0.7f64, 0.4, -1.3]);

        let all = hidden.matmul(&head.tr()).log_softmax(-1, Kind::Float);
        let plain: Vec<Tensor> = responses
            .iter()
            .flat_map(|r| {
                let rows = all.index_select(0, &Tensor::from_slice(&r.from));
                let found = rows.gather(1, &Tensor::from_slice(&r.labels).unsqueeze(1), false);
                let spans: Vec<i64> = r.spans.iter().map(|span| span.labels as i64).collect();
                found.split_with_sizes(spans, 0).iter().map(|part| part.sum(Kind::Double)).collect::<Vec<_>>()
            })
            .collect();
        let plain = Tensor::stack(&plain, 0);
        let expected = Tensor::run_backward(&[(&plain * &weights).sum(Kind::Double)], &[&hidden, &head], false, false);

        let prompts = vec![PackedPrompt { tokens: 0..700, segments: 0..0, responses: 0..2 }];
        let batch = PackedBatch { responses, prompts, ..PackedBatch::default() };
        let predictors = Tensor::from_slice(&batch.predictors());
        let states = hidden.detach().index_select(0, &predictors);
        let ours = log_probs(&states, &head.detach(), &batch, Gradients::Wanted);
        let difference = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(difference(&ours.sums(), &plain.detach()) < 1e-3, "{}", difference(&ours.sums(), &plain));
        assert!(difference(&ours.pull_back(&weights, &states), &expected[0].index_select(0, &predictors)) < 1e-5);
        ours.push_into_head(&weights, &states, &head, &batch);
        assert!(difference(&head.grad(), &expected[1]) < 1e-3);
    }
}
