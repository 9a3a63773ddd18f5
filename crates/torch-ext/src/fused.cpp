// Operations on a CPU in f32 that libtorch has only in several passes, as functions of its autograd; C interface as in ext.cpp.

#include "composed.h"
#include "guard.h"
#include "kernels.h"

#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// libtorch's own library for products of matrices; absent where it was built with one that hides it.
extern "C" __attribute__((weak)) void sgemm_(
    const char* transa, const char* transb, const int* m, const int* n, const int* k, const float* alpha,
    const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace {

// Numbers that are worth a second thread.
constexpr int64_t GRAIN = 16384;

// Whether it is for the loops of kernels.h; what is not goes to composed.cpp, where that has it.
bool is_ours(const Tensor& x) { return x.device().is_cpu() && x.scalar_type() == at::kFloat; }

void check(const Tensor& x, const char* what) { TORCH_CHECK(is_ours(x), what, " must be f32 on a CPU"); }

int64_t rows_of(const Tensor& x) { return x.numel() / std::max<int64_t>(x.size(-1), 1); }

// Calls work(first, end) with parts of `rows` rows of `width` numbers.
template <typename Work> void by_rows(int64_t rows, int64_t width, Work work) {
  at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / std::max<int64_t>(width, 1)), work);
}

struct RmsNorm : Function<RmsNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, double eps) {
    check(input, "the input of a norm"), check(weight, "the weight of a norm");
    Tensor x = input.contiguous(), w = weight.contiguous();
    const int64_t rows = rows_of(x), width = x.size(-1);
    TORCH_CHECK(w.numel() == width, "a norm of width ", w.numel(), " got rows of ", width);
    Tensor y = at::empty_like(x), scales = at::empty({rows}, x.options());
    const float *from = x.const_data_ptr<float>(), *by = w.const_data_ptr<float>();
    float *to = y.data_ptr<float>(), *scale = scales.data_ptr<float>();
    by_rows(rows, width, [&](int64_t first, int64_t end) {
      kernels::rms_norm(
          from + first * width, by, to + first * width, scale + first, end - first, width, static_cast<float>(eps));
    });
    ctx->save_for_backward({x, w, scales});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    auto saved = ctx->get_saved_variables();
    Tensor g = gradients[0].contiguous(), x = saved[0], w = saved[1], scales = saved[2];
    const int64_t rows = rows_of(x), width = x.size(-1);
    const float *from = g.const_data_ptr<float>(), *in = x.const_data_ptr<float>();
    const float *by = w.const_data_ptr<float>(), *scale = scales.const_data_ptr<float>();
    Tensor dx, dw;
    if (ctx->needs_input_grad(0)) {
      dx = at::empty_like(x);
      float* to = dx.data_ptr<float>();
      by_rows(rows, width, [&](int64_t first, int64_t end) {
        const int64_t at = first * width;
        kernels::rms_norm_dx(from + at, in + at, by, scale + first, to + at, end - first, width);
      });
    }
    if (ctx->needs_input_grad(1)) {
      dw = at::empty_like(w);
      float* to = dw.data_ptr<float>();
      // Parts of the columns, so that the order of each sum does not depend on the number of threads.
      by_rows(width, rows, [&](int64_t first, int64_t end) {
        kernels::rms_norm_dw(from, in, scale, to, rows, width, first, end);
      });
    }
    return {dx, dw, Tensor()};
  }
};

struct Swiglu : Function<Swiglu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    check(gate, "a gate"), check(up, "what is gated");
    TORCH_CHECK(gate.sizes() == up.sizes(), "a gate of ", gate.sizes(), " for ", up.sizes());
    Tensor a = gate.contiguous(), b = up.contiguous(), y = at::empty_like(a);
    const float *gates = a.const_data_ptr<float>(), *ups = b.const_data_ptr<float>();
    float* to = y.data_ptr<float>();
    at::parallel_for(0, a.numel(), GRAIN, [&](int64_t first, int64_t end) {
      kernels::swiglu(gates + first, ups + first, to + first, end - first);
    });
    ctx->save_for_backward({a, b});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    auto saved = ctx->get_saved_variables();
    Tensor g = gradients[0].contiguous(), da = at::empty_like(saved[0]), db = at::empty_like(saved[1]);
    const float *from = g.const_data_ptr<float>(), *a = saved[0].const_data_ptr<float>();
    const float* b = saved[1].const_data_ptr<float>();
    float *gates = da.data_ptr<float>(), *ups = db.data_ptr<float>();
    at::parallel_for(0, g.numel(), GRAIN, [&](int64_t first, int64_t end) {
      kernels::swiglu_back(from + first, a + first, b + first, gates + first, ups + first, end - first);
    });
    return {da, db};
  }
};

