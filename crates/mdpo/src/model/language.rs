//! Llama-like language models: Llama, Vicuna, Mistral, Qwen2 (pre-norm decoder, rotary positions, gated MLP, grouped heads).

use super::cache::{Cache, Kept, Tables};
use super::config::LanguageConfig;
use super::gradients::Sink;
use super::load::Loader;
use crate::Result;
use crate::nn::{self, Layout, Linear, Param, Pass, RmsNorm, Role, Rope, Span};
use crate::text::pack::Segment;
use std::ops::Range;
use tch::{Device, Tensor};
use torch_ext::Shared;

/// A decoder without its head's softmax: token ids to final hidden states.
#[derive(Debug)]
pub struct Language {
    embedding: Param,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Option<Linear>,
    rope: Rope,
}

#[derive(Debug)]
struct Layer {
    index: usize,
    head_dim: i64,
    input_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Tokens that run through the layers together, and which of their final states are wanted.
#[derive(Debug)]
pub struct Piece {
    /// Where they stand in the batch.
    pub tokens: Range<usize>,
    positions: Shared,
    layout: Layout,
    last: LastLayer,
}

/// What the last layer computes: keys and values of every token, everything else only where a state is wanted.
#[derive(Debug)]
struct LastLayer {
    layout: Layout,
    /// Its tokens within the piece, ascending; nothing when it computes all of them.
    rows: Option<Shared>,
    /// The wanted states among its rows; nothing when all of them are.
    wanted: Option<Shared>,
}

impl Piece {
    /// The tokens `tokens` of a batch with their `positions`, whose `segments` see nothing outside; `wanted` are the flat indices of
    /// the wanted states, ascending. All three are those of the batch.
    pub fn new(
        tokens: Range<usize>,
        positions: &[i64],
        segments: &[Segment],
        wanted: impl Iterator<Item = i64>,
        device: Device,
    ) -> Self {
        let own = |segment: &Segment| Segment {
            start: segment.start - tokens.start,
            prefix: segment.prefix.map(|(start, len)| (start - tokens.start, len)),
            ..*segment
        };
        let segments: Vec<Segment> = segments.iter().map(own).collect();
        let wanted: Vec<i64> = wanted.map(|row| row - tokens.start as i64).collect();
        let last = LastLayer::new(&segments, &wanted, device);
        let positions = Tensor::from_slice(&positions[tokens.clone()]).to_device(device).into();
        let layout = Layout::new(segments.into_iter().map(Span::whole).collect(), device);
        Piece { tokens, positions, layout, last }
    }
}

impl LastLayer {
    fn new(segments: &[Segment], wanted: &[i64], device: Device) -> Self {
        let span = |segment: &Segment| {
            let inside = |&&row: &&i64| (segment.start..segment.start + segment.len).contains(&(row as usize));
            let first = *wanted.iter().find(inside)? as usize - segment.start;
            let last = *wanted.iter().rfind(inside)? as usize - segment.start;
            Some(Span { segment: *segment, first, len: last + 1 - first })
        };
        let spans: Vec<Span> = segments.iter().filter_map(span).collect();
        let rows: Vec<i64> = spans.iter().flat_map(|span| span.rows().map(|row| row as i64)).collect();
        let among: Vec<i64> = (0i64..).zip(&rows).filter(|(_, row)| wanted.contains(row)).map(|(i, _)| i).collect();
        let tokens: usize = segments.iter().map(|segment| segment.len).sum();
        let index = |values: &[i64]| Tensor::from_slice(values).to_device(device).into();
        LastLayer {
            layout: Layout::new(spans, device),
            rows: (rows.len() < tokens).then(|| index(&rows)),
            wanted: (among.len() < rows.len()).then(|| index(&among)),
        }
    }
}

/// What the queries of a pass may see.
enum Sight<'a> {
    /// Every token is a query.
    Packed(&'a Layout),
    /// As much as the last layer needs.
    Last(&'a LastLayer),
    /// Every token is a query, which sees what is kept.
    Kept(&'a Layout),
}

/// Where a layer keeps its keys and values.
struct Keeper<'a> {
    kept: &'a mut Kept,
    /// The row of each token.
    rows: &'a Tensor,
}

impl Keeper<'_> {
    fn keep(&mut self, key: &Tensor, value: &Tensor) {
        for (table, new) in [(&mut self.kept.keys, key), (&mut self.kept.values, value)] {
            let _ = table.index_copy_(0, self.rows, &new.to_kind(table.kind()));
        }
    }
}

/// What a forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: no gradient will be asked for.
    Nothing,
    /// The whole graph.
    Graph,
    /// The input of each layer; the rest is computed again.
    LayerInputs,
}

