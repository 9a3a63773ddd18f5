// Parts of a layer for every device and kind, made of libtorch's own operations.

#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

namespace composed {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// `factors` are all A_i [rank_i, in], then all B_i [out_i, rank_i]; `frozen` all W_i [out_i, in].
std::vector<at::Tensor> adapted_linears(
    const at::Tensor& x, at::TensorList factors, at::TensorList frozen, const std::vector<double>& scales);

} // namespace composed