// One direction of the rotary turn over [tokens, heads, head_dim].
template <typename Kernel> Tensor turned(const Tensor& x, const Tensor& cos, const Tensor& sin, Kernel kernel) {
  const int64_t tokens = x.size(0), heads = x.size(1), width = x.size(2);
  Tensor y = at::empty_like(x);
  const float *from = x.const_data_ptr<float>(), *c = cos.const_data_ptr<float>(), *s = sin.const_data_ptr<float>();
  float* to = y.data_ptr<float>();
  by_rows(tokens, heads * width, [&](int64_t first, int64_t end) {
    for (int64_t token = first; token < end; ++token) {
      const int64_t at = token * heads * width;
      kernel(from + at, c + token * width, s + token * width, to + at, heads, width / 2);
    }
  });
  return y;
}

struct Rotary : Function<Rotary> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    check(x, "what is turned"), check(cos, "a cosine"), check(sin, "a sine");
    TORCH_CHECK(
        x.dim() == 3 && x.size(2) % 2 == 0 && cos.numel() == x.size(0) * x.size(2) && sin.numel() == cos.numel(),
        "rotary positions of ", cos.sizes(), " for ", x.sizes());
    Tensor c = cos.contiguous(), s = sin.contiguous();
    ctx->save_for_backward({c, s});
    return turned(x.contiguous(), c, s, kernels::rotate);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    auto saved = ctx->get_saved_variables();
    return {turned(gradients[0].contiguous(), saved[0], saved[1], kernels::rotate_back), Tensor(), Tensor()};
  }
};

// C = alpha op(A) op(B) + beta C, row by row: op(A) is [m, k], op(B) [k, n]. In one thread inside at::parallel_for.
void product(
    bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
    int64_t ldb, float beta, float* c, int64_t ldc) {
  // The columns of what Fortran sees are our rows: it computes Cᵀ = op(B)ᵀ op(A)ᵀ.
  const int rows = static_cast<int>(n), columns = static_cast<int>(m), inner = static_cast<int>(k);
  const int left = static_cast<int>(ldb), right = static_cast<int>(lda), result = static_cast<int>(ldc);
  const float alpha = 1;
  sgemm_(
      transpose_b ? "T" : "N", transpose_a ? "T" : "N", &rows, &columns, &inner, &alpha, b, &left, a, &right, &beta, c,
      &result);
}

// Some queries in a row and the keys that the last of them sees; every query before it sees one less.
struct Block {
  int64_t query, queries;   // rows of q
  int64_t prefix, prefixed; // rows of k: first those of the prompt,
  int64_t own, owned;       // then its own
  int64_t keys() const { return prefixed + owned; }
};

// Queries of a block: its scores stay in a core's own cache.
constexpr int64_t BLOCK = 96;
// Into how many parts of like cost the queries of a head are cut, whatever the number of threads.
constexpr int64_t PARTS = 2;

// Blocks of spans [spans, 6]: first query, queries, first key and number of keys of the prefix, first own key, own keys of the last query.
std::vector<Block> blocks_of(const Tensor& spans) {
  std::vector<Block> blocks;
  const int64_t* span = spans.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < spans.size(0); ++i, span += 6) {
    // As many blocks as need be, of like size.
    const int64_t count = (span[1] + BLOCK - 1) / BLOCK;
    for (int64_t block = 0; block < count; ++block) {
      const int64_t first = block * span[1] / count, queries = (block + 1) * span[1] / count - first;
      blocks.push_back({span[0] + first, queries, span[2], span[3], span[4], span[5] - span[1] + first + queries});
    }
  }
  return blocks;
}

// Where each part of the blocks ends.
std::vector<size_t> parts_of(const std::vector<Block>& blocks) {
  int64_t all = 0, done = 0;
  for (const Block& block : blocks) all += block.queries * block.keys();
  std::vector<size_t> ends;
  for (size_t i = 0; i < blocks.size(); ++i) {
    done += blocks[i].queries * blocks[i].keys();
    while (static_cast<int64_t>(ends.size()) < PARTS - 1 && done * PARTS >= all * static_cast<int64_t>(ends.size() + 1)) {
      ends.push_back(i + 1);
    }
  }
  ends.resize(PARTS, blocks.size());
  return ends;
}