/// Whether something before the layers is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Embeddings {
    /// Nothing is: the first layer's input needs no gradient.
    Constant,
    /// They have a graph.
    Graph,
}

/// A finished forward pass.
#[derive(Debug)]
pub struct Run {
    /// The wanted final hidden states `[wanted, width]`, after the last norm, without a graph.
    pub hidden: Tensor,
    tape: Tape,
}

#[derive(Debug)]
enum Tape {
    Nothing,
    Graph { input: Tensor, output: Tensor },
    LayerInputs(Vec<Tensor>),
}

impl Language {
    /// Takes the weights below `prefix` (`model.` or `model.language_model.`).
    pub fn load(config: &LanguageConfig, prefix: &str, loader: &mut Loader) -> Result<Self> {
        let width = config.width as i64;
        let embedding = loader.param(&format!("{prefix}embed_tokens.weight"), &[config.vocab as i64, width])?;
        let layers = (0..config.layers)
            .map(|index| Layer::load(config, index, &format!("{prefix}layers.{index}."), loader))
            .collect::<Result<_>>()?;
        let norm = RmsNorm::new(loader.param(&format!("{prefix}norm.weight"), &[width])?, config.eps);
        let head = if config.tied {
            // Some writers store the tied head too: it must be the same table.
            loader.same("lm_head.weight", &embedding.get(Role::Reference), "tie_word_embeddings")?;
            None
        } else {
            Some(loader.head("lm_head", config.vocab as i64, width)?)
        };
        let rope = Rope::new(config.head_dim, config.rope_theta, config.rope_scaling, loader.device());
        Ok(Language { embedding, layers, norm, head, rope })
    }

    /// The head's weight `[vocab, width]` in the dtype of the activations.
    pub fn head(&self, pass: Pass) -> Tensor {
        self.head_param().get(pass.role)
    }

    /// Whether the head (or the table it is tied to) is trained.
    pub fn head_is_trained(&self) -> bool {
        self.head_param().leaf().is_some()
    }

    fn head_param(&self) -> &Param {
        self.head.as_ref().map_or(&self.embedding, Linear::param)
    }

    /// Embeds token ids `[tokens]` as `[tokens, width]`.
    pub fn embed(&self, ids: &Tensor, pass: Pass) -> Tensor {
        Tensor::embedding(&self.embedding.get(pass.role), ids, -1, false, false)
    }

    /// Runs the layers over the embeddings `[tokens, width]` of a piece.
    pub fn run(&self, x: Tensor, piece: &Piece, pass: Pass, keep: Keep) -> Run {
        let tables = self.rope.tables(&piece.positions, x.kind());
        let stages = 0..self.layers.len();
        match keep {
            Keep::Nothing => tch::no_grad(|| {
                let x = stages.fold(x, |x, stage| self.stage(stage, &x, &tables, piece, pass));
                Run { hidden: self.finish(&x, piece, pass), tape: Tape::Nothing }
            }),
            Keep::Graph => {
                // The graph ends at the input: what is behind it is shared by all pieces and passed once.
                let input = x.detach().set_requires_grad(x.requires_grad());
                let x = stages.fold(input.shallow_clone(), |x, stage| self.stage(stage, &x, &tables, piece, pass));
                let output = self.finish(&x, piece, pass);
                Run { hidden: output.detach(), tape: Tape::Graph { input, output } }
            }
            Keep::LayerInputs => tch::no_grad(|| {
                let mut inputs = vec![x.detach()];
                for stage in stages {
                    inputs.push(self.stage(stage, &inputs[inputs.len() - 1], &tables, piece, pass));
                }
                let hidden = self.finish(&inputs[inputs.len() - 1], piece, pass);
                Run { hidden, tape: Tape::LayerInputs(inputs) }
            }),
        }
    }

