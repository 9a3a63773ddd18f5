// Process groups of c10d (libtorch's distributed engine) with a C interface: null on success, else a message to be freed.
//
// Gloo is in libtorch_cpu and linked. NCCL is in libtorch_cuda, which nothing here links to: its two constructors are looked up by name in
// the library that cuda.rs has opened, and everything else of it is virtual on c10d::Backend.

#include "guard.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <ATen/core/Tensor.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/headeronly/version.h>

#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <new>
#include <string>
#include <vector>

// What the header makes of the classes with gloo/*.h of this folder is what libtorch was built with.
static_assert(sizeof(c10d::ProcessGroupGloo) == 488, "another libtorch: compare src/gloo with its gloo");
static_assert(sizeof(c10d::ProcessGroupGloo::Options) == 176, "another libtorch: compare src/gloo with its gloo");
// The names of NCCL's constructors and the room for its objects below are those of this version.
static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "another libtorch: compare ProcessGroupNCCL.hpp");

namespace {

using Store = c10::intrusive_ptr<c10d::Store>;
using Backend = c10::intrusive_ptr<c10d::Backend>;
using Options = c10::intrusive_ptr<c10d::Backend::Options>;

// c10d::ProcessGroupNCCL takes 1112 bytes and its options 248 with NCCL 2.28; both grow with NCCL's own structures, so there is room to spare.
constexpr size_t ROOM_FOR_NCCL = 8192;

constexpr const char* NCCL_OPTIONS = "_ZN4c10d16ProcessGroupNCCL7OptionsC1Eb";
constexpr const char* NCCL_GROUP =
    "_ZN4c10d16ProcessGroupNCCLC1EN3c1013intrusive_ptrINS_5StoreENS1_6detail34intrusive_target_default_null_typeIS3_EEEEiiNS2_"
    "INS0_7OptionsENS5_IS8_EEEE";

template <typename Function> Function* find(const char* name) {
  void* found = dlsym(RTLD_DEFAULT, name);
  TORCH_CHECK(found != nullptr, "libtorch's CUDA library has no NCCL of the expected kind (", name, ")");
  return reinterpret_cast<Function*>(found);
}

// An object whose constructor is only known by name. Classes with one base each begin with that base.
template <typename Base, typename Construct> c10::intrusive_ptr<Base> construct(Construct construct) {
  void* room = ::operator new(ROOM_FOR_NCCL);
  std::memset(room, 0, ROOM_FOR_NCCL);
  try {
    construct(room);
  } catch (...) {
    ::operator delete(room);
    throw;
  }
  return c10::intrusive_ptr<Base>::unsafe_steal_from_new(static_cast<Base*>(room));
}

Backend nccl(const Store& store, int rank, int world, int device, std::chrono::milliseconds timeout) {
  // Both are looked up first: nothing is built half.
  auto new_options = find<void(void*, bool)>(NCCL_OPTIONS);
  auto new_group = find<void(void*, Store, int, int, Options)>(NCCL_GROUP);
  c10::impl::VirtualGuardImpl(c10::kCUDA).setDevice(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device)));
  Options options = construct<c10d::Backend::Options>([&](void* room) { new_options(room, false); });
  options->timeout = timeout;
  return construct<c10d::Backend>([&](void* room) { new_group(room, store, rank, world, options); });
}

} // namespace

extern "C" {

// The process among the others.
struct torch_ext_group {
  Store store;
  Backend gloo;
  Backend nccl; // null without a GPU
  std::chrono::milliseconds timeout;
};

} // extern "C"

namespace {

c10d::Backend& backend_of(torch_ext_group* group, const at::Tensor& tensor) {
  // Gloo does not look: it would read and write past the ends of what is not contiguous.
  TORCH_CHECK(tensor.is_contiguous(), "a process group takes contiguous tensors only");
  if (tensor.is_cpu()) return *group->gloo;
  TORCH_CHECK(tensor.is_cuda() && group->nccl, "this process group was not opened for tensors on ", tensor.device());
  return *group->nccl;
}

} // namespace

extern "C" {

// Waits until all `world` processes have come; the one with `server` holds the store at `host`:`port`.
char* torch_ext_group_join(
    torch_ext_group** out, const char* host, uint16_t port, int server, const char* prefix, int rank, int world, int64_t join_ms,
    int64_t timeout_ms) {
  return guard([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server != 0;
    options.numWorkers = static_cast<size_t>(world);
    options.waitWorkers = true;
    options.timeout = std::chrono::milliseconds(join_ms);
    options.multiTenant = true;
    Store tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
    Store store = c10::make_intrusive<c10d::PrefixStore>(prefix, tcp);
    const std::chrono::milliseconds timeout(timeout_ms);
    Store of_gloo = c10::make_intrusive<c10d::PrefixStore>("gloo", store);
    Backend gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(
        of_gloo, rank, world, c10d::ProcessGroupGloo::Options::create_default(timeout));
    *out = new torch_ext_group{store, gloo, Backend(), timeout};
  });
}

// Opens NCCL for tensors on CUDA device `device`.
char* torch_ext_group_open_gpu(torch_ext_group* group, int device) {
  return guard([&] {
    Store store = c10::make_intrusive<c10d::PrefixStore>("nccl", group->store);
    group->nccl = nccl(store, group->gloo->getRank(), group->gloo->getSize(), device, group->timeout);
  });
}

// Makes `tensor` the sum of those of all processes.
char* torch_ext_group_sum(torch_ext_group* group, at::Tensor* tensor) {
  return guard([&] {
    std::vector<at::Tensor> tensors{*tensor};
    backend_of(group, *tensor).allreduce(tensors)->wait();
  });
}

// Fills `out` with the `in` of all processes, one after the other.
char* torch_ext_group_gather(torch_ext_group* group, at::Tensor* out, at::Tensor* in) {
  return guard([&] {
    TORCH_CHECK(out->device() == in->device() && out->scalar_type() == in->scalar_type(), "two kinds of tensors");
    TORCH_CHECK(out->numel() == in->numel() * group->gloo->getSize(), "no room for what all processes give");
    backend_of(group, *out);
    backend_of(group, *in)._allgather_base(*out, *in)->wait();
  });
}

// Leaves; others that still wait are told by the closed connection.
char* torch_ext_group_leave(torch_ext_group* group) {
  return guard([&] {
    if (group->nccl) group->nccl->shutdown();
    delete group;
  });
}

} // extern "C"
