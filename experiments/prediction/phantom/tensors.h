// Tensors of the device: create them, get views of them on the host and the meta device, change their shapes.

#pragma once

#include <ATen/EmptyTensor.h>

#include "log.h"

namespace phantom {

const c10::DispatchKeySet kDispatchKeys(c10::DispatchKey::CUDA);

Tensor empty_strided_on_device(c10::IntArrayRef sizes, c10::IntArrayRef strides, c10::ScalarType type) {
  return at::detail::empty_strided_generic(sizes, strides, allocator_of(type), kDispatchKeys, type);
}

c10::ScalarType type_or_default(std::optional<c10::ScalarType> type) {
  return type.value_or(c10::typeMetaToScalarType(at::get_default_dtype()));
}

// While this object exists, memory is allocated on the GPU of `device`, if that is not the first GPU. A rank uses a
// single GPU.
struct GpuGuard {
  explicit GpuGuard(std::optional<Device> device) : previous_gpu(current_gpu) {
    if (device && device->index() > 0 && !ignores_gpu_numbers) current_gpu = device->index();
  }
  ~GpuGuard() { current_gpu = previous_gpu; }
  const int64_t previous_gpu;
};

Tensor empty(
    c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>, std::optional<Device> device,
    std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  const GpuGuard gpu(device);
  const auto scalar = type_or_default(type);
  return at::detail::empty_generic(size, allocator_of(scalar), kDispatchKeys, scalar, format);
}

Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
    std::optional<Device> device, std::optional<bool>) {
  const GpuGuard gpu(device);
  return empty_strided_on_device(size, stride, type_or_default(type));
}

// Return a host tensor that shares the values.
Tensor on_host(const Tensor& tensor) {
  if (!is_on_device(tensor)) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.scalar_type()).device(at::kCPU);
  if (!tensor.storage().data_ptr().get()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  char* data = static_cast<char*>(tensor.storage().data_ptr().get()) + tensor.storage_offset() * tensor.itemsize();
  return at::from_blob(data, tensor.sizes(), tensor.strides(), options);
}

// Return the value of all elements of a tensor, if they are equal and known. Tensors of more than 1 MiB are not read,
// because large tensors on the host have no memory.
std::optional<double> known_constant(const Tensor& tensor) {
  const Block* block = is_on_device(tensor) ? find_block(tensor) : nullptr;
  if (block && block->constant) return block->constant;
  const bool is_supported = (is_on_device(tensor) || tensor.device().is_cpu()) &&
      !c10::isBarebonesUnsignedType(tensor.scalar_type());  // aminmax does not support these types
  if (!is_supported || !tensor.numel() || tensor.nbytes() > kMiB || tensor.is_complex() || !has_readable_values(tensor))
    return std::nullopt;
  const auto [least, most] = at::aminmax(on_host(tensor));
  return at::equal(least, most) ? std::optional<double>(least.item<double>()) : std::nullopt;
}

// Record the value of all elements of a floating-point tensor, if the tensor fills its storage. Masks are such tensors.
void record_constant(const Tensor& tensor, std::optional<double> value) {
  Block* block = is_on_device(tensor) ? find_block(tensor) : nullptr;
  if (!block) return;
  const bool fills_storage = tensor.nbytes() == tensor.storage().nbytes() && tensor.is_non_overlapping_and_dense();
  block->constant = fills_storage ? value : std::nullopt;
}

Tensor from_host(const Tensor& tensor) {
  Tensor result = empty_strided_on_device(tensor.sizes(), tensor.strides(), tensor.scalar_type());
  if (has_readable_values(result) && result.numel()) on_host(result).copy_(tensor);
  return result;
}

// Return a tensor of the same shape on the meta device.
Tensor as_meta(const Tensor& tensor) {
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
      c10::DataPtr(nullptr, Device(DeviceType::Meta)), c10::GetAllocator(DeviceType::Meta), true);
  auto result = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::Meta), tensor.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return result;
}

// Give a tensor the sizes and strides of `shape`. Allocate a larger storage if they need one.
void copy_shape(const Tensor& tensor, const Tensor& shape) {
  auto* impl = tensor.unsafeGetTensorImpl();
  const size_t bytes = at::detail::computeStorageNbytes(
      shape.sizes(), shape.strides(), tensor.itemsize(), tensor.storage_offset());
  if (bytes > tensor.storage().nbytes()) {
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(allocator_of(tensor.scalar_type())->allocate(bytes));
    storage->set_nbytes(bytes);
  }
  impl->set_sizes_and_strides(shape.sizes(), shape.strides());
}

}  // namespace phantom