// What attention reads: q [queries, heads, width], k and v [tokens, kv_heads, width].
struct Heads {
  const float *q, *k, *v;
  int64_t heads, kv_heads, width;
  int64_t queries_stride() const { return heads * width; }
  int64_t keys_stride() const { return kv_heads * width; }
  int64_t query(int64_t row, int64_t head) const { return row * queries_stride() + head * width; }
  int64_t key(int64_t row, int64_t head) const { return row * keys_stride() + head / (heads / kv_heads) * width; }
};

Heads heads_of(const Tensor& q, const Tensor& k, const Tensor& v) {
  return {q.const_data_ptr<float>(), k.const_data_ptr<float>(), v.const_data_ptr<float>(), q.size(1), k.size(1), q.size(2)};
}

// rows [queries, width] times the keys (or values) of a block, transposed: [queries, keys].
void times_keys(const Heads& h, const Block& block, int64_t head, const float* rows, const float* keys, float* out) {
  const int64_t stride = h.keys_stride(), all = block.keys();
  if (block.queries == 1) { // A product with a vector is slow in libtorch's library on some processors.
    kernels::dots(rows, keys + h.key(block.prefix, head), stride, block.prefixed, h.width, out);
    return kernels::dots(rows, keys + h.key(block.own, head), stride, block.owned, h.width, out + block.prefixed);
  }
  if (block.prefixed > 0) {
    product(
        false, true, block.queries, block.prefixed, h.width, rows, h.queries_stride(), keys + h.key(block.prefix, head),
        stride, 0, out, all);
  }
  product(
      false, true, block.queries, block.owned, h.width, rows, h.queries_stride(), keys + h.key(block.own, head), stride,
      0, out + block.prefixed, all);
}

// weights [queries, keys] times the values (or keys) of a block: [queries, width].
void times_values(const Heads& h, const Block& block, int64_t head, const float* weights, const float* values, float* out) {
  const int64_t stride = h.keys_stride(), all = block.keys();
  if (block.queries == 1) {
    std::fill(out, out + h.width, 0.0f);
    kernels::add_weighted(weights, values + h.key(block.prefix, head), stride, block.prefixed, h.width, out);
    const float* own = values + h.key(block.own, head);
    return kernels::add_weighted(weights + block.prefixed, own, stride, block.owned, h.width, out);
  }
  if (block.prefixed > 0) {
    product(
        false, false, block.queries, h.width, block.prefixed, weights, all, values + h.key(block.prefix, head), stride, 0,
        out, h.queries_stride());
  }
  product(
      false, false, block.queries, h.width, block.owned, weights + block.prefixed, all, values + h.key(block.own, head),
      stride, block.prefixed > 0, out, h.queries_stride());
}

// Adds weightsᵀ [keys, queries] times rows [queries, width] to the block's rows of one head's sums [tokens, width].
void add_to_keys(const Heads& h, const Block& block, const float* weights, const float* rows, float* sums) {
  const int64_t all = block.keys();
  if (block.prefixed > 0) {
    product(
        true, false, block.prefixed, h.width, block.queries, weights, all, rows, h.queries_stride(), 1,
        sums + block.prefix * h.width, h.width);
  }
  product(
      true, false, block.owned, h.width, block.queries, weights + block.prefixed, all, rows, h.queries_stride(), 1,
      sums + block.own * h.width, h.width);
}

int64_t most_scores(const std::vector<Block>& blocks) {
  int64_t most = 0;
  for (const Block& block : blocks) most = std::max(most, block.queries * block.keys());
  return most;
}

// Calls work(head, part, first block, end) for every head and part.
template <typename Work> void by_heads(int64_t heads, const std::vector<Block>& blocks, Work work) {
  const std::vector<size_t> ends = parts_of(blocks);
  at::parallel_for(0, heads * PARTS, 1, [&](int64_t first, int64_t end) {
    for (int64_t task = first; task < end; ++task) {
      const int64_t part = task % PARTS;
      work(task / PARTS, part, part == 0 ? 0 : ends[part - 1], ends[part]);
    }
  });
}

