// The few operations of libtorch that tch does not bind, with a C interface: null on success, else a message to be freed.
//
// Only ATen's dispatcher is called, so that nothing here links to CUDA: its kernels register themselves when the library is opened.

#include "guard.h"

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <algorithm>
#include <cstdlib>

namespace {

// `custom_mask_type` of the efficient kernel (sdp::CustomMaskType).
constexpr int64_t CAUSAL_FROM_BOTTOM_RIGHT = 2;

} // namespace

extern "C" {

void torch_ext_free(char* message) { std::free(message); }

// Causal attention, aligned bottom-right. f16 and bf16: [tokens, heads, head_dim], heads of keys grouped by the flash kernel; f32:
// [1, tokens, heads, head_dim], as many heads of keys as of queries.
char* torch_ext_varlen_attention(
    at::Tensor** out, const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, const at::Tensor* q_starts,
    const at::Tensor* k_starts, int64_t max_q, int64_t max_k, double scale) {
  return guard([&] {
    if (q->scalar_type() == at::kFloat) {
      auto found = at::_efficient_attention_forward(
          *q, *k, *v, /*bias=*/std::nullopt, *q_starts, *k_starts, max_q, max_k, /*dropout_p=*/0.0,
          CAUSAL_FROM_BOTTOM_RIGHT, /*compute_log_sumexp=*/true, scale);
      *out = new at::Tensor(std::get<0>(found));
    } else {
      // A bound of one query makes the kernel swap heads and queries, for decoding; a bound may be too large.
      auto found = at::_flash_attention_forward(
          *q, *k, *v, *q_starts, *k_starts, std::max<int64_t>(max_q, 2), max_k, /*dropout_p=*/0.0, /*is_causal=*/true,
          /*return_debug_mask=*/false, scale);
      *out = new at::Tensor(std::get<0>(found));
    }
  });
}

// f32 means f32: no TF32 in products and convolutions (cuDNN has it on by default).
char* torch_ext_exact_f32() {
  return guard([] {
    at::globalContext().setAllowTF32CuBLAS(false);
    at::globalContext().setAllowTF32CuDNN(false);
  });
}

// Lets the allocator's blocks of memory grow in place instead of standing beside each other. Before anything is allocated.
char* torch_ext_expandable_segments() {
  return guard([] { c10::CachingAllocator::setAllocatorSettings("expandable_segments:True"); });
}

// Most bytes that tensors took at once, and that the allocator held.
char* torch_ext_cuda_peak(int device, int64_t* allocated, int64_t* reserved) {
  return guard([&] {
    auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *allocated = stats.allocated_bytes[all].peak;
    *reserved = stats.reserved_bytes[all].peak;
  });
}

// Starts the count of torch_ext_cuda_peak anew.
char* torch_ext_reset_cuda_peak(int device) {
  return guard([&] { c10::getDeviceAllocator(c10::kCUDA)->resetPeakStats(static_cast<c10::DeviceIndex>(device)); });
}

} // extern "C"
