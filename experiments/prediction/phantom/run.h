// Run an operation on the meta device, or on the host if its inputs are known, and create its results on the device.

#pragma once

#include <ATen/ops/as_strided_native.h>
#include <torch/library.h>

#include "card.h"
#include "copies.h"
#include "scratch.h"
#include "tensors.h"
#include "work.h"

namespace phantom {

// Return the argument with `change` applied to every tensor in it, also inside lists.
template <typename Change>
IValue map_tensors(const IValue& value, const Change& change) {
  if (value.isTensor()) return value.toTensor().defined() ? IValue(change(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<Tensor> mapped;
    for (const Tensor& tensor : value.toTensorVector()) mapped.push_back(change(tensor));
    return mapped;
  }
  if (value.isList() && !value.isIntList() && !value.isDoubleList() && !value.isBoolList()) {
    auto list = value.toList();
    auto mapped = c10::impl::GenericList(list.elementType());
    for (const IValue element : list) mapped.push_back(map_tensors(element, change));
    return mapped;
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

// Indexing by a mask returns as many elements as the mask has true elements. So masks with known values are converted
// to positions.
void replace_masks_by_positions(torch::jit::Stack* stack, size_t first) {
  for (size_t place = first; place < stack->size(); ++place) {
    IValue& argument = (*stack)[place];
    if (!argument.isList() || argument.toList().elementType()->kind() != c10::TypeKind::OptionalType) continue;
    auto positions = c10::List<std::optional<Tensor>>();
    for (const IValue element : argument.toList()) {
      if (!element.isTensor() || element.toTensor().scalar_type() != at::kBool || !has_readable_values(element.toTensor())) {
        positions.push_back(element.isTensor() ? std::optional<Tensor>(element.toTensor()) : std::nullopt);
        continue;
      }
      for (const Tensor& column : on_host(element.toTensor()).nonzero().unbind(1))
        positions.push_back(from_host(column));
    }
    argument = positions;
  }
}

// Return the common value of all elements of an operation's result, if it is known. Masks are such results: filled
// tensors, and concatenations of tensors that are filled with the same value.
std::optional<double> constant_result(const c10::FunctionSchema& schema, const std::vector<IValue>& arguments) {
  if (schema.name() == "aten::zero_") return 0.0;
  if (schema.name() == "aten::fill_" && arguments[1].isScalar()) return arguments[1].toScalar().toDouble();
  if (schema.name() != "aten::cat") return std::nullopt;
  std::optional<double> common;
  for (const Tensor& part : arguments[0].toTensorVector()) {
    const auto value = known_constant(part);
    if (!value || (common && *common != *value)) return std::nullopt;
    common = value;
  }
  return common;
}

// Some operations only write values that are not computed, in place or into given outputs. The device skips these
// operations. Return the tensors that such an operation would write, or nothing for all other operations.
std::optional<std::vector<IValue>> skipped_write(
    const c10::FunctionSchema& schema, const std::vector<IValue>& arguments) {
  const bool in_place = schema.name().back() == '_';
  std::vector<IValue> written;
  bool writes_no_values = true;
  for (size_t place = 0; place < arguments.size(); ++place) {
    const auto* alias = schema.arguments()[place].alias_info();
    if (!alias || !alias->isWrite()) continue;
    written.push_back(arguments[place]);
    each_tensor(arguments[place], [&](const Tensor& tensor) {
      writes_no_values =
          writes_no_values && is_on_device(tensor) && !has_readable_values(tensor) && (in_place || tensor.numel());
    });
  }
  if (writes_no_values)
    for (const IValue& argument : written)
      each_tensor(argument, [&](const Tensor& tensor) { record_constant(tensor, constant_result(schema, arguments)); });
  if (written.empty() || !writes_no_values || schema.returns().size() > written.size()) return std::nullopt;
  for (const auto& returned : schema.returns())
    if (!returned.alias_info() || !returned.alias_info()->isWrite()) return std::nullopt;
  written.resize(schema.returns().size());
  return written;
}

// Return a view of the tensor's storage with the type and shape of `result`. The type differs for views of complex
// numbers.
Tensor view_like(const Tensor& tensor, const Tensor& result) {
  if (tensor.scalar_type() == result.scalar_type())
    return at::native::as_strided_tensorimpl(tensor, result.sizes(), result.strides(), result.storage_offset());
  Tensor view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(tensor.storage()), tensor.key_set(), result.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(result.sizes(), result.strides(), result.storage_offset());
  return view;
}

// Allocate and free copies of inputs and scratch memory. Call this after the results of the operation are allocated.
void allocate_temporaries(
    const c10::FunctionSchema& schema, const std::vector<IValue>& arguments, const std::vector<IValue>& results) {
  const auto copied = make_copies(kCopiedAfter, schema.name(), arguments);
  allocate_scratch(schema, arguments, results);
}

void run(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size(), first = stack->size() - count;
  const IValue& bias = (*stack)[first];
  allocate_workspace(schema.name(), schema.name() == "aten::addmm" && bias.toTensor().dim() == 1);
  if (schema.name() == "aten::index" || schema.name() == "aten::index_put_" || schema.name() == "aten::_index_put_impl_")
    replace_masks_by_positions(stack, first);
  const std::vector<IValue> arguments(stack->begin() + first, stack->end());
  log_operation(schema, arguments);

  if (const auto written = skipped_write(schema, arguments)) {
    stack->erase(stack->begin() + first, stack->end());
    stack->insert(stack->end(), written->begin(), written->end());
    allocate_temporaries(schema, arguments, *written);
    return;
  }

  const bool selects_values = schema.name() == "aten::where";  // floating-point values are not computed
  bool all_values_readable = true, any_tensor = false;
  for (const IValue& argument : arguments)
    each_tensor(argument, [&](const Tensor& tensor) {
      any_tensor = true;
      const bool selects_floats = selects_values && at::isFloatingType(tensor.scalar_type());
      all_values_readable = all_values_readable && has_readable_values(tensor) && !selects_floats;
    });
  const bool values_known = any_tensor && all_values_readable;

  std::unordered_map<c10::TensorImpl*, Tensor> counterparts;
  std::vector<std::pair<Tensor, Tensor>> pairs;
  const auto counterpart = [&](const Tensor& tensor) {
    if (!values_known && tensor.unsafeGetTensorImpl()->is_wrapped_number()) return tensor;
    auto& created = counterparts[tensor.unsafeGetTensorImpl()];
    if (!created.defined()) {
      const auto on_cpu = tensor.options().device(at::kCPU);
      created = !values_known ? as_meta(tensor) : tensor.numel() ? on_host(tensor) : at::empty(tensor.sizes(), on_cpu);
      pairs.emplace_back(tensor, created);
    }
    return created;
  };
  const Device target(values_known ? DeviceType::CPU : DeviceType::Meta);
  for (size_t place = 0; place < count; ++place) {
    IValue& argument = (*stack)[first + place];
    argument = arguments[place].isDevice() ? IValue(target) : map_tensors(arguments[place], counterpart);
  }
  std::vector<Tensor> copied;
  if (!values_known) copied = make_copies_before(schema.name(), arguments);
  const auto copied_for_attention = allocate_attention_copies(schema.name(), arguments);
  op.redispatchBoxed(c10::DispatchKeySet(values_known ? c10::DispatchKey::CPU : c10::DispatchKey::Meta), stack);

  for (size_t place = 0; place < count && !values_known; ++place) {
    const auto* alias = schema.arguments()[place].alias_info();
    if (alias && alias->isWrite()) each_tensor(arguments[place], forget_values);
  }
  for (const auto& [tensor, other] : pairs) {
    if (!is_on_device(tensor) || tensor.sizes() == other.sizes()) continue;
    copy_shape(tensor, other);
    if (values_known && tensor.numel()) on_host(tensor).copy_(other);
  }
  const size_t returned = schema.returns().size(), start = stack->size() - returned;
  for (size_t place = 0; place < returned; ++place) {
    const auto* alias = schema.returns()[place].alias_info();
    (*stack)[start + place] = map_tensors((*stack)[start + place], [&](const Tensor& computed) -> Tensor {
      for (const auto& [tensor, other] : pairs) {
        if (other.is_same(computed)) return tensor;
        if (alias && !alias->isWrite() && is_on_device(tensor) && computed.storage().is_alias_of(other.storage()))
          return view_like(tensor, computed);
      }
      if (values_known) return from_host(computed);
      const Tensor result = empty_strided_on_device(computed.sizes(), computed.strides(), computed.scalar_type());
      forget_values(result);
      record_constant(result, constant_result(schema, arguments));
      allocate_scratch_of_result(schema, arguments, place, result);
      return result;
    });
  }
  if (!values_known) allocate_temporaries(schema, arguments, {stack->begin() + start, stack->end()});
}

}  // namespace phantom