struct Attention : Function<Attention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& spans) {
    check(q_, "queries"), check(k_, "keys"), check(v_, "values");
    Tensor q = q_.contiguous(), k = k_.contiguous(), v = v_.contiguous();
    const Heads h = heads_of(q, k, v);
    const float scale = 1.0f / std::sqrt(static_cast<float>(h.width));
    Tensor out = at::empty_like(q), log_sums = at::empty({h.heads, q.size(0)}, q.options());
    float *to = out.data_ptr<float>(), *log_sum = log_sums.data_ptr<float>();
    const std::vector<Block> blocks = blocks_of(spans);
    const int64_t most = most_scores(blocks), rows = q.size(0);
    const auto attend = [&](int64_t head, const Block& block, float* scores) {
      const int64_t keys = block.keys();
      times_keys(h, block, head, h.q + h.query(block.query, head), h.k, scores);
      std::vector<float> sums(block.queries);
      for (int64_t row = 0; row < block.queries; ++row) {
        float* s = scores + row * keys;
        const int64_t seen = keys - block.queries + 1 + row;
        const float largest = kernels::largest(s, seen);
        sums[row] = kernels::exponentials(s, s, seen, largest, scale);
        std::fill(s + seen, s + keys, 0.0f);
        log_sum[head * rows + block.query + row] = scale * largest + std::log(sums[row]);
      }
      times_values(h, block, head, scores, h.v, to + h.query(block.query, head));
      for (int64_t row = 0; row < block.queries; ++row) {
        kernels::multiply(to + h.query(block.query + row, head), h.width, 1.0f / sums[row]);
      }
    };
    const auto is_single = [](const Block& block) { return block.queries == 1; };
    if (std::all_of(blocks.begin(), blocks.end(), is_single)) {
      // Every sequence has other keys: the heads that share some meet them while they are at hand.
      const int64_t groups = h.heads / h.kv_heads;
      at::parallel_for(0, static_cast<int64_t>(blocks.size()) * h.kv_heads, 1, [&](int64_t first, int64_t end) {
        std::vector<float> scores(most);
        for (int64_t task = first; task < end; ++task) {
          const int64_t shared = task % h.kv_heads;
          for (int64_t i = 0; i < groups; ++i) attend(shared * groups + i, blocks[task / h.kv_heads], scores.data());
        }
      });
    } else {
      by_heads(h.heads, blocks, [&](int64_t head, int64_t, size_t first, size_t end) {
        std::vector<float> scores(most);
        for (size_t i = first; i < end; ++i) attend(head, blocks[i], scores.data());
      });
    }
    ctx->save_for_backward({q, k, v, out, log_sums, spans});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    auto saved = ctx->get_saved_variables();
    Tensor q = saved[0], k = saved[1], v = saved[2], out = saved[3], log_sums = saved[4];
    Tensor g = gradients[0].contiguous();
    const Heads h = heads_of(q, k, v);
    const float scale = 1.0f / std::sqrt(static_cast<float>(h.width));
    const int64_t tokens = k.size(0), rows = q.size(0), groups = h.heads / h.kv_heads;
    Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
    // Of each head and part, [tokens, width]: first keys, then values.
    Tensor sums = at::zeros({2, h.heads * PARTS, tokens, h.width}, q.options());
    const float *from = g.const_data_ptr<float>(), *o = out.const_data_ptr<float>();
    const float* log_sum = log_sums.const_data_ptr<float>();
    float *to_q = dq.data_ptr<float>(), *sum = sums.data_ptr<float>();
    const std::vector<Block> blocks = blocks_of(saved[5]);
    const int64_t most = most_scores(blocks);
    by_heads(h.heads, blocks, [&](int64_t head, int64_t part, size_t first, size_t end) {
      std::vector<float> weights(most), slopes(most);
      float* to_k = sum + (head * PARTS + part) * tokens * h.width;
      float* to_v = to_k + h.heads * PARTS * tokens * h.width;
      for (size_t i = first; i < end; ++i) {
        const Block& block = blocks[i];
        const int64_t keys = block.keys(), at = h.query(block.query, head);
        times_keys(h, block, head, h.q + at, h.k, weights.data());
        times_keys(h, block, head, from + at, h.v, slopes.data());
        for (int64_t row = 0; row < block.queries; ++row) {
          float *p = weights.data() + row * keys, *dp = slopes.data() + row * keys;
          const int64_t seen = keys - block.queries + 1 + row, here = at + row * h.queries_stride();
          const float delta = kernels::dot(from + here, o + here, h.width);
          kernels::softmax_back(p, dp, seen, scale, log_sum[head * rows + block.query + row], delta);
          std::fill(p + seen, p + keys, 0.0f);
          std::fill(dp + seen, dp + keys, 0.0f);
        }
        times_values(h, block, head, slopes.data(), h.k, to_q + at);
        add_to_keys(h, block, slopes.data(), h.q + at, to_k);
        add_to_keys(h, block, weights.data(), from + at, to_v);
      }
    });
    float *to_k = dk.data_ptr<float>(), *to_v = dv.data_ptr<float>();
    by_rows(tokens, 2 * h.keys_stride() * groups * PARTS, [&](int64_t first, int64_t end) {
      for (int64_t head = 0; head < h.kv_heads; ++head) {
        for (int64_t token = first; token < end; ++token) {
          float *keys = to_k + h.key(token, head * groups), *values = to_v + h.key(token, head * groups);
          std::fill(keys, keys + h.width, 0.0f), std::fill(values, values + h.width, 0.0f);
          for (int64_t i = head * groups * PARTS; i < (head + 1) * groups * PARTS; ++i) {
            const float* part = sum + (i * tokens + token) * h.width;
            kernels::add(part, keys, h.width);
            kernels::add(part + h.heads * PARTS * tokens * h.width, values, h.width);
          }
        }
      }
    });
    return {dq, dk, dv, Tensor()};
  }
};