    fn stage(&self, stage: usize, x: &Tensor, tables: &(Tensor, Tensor), piece: &Piece, pass: Pass) -> Tensor {
        self.layers[stage].forward(x, tables, self.sight(stage, piece), None, pass)
    }

    fn sight<'a>(&self, stage: usize, piece: &'a Piece) -> Sight<'a> {
        match stage + 1 == self.layers.len() {
            true => Sight::Last(&piece.last),
            false => Sight::Packed(&piece.layout),
        }
    }

    /// The wanted states of the last layer's rows, after the last norm.
    fn finish(&self, x: &Tensor, piece: &Piece, pass: Pass) -> Tensor {
        match &piece.last.wanted {
            Some(wanted) => self.norm.forward(&x.index_select(0, wanted), pass),
            None => self.norm.forward(x, pass),
        }
    }

    /// Pushes `gradient` (like `run.hidden`) back into every trained weight, whose gradients go to `sink`; the result is the gradient of the
    /// embeddings, where `embeddings` asks for it.
    pub fn backward(
        &self,
        run: Run,
        gradient: &Tensor,
        piece: &Piece,
        pass: Pass,
        embeddings: Embeddings,
        sink: &mut Sink,
    ) -> Option<Tensor> {
        match run.tape {
            Tape::Nothing => None,
            Tape::Graph { input, output } => {
                let input = (embeddings == Embeddings::Graph).then_some(input);
                // Nothing is trained on the way to a batch without images where only the eyes are.
                match output.requires_grad() {
                    true => sink.push_back(&output, gradient, input.as_ref()),
                    false => input.map(|input| input.grad()),
                }
            }
            Tape::LayerInputs(mut inputs) => {
                let tables = self.rope.tables(&piece.positions, gradient.kind());
                let mut gradient = gradient.shallow_clone();
                for stage in (0..=self.layers.len()).rev() {
                    let wanted = stage > 0 || embeddings == Embeddings::Graph;
                    let x = inputs.pop()?.set_requires_grad(wanted);
                    let y = match stage == self.layers.len() {
                        true => self.finish(&x, piece, pass),
                        false => self.stage(stage, &x, &tables, piece, pass),
                    };
                    let before = match y.requires_grad() {
                        true => sink.push_back(&y, &gradient, wanted.then_some(&x)),
                        false => wanted.then(|| x.grad()),
                    };
                    gradient = before?;
                }
                Some(gradient)
            }
        }
    }

    /// An empty cache for this model's keys and values, in the precision in which they are multiplied.
    pub fn cache(&self) -> Cache {
        let key = |layer: &Layer| layer.key.param().get(Role::Reference);
        let heads = |layer: &Layer| (key(layer).size()[0] / layer.head_dim, layer.head_dim);
        let weight = self.head_param().get(Role::Reference);
        let size = self.layers.first().map_or((0, 0), heads);
        Cache::new(self.layers.len(), size, nn::precision::of_products(weight.kind(), weight.device()), weight.device())
    }

    /// Runs the prompts of a piece, embedded as `[tokens, width]`, and keeps the keys and values of its tokens in `rows` of a cache's tables; the
    /// result is the wanted states after the last norm.
    pub(super) fn prefill(&self, x: Tensor, piece: &Piece, rows: &Tensor, tables: &mut Tables, pass: Pass) -> Tensor {
        let turns = self.rope.tables(&piece.positions, x.kind());
        let stages = self.layers.iter().zip(&mut tables.layers).enumerate();
        let x = stages.fold(x, |x, (stage, (layer, kept))| {
            let keeper = Some(Keeper { kept, rows });
            layer.forward(&x, &turns, self.sight(stage, piece), keeper, pass)
        });
        self.finish(&x, piece, pass)
    }

    /// Runs the next token of each of some sequences, embedded as `[sequences, width]`: `layout` has a span of one query for each, whose keys
    /// are rows of the cache, its own the last of them. The result is their states after the last norm.
    pub fn decode(&self, x: Tensor, positions: &Tensor, layout: &Layout, cache: &mut Cache, pass: Pass) -> Tensor {
        let tables = self.rope.tables(positions, x.kind());
        let rows: Vec<i64> = layout.spans().iter().flat_map(|span| span.rows().map(|row| row as i64)).collect();
        let rows = &Tensor::from_slice(&rows).to_device(x.device());
        let layers = self.layers.iter().zip(&mut cache.tables.layers);
        let x = layers.fold(x, |x, (layer, kept)| {
            layer.forward(&x, &tables, Sight::Kept(layout), Some(Keeper { kept, rows }), pass)
        });
        self.norm.forward(&x, pass)
    }
}

