// Tensors of the device: create them, get views of them on the host and the meta device, change their shapes.

#pragma once

#include <ATen/EmptyTensor.h>

#include "log.h"

namespace phantom {

const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

Tensor empty_strided_on_device(c10::IntArrayRef sizes, c10::IntArrayRef strides, c10::ScalarType type) {
  return at::detail::empty_strided_generic(sizes, strides, allocator_of(type), kKeys, type);
}

c10::ScalarType type_or_default(std::optional<c10::ScalarType> type) {
  return type.value_or(c10::typeMetaToScalarType(at::get_default_dtype()));
}

// While it exists, memory is allocated on the GPU of a device after the first, if one is given. A rank has one GPU only.
struct OnGpu {
  explicit OnGpu(std::optional<Device> device) : before(current_gpu) {
    if (device && device->index() > 0 && !ignores_gpu_numbers) current_gpu = device->index();
  }
  ~OnGpu() { current_gpu = before; }
  const int64_t before;
};

Tensor empty(
    c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>, std::optional<Device> device,
    std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  const OnGpu gpu(device);
  const auto scalar = type_or_default(type);
  return at::detail::empty_generic(size, allocator_of(scalar), kKeys, scalar, format);
}

Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
    std::optional<Device> device, std::optional<bool>) {
  const OnGpu gpu(device);
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

// Return the value of all elements of a tensor, if they are equal and known. Tensors on the host without memory are larger.
std::optional<double> known_constant(const Tensor& tensor) {
  const Block* block = is_on_device(tensor) ? find_block(tensor) : nullptr;
  if (block && block->constant) return block->constant;
  const bool on_any = is_on_device(tensor) || tensor.device().is_cpu();
  if (!on_any || !tensor.numel() || tensor.nbytes() > kMiB || tensor.is_complex() || !has_readable_values(tensor)) return std::nullopt;
  const auto [least, most] = at::aminmax(on_host(tensor));
  return at::equal(least, most) ? std::optional<double>(least.item<double>()) : std::nullopt;
}

// Record the value of all elements of a floating-point tensor, if it is its whole storage. Masks are such tensors.
void record_constant(const Tensor& tensor, std::optional<double> value) {
  Block* block = is_on_device(tensor) ? find_block(tensor) : nullptr;
  if (!block) return;
  const bool whole = tensor.nbytes() == tensor.storage().nbytes() && tensor.is_non_overlapping_and_dense();
  block->constant = whole ? value : std::nullopt;
}

Tensor from_host(const Tensor& tensor) {
  Tensor made = empty_strided_on_device(tensor.sizes(), tensor.strides(), tensor.scalar_type());
  if (has_readable_values(made) && made.numel()) on_host(made).copy_(tensor);
  return made;
}

// Return a tensor of the same shape on the meta device.
Tensor as_meta(const Tensor& tensor) {
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
      c10::DataPtr(nullptr, Device(DeviceType::Meta)), c10::GetAllocator(DeviceType::Meta), true);
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::Meta), tensor.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return made;
}

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