// How much each adapter adds.
struct Scales {
  std::vector<double> of;
};

// Linear layers with one input x [rows, in]: y_i = x W_iᵀ + scale_i (x A_iᵀ) B_iᵀ. `factors` are all A_i [rank_i, in], then all
// B_i [out_i, rank_i]; `frozen` all W_i [out_i, in].
struct AdaptedLinears : Function<AdaptedLinears> {
  static variable_list forward(
      AutogradContext* ctx, const Tensor& x, at::TensorList factors, at::TensorList frozen, const Scales& scales) {
    const size_t n = scales.of.size();
    Tensor down = at::linear(x, at::cat(factors.slice(0, n), 0));
    variable_list outputs, saved{x, down};
    int64_t first = 0;
    for (size_t i = 0; i < n; ++i) {
      const Tensor &a = factors[i], &b = factors[n + i];
      Tensor y = at::linear(x, frozen[i]);
      outputs.push_back(y.addmm_(down.narrow(1, first, a.size(0)), b.t(), 1, scales.of[i]));
      first += a.size(0);
    }
    saved.insert(saved.end(), factors.begin(), factors.end());
    saved.insert(saved.end(), frozen.begin(), frozen.end());
    ctx->save_for_backward(saved);
    ctx->saved_data["scales"] = scales.of;
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<double> scales = ctx->saved_data["scales"].toDoubleVector();
    const size_t n = scales.size();
    const Tensor &x = saved[0], &down = saved[1];
    const at::TensorList a(saved.data() + 2, n), b(saved.data() + 2 + n, n), w(saved.data() + 2 + 2 * n, n);
    // Of x, then of all A, all B, all W, and of the scales.
    variable_list found(2 + 3 * n);
    Tensor down_gradient = at::empty_like(down);
    int64_t first = 0;
    for (size_t i = 0; i < n; ++i) {
      const int64_t rank = a[i].size(0);
      Tensor part = down_gradient.narrow(1, first, rank);
      at::addmm_out(part, part, gradients[i], b[i], 0, scales[i]);
      found[1 + n + i] = at::empty_like(b[i]);
      at::addmm_out(found[1 + n + i], found[1 + n + i], gradients[i].t(), down.narrow(1, first, rank), 0, scales[i]);
      first += rank;
    }
    Tensor a_gradients = at::mm(down_gradient.t(), x);
    first = 0;
    for (size_t i = 0; i < n; first += a[i].size(0), ++i) found[1 + i] = a_gradients.narrow(0, first, a[i].size(0));
    if (ctx->needs_input_grad(0)) {
      Tensor dx = at::mm(gradients[0], w[0]);
      for (size_t i = 1; i < n; ++i) dx.addmm_(gradients[i], w[i]);
      found[0] = dx.addmm_(down_gradient, at::cat(a, 0));
    }
    return found;
  }
};

} // namespace

