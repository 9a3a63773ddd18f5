// The operations of fused.cpp for every device and kind, as functions of autograd made of libtorch's own operations: they keep less for
// the backward pass, and go over memory fewer times, than what autograd makes of the formulas. Meant for CUDA; C interface as in ext.cpp.
//
// Factors of adapters are f32 and rounded to the kind of their input; a product's result is rounded once.

#include "composed.h"
#include "guard.h"

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_rms_norm.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/zeros.h>

#include <optional>

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

namespace {

// Keeps gate and up, and computes silu(gate) again.
struct Swiglu : Function<Swiglu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    ctx->save_for_backward({gate, up});
    return at::silu(gate).mul_(up);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    auto saved = ctx->get_saved_variables();
    const Tensor &g = gradients[0], &gate = saved[0], &up = saved[1];
    return {at::silu_backward(at::mul(g, up), gate), at::silu(gate).mul_(g)};
  }
};

// [x1 cos1 − x2 sin1, x2 cos2 + x1 sin2]: the halves of a head are the coordinates that are turned.
Tensor turned(const Tensor& x, const Tensor& cos, const Tensor& sin1, const Tensor& sin2, double sign) {
  const int64_t half = x.size(2) / 2;
  Tensor y = at::mul(x, cos);
  y.narrow(2, 0, half).addcmul_(x.narrow(2, half, half), sin1, -sign);
  y.narrow(2, half, half).addcmul_(x.narrow(2, 0, half), sin2, sign);
  return y;
}

struct Rotary : Function<Rotary> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    const int64_t half = x.size(2) / 2;
    ctx->save_for_backward({cos, sin});
    return turned(x, cos, sin.narrow(2, 0, half), sin.narrow(2, half, half), 1);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    auto saved = ctx->get_saved_variables();
    const Tensor& sin = saved[1];
    const int64_t half = sin.size(2) / 2;
    return {turned(gradients[0], saved[0], sin.narrow(2, half, half), sin.narrow(2, 0, half), -1), Tensor(), Tensor()};
  }
};

// a b in f32 (f64 stays f64).
Tensor wide_product(const Tensor& a, const Tensor& b) {
  const bool narrow = a.scalar_type() == at::kBFloat16 || a.scalar_type() == at::kHalf;
  if (!narrow) return at::mm(a, b);
  return a.is_cuda() ? at::mm(a, b, at::kFloat) : at::mm(a.to(at::kFloat), b.to(at::kFloat));
}

struct AdaptedLinears : Function<AdaptedLinears> {
  static variable_list forward(
      AutogradContext* ctx, const Tensor& x, at::TensorList factors, at::TensorList frozen, std::vector<double> scales) {
    const size_t n = scales.size();
    const Tensor down = at::linear(x, at::cat(factors.slice(0, n), 0).to(x.scalar_type()));
    variable_list outputs, saved{x, down};
    int64_t first = 0;
    for (size_t i = 0; i < n; ++i) {
      const int64_t rank = factors[i].size(0);
      const Tensor b = factors[n + i].to(x.scalar_type());
      outputs.push_back(at::linear(x, frozen[i]).addmm_(down.narrow(1, first, rank), b.t(), 1, scales[i]));
      first += rank;
    }
    saved.insert(saved.end(), factors.begin(), factors.end());
    saved.insert(saved.end(), frozen.begin(), frozen.end());
    ctx->save_for_backward(saved);
    ctx->saved_data["scales"] = std::move(scales);
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
      down_gradient.narrow(1, first, rank).copy_(at::mm(gradients[i], b[i].to(x.scalar_type())).mul_(scales[i]));
      found[1 + n + i] = wide_product(gradients[i].t(), down.narrow(1, first, rank)).mul_(scales[i]);
      first += rank;
    }
    const Tensor a_gradients = wide_product(down_gradient.t(), x);
    first = 0;
    for (size_t i = 0; i < n; first += a[i].size(0), ++i) found[1 + i] = a_gradients.narrow(0, first, a[i].size(0));
    if (ctx->needs_input_grad(0)) {
      Tensor dx = at::mm(gradients[0], w[0]);
      for (size_t i = 1; i < n; ++i) dx.addmm_(gradients[i], w[i]);
      found[0] = dx.addmm_(down_gradient, at::cat(a, 0).to(x.scalar_type()));
    }
    return found;
  }
};

