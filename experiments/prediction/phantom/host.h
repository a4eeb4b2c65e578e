// Simulated host memory: all allocations are counted, and large tensors have addresses but no memory.

#pragma once

#include <ATen/ops/copy_native.h>
#include <ATen/ops/fill_native.h>
#include <ATen/ops/normal_native.h>
#include <ATen/ops/uniform_native.h>
#include <ATen/ops/zero_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <sys/mman.h>

#include <atomic>
#include <mutex>
#include <unordered_set>

#include "log.h"

namespace phantom {

// Large host tensors only reserve address space: nothing writes to them, but their sizes count. Pinned tensors are
// large from a smaller size, because offloading keeps many activations in pinned memory. Pinned integers between both
// sizes are written nevertheless, because programs read masks.
constexpr size_t kLargeOnHost = 16 * kMiB, kLargePinned = kMiB;

std::atomic<bool> host_memory_counted{false};
std::atomic<int64_t> host_bytes{0}, host_peak{0};

std::mutex pinned_mutex;
std::unordered_set<const void*> pinned;

struct HostBlock {
  void* data;
  size_t bytes;
  bool is_pinned, is_reserved;
};

bool is_pinned(const void* data) {
  std::lock_guard<std::mutex> lock(pinned_mutex);
  return pinned.count(data) > 0;
}

void release_on_host(void* context) {
  auto* block = static_cast<HostBlock*>(context);
  host_bytes -= static_cast<int64_t>(block->bytes);
  if (block->is_pinned) {
    std::lock_guard<std::mutex> lock(pinned_mutex);
    pinned.erase(block->data);
  }
  if (block->is_reserved) munmap(block->data, block->bytes);
  else c10::free_cpu(block->data);
  delete block;
}

struct HostAllocator final : c10::Allocator {
  explicit HostAllocator(bool pins) : pins(pins) {}
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release_on_host, Device(DeviceType::CPU)};
    const bool reserves = bytes >= (pins ? kLargePinned : kLargeOnHost);
    void* data = reserves
        ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        : c10::alloc_cpu(bytes);
    TORCH_CHECK(data != MAP_FAILED, "no address space for ", bytes, " bytes on the host");
    const int64_t now = host_bytes += static_cast<int64_t>(bytes);
    if (now > host_peak) host_peak = now;
    if (pins) {
      std::lock_guard<std::mutex> lock(pinned_mutex);
      pinned.insert(data);
    }
    return {data, new HostBlock{data, bytes, pins, reserves}, &release_on_host, Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    if (bytes < kLargeOnHost) default_copy_data(to, from, bytes);
  }

  const bool pins;
};

HostAllocator host_allocator(false), pinned_allocator(true);

bool is_large_on_host(const Tensor& tensor) {
  if (!host_memory_counted || !tensor.device().is_cpu()) return false;
  const size_t bytes = tensor.storage().nbytes();
  if (bytes >= kLargeOnHost) return true;
  return bytes >= kLargePinned && tensor.is_floating_point() && is_pinned(tensor.storage().data());
}

Tensor& copy_on_host(Tensor& self, const Tensor& source, bool non_blocking) {
  if (is_large_on_host(self) || is_large_on_host(source)) return self;
  return at::native::copy_(self, source, non_blocking);
}

Tensor& zero_on_host(Tensor& self) { return is_large_on_host(self) ? self : at::native::zero_(self); }

Tensor& fill_on_host(Tensor& self, const at::Scalar& value) {
  return is_large_on_host(self) ? self : at::native::fill_(self, value);
}

Tensor& normal_on_host(Tensor& self, double mean, double std, std::optional<at::Generator> generator) {
  return is_large_on_host(self) ? self : at::native::normal_(self, mean, std, std::move(generator));
}

Tensor& uniform_on_host(Tensor& self, double from, double to, std::optional<at::Generator> generator) {
  return is_large_on_host(self) ? self : at::native::uniform_(self, from, to, std::move(generator));
}

}  // namespace phantom