extern "C" {

// Whether attention can be computed here: products are reachable and there are threads.
int torch_ext_has_fused() {
#ifdef INTRA_OP_PARALLEL
  return sgemm_ != nullptr;
#else
  return 0;
#endif
}

char* torch_ext_rms_norm(Tensor** out, const Tensor* x, const Tensor* weight, double eps) {
  return guard([&] {
    *out = new Tensor(is_ours(*x) ? RmsNorm::apply(*x, *weight, eps) : composed::rms_norm(*x, *weight, eps));
  });
}

char* torch_ext_swiglu(Tensor** out, const Tensor* gate, const Tensor* up) {
  return guard([&] { *out = new Tensor(is_ours(*gate) ? Swiglu::apply(*gate, *up) : composed::swiglu(*gate, *up)); });
}

char* torch_ext_rotary(Tensor** out, const Tensor* x, const Tensor* cos, const Tensor* sin) {
  return guard([&] {
    *out = new Tensor(is_ours(*x) ? Rotary::apply(*x, *cos, *sin) : composed::rotary(*x, *cos, *sin));
  });
}

// `out` has room for `count` tensors; `a`, `b`, `weights` and `biases` have that many each, a bias may be null.
char* torch_ext_adapted_linears(
    Tensor** out, const Tensor* x, int64_t count, const Tensor* const* weights, const Tensor* const* biases,
    const Tensor* const* a, const Tensor* const* b, const double* scales) {
  return guard([&] {
    variable_list factors, frozen;
    for (int64_t i = 0; i < count; ++i) factors.push_back(*a[i]), frozen.push_back(*weights[i]);
    for (int64_t i = 0; i < count; ++i) factors.push_back(*b[i]);
    const std::vector<double> by(scales, scales + count);
    variable_list found = is_ours(*x)
        ? AdaptedLinears::apply(*x, at::TensorList(factors), at::TensorList(frozen), Scales{by})
        : composed::adapted_linears(*x, factors, frozen, by);
    for (int64_t i = 0; i < count; ++i) {
      if (biases[i] != nullptr) found[i].add_(*biases[i]);
    }
    for (int64_t i = 0; i < count; ++i) out[i] = new Tensor(found[i]);
  });
}

char* torch_ext_span_attention(Tensor** out, const Tensor* q, const Tensor* k, const Tensor* v, const Tensor* spans) {
  return guard([&] { *out = new Tensor(Attention::apply(*q, *k, *v, *spans)); });
}

// Log-probs of labels [rows] under logits [rows, vocab].
char* torch_ext_label_log_probs(Tensor** out, const Tensor* logits, const Tensor* labels) {
  return guard([&] {
    check(*logits, "logits");
    Tensor x = logits->contiguous(), found = at::empty({x.size(0)}, x.options());
    const int64_t width = x.size(1), *label = labels->const_data_ptr<int64_t>();
    const float* from = x.const_data_ptr<float>();
    float* to = found.data_ptr<float>();
    by_rows(x.size(0), width, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; ++row) {
        const float* logit = from + row * width;
        const float most = kernels::largest(logit, width);
        to[row] = logit[label[row]] - most - std::log(kernels::sum_of_exponentials(logit, width, most));
      }
    });
    *out = new Tensor(found);
  });
}

// [4, rows]: log-prob of the label, entropy, 1 where the label is the first of the likeliest, mean logit; logits become their softmax.
char* torch_ext_softmax_with_statistics(Tensor** out, const Tensor* logits, const Tensor* labels) {
  return guard([&] {
    check(*logits, "logits");
    TORCH_CHECK(logits->is_contiguous(), "logits must be contiguous");
    const int64_t rows = logits->size(0), width = logits->size(1), *label = labels->const_data_ptr<int64_t>();
    Tensor found = at::empty({4, rows}, logits->options());
    float *from = logits->data_ptr<float>(), *to = found.data_ptr<float>();
    by_rows(rows, width, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; ++row) {
        float* logit = from + row * width;
        const float most = kernels::largest(logit, width), own = logit[label[row]];
        const bool top = own == most && std::find(logit, logit + label[row], most) == logit + label[row];
        const auto [sum, weighted, plain] = kernels::row_sums(logit, width, most);
        kernels::multiply(logit, width, 1.0f / sum);
        to[row] = own - most - std::log(sum);
        to[rows + row] = std::log(sum) - weighted / sum;
        to[2 * rows + row] = top;
        to[3 * rows + row] = plain / static_cast<float>(width);
      }
    });
    *out = new Tensor(found);
  });
}

} // extern "C"
