// How many threads libtorch uses from one thread, and gradients that are handed over rather than added to leaves; C interface as in ext.cpp.

#include "guard.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

using at::Tensor;

// Of libtorch's own library for products of matrices, for the calling thread alone; absent where it was built with another.
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);

extern "C" {

// Whether threads that call libtorch can each be given a number of its threads.
int torch_ext_has_lanes() {
#if defined(_OPENMP) && AT_PARALLEL_OPENMP
  return 1;
#else
  return 0;
#endif
}

// From here on libtorch uses as many threads for what the calling thread asks for; at::set_num_threads would also change the number that
// threads start with.
char* torch_ext_use_threads(int threads) {
  return guard([&] {
    // A thread's first operation would set its number again: once for what is compiled here, once for libtorch's own.
    at::internal::lazy_init_num_threads();
    at::get_num_threads();
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(threads);
  });
}

int torch_ext_keeps_graph() { return at::GradMode::is_enabled(); }

// Gradients of `of`, weighted by `gradient`, with respect to `count` tensors; null for those that it does not depend on.
char* torch_ext_gradients(
    Tensor** out, const Tensor* of, const Tensor* gradient, int64_t count, const Tensor* const* inputs) {
  return guard([&] {
    std::vector<Tensor> wanted;
    for (int64_t i = 0; i < count; ++i) wanted.push_back(*inputs[i]);
    const auto found = torch::autograd::grad(
        {*of}, wanted, {*gradient}, /*retain_graph=*/std::nullopt, /*create_graph=*/false, /*allow_unused=*/true);
    for (int64_t i = 0; i < count; ++i) out[i] = found[i].defined() ? new Tensor(found[i]) : nullptr;
  });
}

// Adds to a leaf's gradient, as autograd itself does.
char* torch_ext_add_gradient(const Tensor* leaf, const Tensor* gradient) {
  return guard([&] {
    at::NoGradGuard no_grad;
    Tensor& sum = leaf->mutable_grad();
    if (sum.defined()) {
      sum.add_(*gradient);
    } else {
      sum = gradient->detach().clone();
    }
  });
}

} // extern "C"
