// Run an operation on the meta device, or on the host if its values are known, and create its results on the device.

#pragma once

#include <ATen/ops/as_strided_native.h>
#include <torch/library.h>

#include "card.h"
#include "scratch.h"
#include "tensors.h"

namespace phantom {

// Apply `change` to every tensor in an argument, also inside lists.
template <typename Change>
IValue changed(const IValue& value, const Change& change) {
  if (value.isTensor()) return value.toTensor().defined() ? IValue(change(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<Tensor> made;
    for (const Tensor& tensor : value.toTensorVector()) made.push_back(change(tensor));
    return made;
  }
  if (value.isList() && !value.isIntList() && !value.isDoubleList() && !value.isBoolList()) {
    auto list = value.toList();
    auto made = c10::impl::GenericList(list.elementType());
    for (const IValue element : list) made.push_back(changed(element, change));
    return made;
  }
  return value;
}

// Call `visit` for every tensor in an argument, also inside lists.
template <typename Visit>
void each_tensor(const IValue& value, const Visit& visit) {
  if (value.isTensor() && value.toTensor().defined()) visit(value.toTensor());
  if (value.isList())
    for (const IValue element : value.toListRef()) each_tensor(element, visit);
}

// Indexing by a mask has as many results as the mask has true elements. So the mask is converted to positions, which
// needs its values.
void positions_for_masks(torch::jit::Stack* stack, size_t first) {
  for (size_t place = first; place < stack->size(); ++place) {
    IValue& argument = (*stack)[place];
    if (!argument.isList() || argument.toList().elementType()->kind() != c10::TypeKind::OptionalType) continue;
    auto made = c10::List<std::optional<Tensor>>();
    for (const IValue element : argument.toList()) {
      if (!element.isTensor() || element.toTensor().scalar_type() != at::kBool || !readable(element.toTensor())) {
        made.push_back(element.isTensor() ? std::optional<Tensor>(element.toTensor()) : std::nullopt);
        continue;
      }
      for (const Tensor& column : on_host(element.toTensor()).nonzero().unbind(1)) made.push_back(from_host(column));
    }
    argument = made;
  }
}

// Keep the value of a whole tensor that is filled with one, such as a mask of ones; forget it at any other write.
void keep_constant(const Tensor& tensor, const c10::FunctionSchema& schema, const std::vector<IValue>& arguments) {
  Block* block = is_here(tensor) ? block_of(tensor) : nullptr;
  if (!block) return;
  block->constant.reset();
  const bool whole = tensor.nbytes() == tensor.storage().nbytes() && tensor.is_non_overlapping_and_dense();
  if (!whole) return;
  if (schema.name() == "aten::zero_") block->constant = 0.0;
  if (schema.name() == "aten::fill_" && arguments[1].isScalar()) block->constant = arguments[1].toScalar().toDouble();
}

// An operation that only writes values that are not computed, in place or into given outputs, has no effect. It returns
// the tensors that it would write.
std::optional<std::vector<IValue>> nothing_to_write(
    const c10::FunctionSchema& schema, const std::vector<IValue>& arguments) {
  const bool in_place = schema.name().back() == '_';
  std::vector<IValue> written;
  bool nothing = true;
  for (size_t place = 0; place < arguments.size(); ++place) {
    const auto* alias = schema.arguments()[place].alias_info();
    if (!alias || !alias->isWrite()) continue;
    written.push_back(arguments[place]);
    each_tensor(arguments[place], [&](const Tensor& tensor) {
      nothing = nothing && is_here(tensor) && !readable(tensor) && (in_place || tensor.numel());
    });
  }
  if (nothing)
    for (const IValue& one : written) each_tensor(one, [&](const Tensor& tensor) { keep_constant(tensor, schema, arguments); });
  if (written.empty() || !nothing || schema.returns().size() > written.size()) return std::nullopt;
  for (const auto& returned : schema.returns())
    if (!returned.alias_info() || !returned.alias_info()->isWrite()) return std::nullopt;
  written.resize(schema.returns().size());
  return written;
}

// Return a view of the tensor's storage with the type and shape of `made`, which differ for complex numbers.
Tensor view_like(const Tensor& tensor, const Tensor& made) {
  if (tensor.scalar_type() == made.scalar_type())
    return at::native::as_strided_tensorimpl(tensor, made.sizes(), made.strides(), made.storage_offset());
  Tensor view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(tensor.storage()), tensor.key_set(), made.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(made.sizes(), made.strides(), made.storage_offset());
  return view;
}

void run(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size(), first = stack->size() - count;
  use_workspace(schema.name());
  if (schema.name() == "aten::index" || schema.name() == "aten::index_put_" || schema.name() == "aten::_index_put_impl_")
    positions_for_masks(stack, first);
  const std::vector<IValue> arguments(stack->begin() + first, stack->end());

  if (const auto written = nothing_to_write(schema, arguments)) {
    stack->erase(stack->begin() + first, stack->end());
    stack->insert(stack->end(), written->begin(), written->end());
    use_scratch(schema, arguments);
    return;
  }

  const bool choosing = schema.name() == "aten::where";  // the values of floats are not computed
  bool all_readable = true, any_tensor = false;
  for (const IValue& argument : arguments)
    each_tensor(argument, [&](const Tensor& tensor) {
      any_tensor = true;
      const bool float_to_choose = choosing && at::isFloatingType(tensor.scalar_type());
      all_readable = all_readable && readable(tensor) && !float_to_choose;
    });
  const bool on_values = any_tensor && all_readable;

  std::unordered_map<c10::TensorImpl*, Tensor> twins;
  std::vector<std::pair<Tensor, Tensor>> pairs;
  const auto twin = [&](const Tensor& tensor) {
    if (!on_values && tensor.unsafeGetTensorImpl()->is_wrapped_number()) return tensor;
    auto& made = twins[tensor.unsafeGetTensorImpl()];
    if (!made.defined()) {
      const auto on_cpu = tensor.options().device(at::kCPU);
      made = !on_values ? as_meta(tensor) : tensor.numel() ? on_host(tensor) : at::empty(tensor.sizes(), on_cpu);
      pairs.emplace_back(tensor, made);
    }
    return made;
  };
  const Device elsewhere(on_values ? DeviceType::CPU : DeviceType::Meta);
  for (size_t place = 0; place < count; ++place) {
    IValue& argument = (*stack)[first + place];
    argument = arguments[place].isDevice() ? IValue(elsewhere) : changed(arguments[place], twin);
  }
  op.redispatchBoxed(c10::DispatchKeySet(on_values ? c10::DispatchKey::CPU : c10::DispatchKey::Meta), stack);

  for (size_t place = 0; place < count && !on_values; ++place) {
    const auto* alias = schema.arguments()[place].alias_info();
    if (alias && alias->isWrite()) each_tensor(arguments[place], forget_values);
  }
  for (const auto& [tensor, made] : pairs) {
    if (!is_here(tensor) || tensor.sizes() == made.sizes()) continue;
    take_shape(tensor, made);
    if (on_values && tensor.numel()) on_host(tensor).copy_(made);
  }
  const size_t returned = schema.returns().size(), start = stack->size() - returned;
  for (size_t place = 0; place < returned; ++place) {
    const auto* alias = schema.returns()[place].alias_info();
    (*stack)[start + place] = changed((*stack)[start + place], [&](const Tensor& made) -> Tensor {
      for (const auto& [tensor, other] : pairs) {
        if (other.is_same(made)) return tensor;
        if (alias && !alias->isWrite() && is_here(tensor) && made.storage().is_alias_of(other.storage()))
          return view_like(tensor, made);
      }
      if (on_values) return from_host(made);
      const Tensor result = empty_strided_here(made.sizes(), made.strides(), made.scalar_type());
      forget_values(result);
      return result;
    });
  }
  if (!on_values) use_scratch(schema, arguments);
}

}  // namespace phantom