impl Layer {
    fn load(config: &LanguageConfig, index: usize, prefix: &str, loader: &mut Loader) -> Result<Self> {
        let (width, head_dim) = (config.width as i64, config.head_dim as i64);
        let (queries, keys) = (config.heads as i64 * head_dim, config.kv_heads as i64 * head_dim);
        let inner = config.intermediate as i64;
        let mut linear = |name: &str, out, input, bias| loader.linear(&format!("{prefix}{name}"), out, input, bias);
        let query = linear("self_attn.q_proj", queries, width, config.qkv_bias)?;
        let key = linear("self_attn.k_proj", keys, width, config.qkv_bias)?;
        let value = linear("self_attn.v_proj", keys, width, config.qkv_bias)?;
        let out = linear("self_attn.o_proj", width, queries, config.out_bias)?;
        let gate = linear("mlp.gate_proj", inner, width, config.mlp_bias)?;
        let up = linear("mlp.up_proj", inner, width, config.mlp_bias)?;
        let down = linear("mlp.down_proj", width, inner, config.mlp_bias)?;
        let mut norm = |name: &str| -> Result<RmsNorm> {
            Ok(RmsNorm::new(loader.param(&format!("{prefix}{name}.weight"), &[width])?, config.eps))
        };
        let (input_norm, mlp_norm) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
        Ok(Layer { index, head_dim, input_norm, query, key, value, out, mlp_norm, gate, up, down })
    }

    fn forward(
        &self,
        x: &Tensor,
        tables: &(Tensor, Tensor),
        sight: Sight,
        mut keeper: Option<Keeper>,
        pass: Pass,
    ) -> Tensor {
        pass.enter_layer(self.index);
        let normed = self.input_norm.forward(x, pass);
        let heads = |y: Tensor| y.view([y.size()[0], -1, self.head_dim]);
        let at = |tensor: &Tensor, rows: &Tensor| tensor.index_select(0, rows);
        let (query, key, value) = match &sight {
            Sight::Last(LastLayer { rows: Some(rows), .. }) => {
                let [key, value] = Linear::forward_all([&self.key, &self.value], &normed, pass).map(heads);
                let query = heads(self.query.forward(&at(&normed, rows), pass));
                (Rope::apply(&query, &(at(&tables.0, rows), at(&tables.1, rows))), key, value)
            }
            _ => {
                let layers = [&self.query, &self.key, &self.value];
                let [query, key, value] = Linear::forward_all(layers, &normed, pass).map(heads);
                (Rope::apply(&query, tables), key, value)
            }
        };
        let key = Rope::apply(&key, tables);
        if let Some(keeper) = &mut keeper {
            keeper.keep(&key, &value);
        }
        let (attended, x) = match sight {
            Sight::Packed(layout) => (nn::attend(&query, &key, &value, layout), x.shallow_clone()),
            Sight::Last(LastLayer { layout, rows, .. }) => {
                let x = rows.as_ref().map_or_else(|| x.shallow_clone(), |rows| at(x, rows));
                (nn::attend(&query, &key, &value, layout), x)
            }
            Sight::Kept(layout) => {
                let (keys, values) = keeper.as_ref().map_or((&key, &value), |k| (&k.kept.keys, &k.kept.values));
                (nn::attend(&query, keys, values, layout), x.shallow_clone())
            }
        };
        // Nothing else reads what the last product of a block gives, so that the sum takes its place.
        let x = self.out.forward(&attended.reshape([x.size()[0], -1]), pass).g_add_(&x);
        let normed = self.mlp_norm.forward(&x, pass);
        let [gate, up] = Linear::forward_all([&self.gate, &self.up], &normed, pass);
        let gated = nn::swiglu(&gate, &up);
        self.down.forward(&gated, pass).g_add_(&x)
    }
}