// x Wᵀ + b, multiplied in f32 and rounded to the kind of x. Factors are kept in their own kind, and widened again on the way back.
struct WideLinear : Function<WideLinear> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weight});
    ctx->saved_data["bias"] = bias.has_value(); // Without one there is no third input to be asked about.
    std::optional<Tensor> wide_bias;
    if (bias) wide_bias = bias->to(at::kFloat);
    return at::linear(x.to(at::kFloat), weight.to(at::kFloat), wide_bias).to(x.scalar_type());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const auto kind = gradients[0].scalar_type();
    const Tensor g = gradients[0].to(at::kFloat), rows = g.reshape({-1, g.size(-1)});
    variable_list found(3);
    if (ctx->needs_input_grad(0)) {
      std::vector<int64_t> size = g.sizes().vec();
      size.back() = weight.size(1);
      found[0] = at::mm(rows, weight.to(at::kFloat)).reshape(size).to(kind);
    }
    if (ctx->needs_input_grad(1)) {
      found[1] = at::mm(rows.t(), x.reshape({-1, x.size(-1)}).to(at::kFloat)).to(weight.scalar_type());
    }
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) found[2] = rows.sum(0).to(kind);
    return found;
  }
};

// x[rows]. `rounds` are pairs of indices: rows of x, none twice in a round, and where the result has them. libtorch's own gradient adds
// with atomic operations, so in any order; this one adds round after round.
struct GatherRows : Function<GatherRows> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& rows, at::TensorList rounds) {
    ctx->save_for_backward(rounds.vec());
    ctx->saved_data["rows"] = x.size(0);
    return x.index_select(0, rows);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list rounds = ctx->get_saved_variables();
    const Tensor& g = gradients[0];
    std::vector<int64_t> size = g.sizes().vec();
    size[0] = ctx->saved_data["rows"].toInt();
    Tensor dx = at::zeros(size, g.options());
    for (size_t i = 0; i < rounds.size(); i += 2) {
      const Tensor &to = rounds[i], &from = rounds[i + 1];
      Tensor part = g.index_select(0, from);
      dx.index_copy_(0, to, i == 0 ? part : part.add_(dx.index_select(0, to)));
    }
    variable_list found(2 + rounds.size());
    found[0] = dx;
    return found;
  }
};

} // namespace

namespace composed {

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  TORCH_CHECK(weight.numel() == x.size(-1), "a norm of width ", weight.numel(), " got rows of ", x.size(-1));
  return std::get<0>(at::_fused_rms_norm(x, weight.sizes(), weight, eps));
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  TORCH_CHECK(gate.sizes() == up.sizes(), "a gate of ", gate.sizes(), " for ", up.sizes());
  return Swiglu::apply(gate, up);
}

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  TORCH_CHECK(
      x.dim() == 3 && x.size(2) % 2 == 0 && cos.numel() == x.size(0) * x.size(2) && sin.numel() == cos.numel(),
      "rotary positions of ", cos.sizes(), " for ", x.sizes());
  const std::vector<int64_t> table{x.size(0), 1, x.size(2)};
  return Rotary::apply(x, cos.reshape(table), sin.reshape(table));
}

std::vector<Tensor> adapted_linears(
    const Tensor& x, at::TensorList factors, at::TensorList frozen, const std::vector<double>& scales) {
  return AdaptedLinears::apply(x, factors, frozen, scales);
}

} // namespace composed

extern "C" {

// `bias` may be null.
char* torch_ext_wide_linear(Tensor** out, const Tensor* x, const Tensor* weight, const Tensor* bias) {
  return guard([&] {
    TORCH_CHECK(
        x->dim() > 0 && weight->dim() == 2 && x->size(-1) == weight->size(1), "a layer of ", weight->sizes(), " for ",
        x->sizes());
    *out = new Tensor(WideLinear::apply(*x, *weight, bias == nullptr ? std::nullopt : std::optional<Tensor>(*bias)));
  });
}

// `rounds` are `count` tensors, an even number.
char* torch_ext_gather_rows(Tensor** out, const Tensor* x, const Tensor* rows, int64_t count, const Tensor* const* rounds) {
  return guard([&] {
    variable_list all;
    for (int64_t i = 0; i < count; ++i) all.push_back(*rounds[i]);
    *out = new Tensor(GatherRows::apply(*x, *rows, at::TensorList(all)));
  });
}

// One step of AdamW, `steps` (from 1) counting this one; every list has `count` tensors, all f32 on one device. No gradient is recorded.
char* torch_ext_adamw(
    int64_t count, const Tensor* const* leaves, const Tensor* const* gradients, const Tensor* const* firsts,
    const Tensor* const* seconds, const Tensor* steps, double learning_rate, double beta1, double beta2,
    double weight_decay, double eps) {
  return guard([&] {
    const at::NoGradGuard none;
    const auto list = [&](const Tensor* const* from) {
      variable_list all;
      for (int64_t i = 0; i < count; ++i) all.push_back(*from[i]);
      return all;
    };
    const variable_list of(static_cast<size_t>(count), *steps);
    at::_fused_adamw_(
        list(leaves), list(gradients), list(firsts), list(seconds), {}, of, learning_rate, beta1, beta2, weight_decay,
        eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

} // extern "C"
