//! Llama-like language models: Llama, Vicuna, Mistral, Qwen2 (pre-norm decoder, rotary positions, gated MLP, grouped heads).

use super::config::LanguageConfig;
use super::load::Loader;
use crate::Result;
use crate::nn::{self, Linear, Param, Pass, RmsNorm, Role, Rope};
use crate::text::pack::Segment;
use tch::{Kind, Tensor};

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

/// What the queries of a pass may see.
enum Sight<'a> {
    /// The segments of a packed batch.
    Packed(&'a [Segment]),
    /// Everything so far: keys and values of one layer, `[tokens, kv_heads, head_dim]`, which the pass extends.
    Cache(&'a mut Option<(Tensor, Tensor)>),
}

/// Keys and values of every layer, for generation.
#[derive(Debug, Default)]
pub struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
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

/// A finished forward pass.
#[derive(Debug)]
pub struct Run {
    /// Final hidden states `[tokens, width]`, after the last norm, without a graph.
    pub hidden: Tensor,
    tape: Tape,
}

#[derive(Debug)]
enum Tape {
    Nothing,
    Graph(Tensor),
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

    /// Runs the layers over a packed batch of embeddings `[tokens, width]` at `positions` `[tokens]`.
    pub fn run(&self, x: Tensor, positions: &Tensor, segments: &[Segment], pass: Pass, keep: Keep) -> Run {
        let tables = self.rope.tables(positions, x.kind());
        let layer = |layer: &Layer, x: &Tensor| layer.forward(x, &tables, Sight::Packed(segments), pass);
        match keep {
            Keep::Nothing => tch::no_grad(|| {
                let x = self.layers.iter().fold(x, |x, l| layer(l, &x));
                Run { hidden: self.norm.forward(&x, pass), tape: Tape::Nothing }
            }),
            Keep::Graph => {
                let x = self.layers.iter().fold(x, |x, l| layer(l, &x));
                let hidden = self.norm.forward(&x, pass);
                Run { hidden: hidden.detach(), tape: Tape::Graph(hidden) }
            }
            Keep::LayerInputs => tch::no_grad(|| {
                let mut inputs = vec![x.detach()];
                for l in &self.layers {
                    inputs.push(layer(l, &inputs[inputs.len() - 1]));
                }
                let hidden = self.norm.forward(&inputs[inputs.len() - 1], pass);
                Run { hidden, tape: Tape::LayerInputs(inputs) }
            }),
        }
    }

    /// Pushes `gradient` (like `run.hidden`) back into every trained weight; the result is the gradient of the embeddings where the
    /// pass kept layer inputs, since their graph ends there. A pass that kept the graph has already gone on into the embeddings.
    pub fn backward(
        &self,
        run: Run,
        gradient: &Tensor,
        positions: &Tensor,
        segments: &[Segment],
        pass: Pass,
    ) -> Option<Tensor> {
        match run.tape {
            Tape::Nothing => None,
            Tape::Graph(hidden) => {
                // Nothing is trained on the way to a batch without images where only the eyes are.
                if hidden.requires_grad() {
                    push_back(&hidden, gradient);
                }
                None
            }
            Tape::LayerInputs(mut inputs) => {
                let tables = self.rope.tables(positions, gradient.kind());
                let mut gradient = gradient.shallow_clone();
                for stage in (0..=self.layers.len()).rev() {
                    let x = inputs.pop()?.set_requires_grad(true);
                    let y = match self.layers.get(stage) {
                        None => self.norm.forward(&x, pass),
                        Some(layer) => layer.forward(&x, &tables, Sight::Packed(segments), pass),
                    };
                    push_back(&y, &gradient);
                    gradient = x.grad();
                }
                Some(gradient)
            }
        }
    }

    /// Runs new tokens `[new, width]` after what `cache` holds; the result is their hidden states after the last norm.
    pub fn extend(&self, x: Tensor, positions: &Tensor, cache: &mut Cache, pass: Pass) -> Tensor {
        cache.layers.resize_with(self.layers.len(), || None);
        let tables = self.rope.tables(positions, x.kind());
        let layers = self.layers.iter().zip(&mut cache.layers);
        let x = layers.fold(x, |x, (layer, cache)| layer.forward(&x, &tables, Sight::Cache(cache), pass));
        self.norm.forward(&x, pass)
    }
}

/// Adds `gradient · dy` to the gradient of every leaf behind `y`.
pub(crate) fn push_back(y: &Tensor, gradient: &Tensor) {
    (y * gradient).sum(Kind::Float).backward();
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

    fn forward(&self, x: &Tensor, tables: &(Tensor, Tensor), sight: Sight, pass: Pass) -> Tensor {
        pass.enter_layer(self.index);
        let tokens = x.size()[0];
        let normed = self.input_norm.forward(x, pass);
        let heads = |linear: &Linear| linear.forward(&normed, pass).view([tokens, -1, self.head_dim]);
        let (query, key) = (Rope::apply(&heads(&self.query), tables), Rope::apply(&heads(&self.key), tables));
        let value = heads(&self.value);
        let attended = match sight {
            Sight::Packed(segments) => nn::attend(&query, &key, &value, segments),
            Sight::Cache(cache) => {
                let (keys, values) = match cache.take() {
                    Some((k, v)) => (Tensor::cat(&[&k, &key], 0), Tensor::cat(&[&v, &value], 0)),
                    None => (key, value),
                };
                let attended = nn::attend_cached(&query, &keys, &values);
                *cache = Some((keys, values));
                attended
            }
        };
        let x = x + self.out.forward(&attended.reshape([tokens, -1]), pass);
        let normed = self.mlp_norm.forward(&x, pass);
        let gated = self.gate.forward(&normed, pass).silu() * self.up.forward(&normed, pass);
        x + self.down.forward(&gated, pass)
    }
}
