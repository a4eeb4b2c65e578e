// Implementation of PyTorch's interfaces for a CUDA backend: devices, streams and events (Guard), and properties
// (Hooks).
#pragma once

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "host.h"
#include "operations.h"
#include "run.h"

namespace phantom {

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream stream(int64_t id) const { return Stream(Stream::UNSAFE, kDevice, id); }
  Stream getStream(Device) const override { return stream(current_stream); }
  Stream getDefaultStream(Device) const override { return stream(0); }
  Stream getStreamFromGlobalPool(Device, bool) const override { return stream(1); }
  Stream getNewStream(Device, int) const override { return stream(++streams); }
  Stream exchangeStream(Stream next) const override {
    const int64_t before = current_stream;
    current_stream = next.id();
    return stream(before);
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  // An event is the number of the last operation before it, in place of a pointer. Queries always return true, so they
  // count as waits of the host.
  static int64_t operations_before(void* event) { return reinterpret_cast<intptr_t>(event); }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void record(void** event, const Stream& on, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = reinterpret_cast<void*>(static_cast<intptr_t>(last_operation_on(on.id())));
  }
  void block(void* event, const Stream& waiting) const override { make_stream_wait(waiting.id(), operations_before(event)); }
  bool queryEvent(void* event) const override {
    synchronizeEvent(event);
    return true;
  }
  bool queryStream(const Stream& waited_for) const override {
    synchronizeStream(waited_for);
    return true;
  }
  void synchronizeStream(const Stream& waited_for) const override { record_wait(last_operation_on(waited_for.id())); }
  void synchronizeEvent(void* event) const override { record_wait(operations_before(event)); }
  double elapsedTime(void*, void*, const c10::DeviceIndex) const override { return 1.0; }
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr& data, const Stream& stream) const override { record_use(data, stream.id()); }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  bool compiledWithCuDNN() const override { return true; }
  bool supportsBFloat16RNNWithCuDNN() const { return true; }  // overrides since PyTorch 2.10
  // Never normalize batches with cuDNN. PyTorch's own kernels need the same memory.
  double batchnormMinEpsilonCuDNN() const override { return std::numeric_limits<double>::infinity(); }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

}  // namespace phantom
