// Log of the operations that a GPU would execute. Each is a key: the operation, and the types and shapes of its
// arguments.

#pragma once

#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <sstream>

#include "log.h"

namespace phantom {

constexpr size_t kLongList = 8;  // longer lists are written as their number of elements

struct Work {
  std::mutex mutex;
  std::unordered_map<std::string, int64_t> numbers;  // key -> its position in `keys`
  std::vector<const std::string*> keys;
  std::vector<int64_t> executed;  // numbers of keys, in the order of execution
  // Stream -> number of the last operation that it executes or waits for, counted from 1.
  std::unordered_map<int64_t, int64_t> last_on_stream;
  std::vector<std::pair<int64_t, int64_t>> waits;  // of the host: operations started, and those that it waited for
  std::vector<bool> recomputed;   // whether the operation repeats a forward pass during a backward pass
};

Work& work() {
  static Work* device_work = new Work;
  return *device_work;
}

int64_t last_operation_on(int64_t stream) {
  auto& device_work = work();
  std::lock_guard<std::mutex> lock(device_work.mutex);
  return device_work.last_on_stream[stream];
}

int64_t started_operations() {
  auto& device_work = work();
  std::lock_guard<std::mutex> lock(device_work.mutex);
  return static_cast<int64_t>(device_work.executed.size());
}

// Record that the host waits until the GPU has executed the first `operations` operations.
void record_wait(int64_t operations) {
  auto& device_work = work();
  std::lock_guard<std::mutex> lock(device_work.mutex);
  device_work.waits.emplace_back(static_cast<int64_t>(device_work.executed.size()), operations);
}

// Make a stream wait until the GPU has executed the first `operations` operations.
void make_stream_wait(int64_t stream, int64_t operations) {
  auto& device_work = work();
  std::lock_guard<std::mutex> lock(device_work.mutex);
  int64_t& last = device_work.last_on_stream[stream];
  last = std::max(last, operations);
}

void log_key(const std::string& key) {
  auto& device_work = work();
  std::lock_guard<std::mutex> lock(device_work.mutex);
  const auto [place, added] = device_work.numbers.try_emplace(key, static_cast<int64_t>(device_work.keys.size()));
  if (added) device_work.keys.push_back(&place->first);
  device_work.executed.push_back(place->second);
  device_work.last_on_stream[current_stream] = static_cast<int64_t>(device_work.executed.size());
  device_work.recomputed.push_back(at::GradMode::is_enabled() && torch::autograd::get_current_graph_task_id() != -1);
}

template <typename Values>
void write_numbers(std::ostream& out, const Values& values) {
  out << '[';
  bool first = true;
  for (const auto value : values) {
    out << (first ? "" : ",") << value;
    first = false;
  }
  out << ']';
}

void write_tensor(std::ostream& out, const Tensor& tensor) {
  out << "{\"type\":\"" << c10::toString(tensor.scalar_type()) << "\",\"sizes\":";
  write_numbers(out, tensor.sizes());
  if (!tensor.is_contiguous()) {
    out << ",\"strides\":";
    write_numbers(out, tensor.strides());
  }
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) out << ",\"scalar\":1";
  else if (!is_on_device(tensor)) out << ",\"host\":1";
  out << '}';
}

// Long lists, such as all parameters of a model, are written as their number of tensors and of elements.
void write_tensors(std::ostream& out, const std::vector<Tensor>& tensors) {
  if (tensors.size() <= kLongList) {
    out << '[';
    for (size_t place = 0; place < tensors.size(); ++place) {
      out << (place ? "," : "");
      write_tensor(out, tensors[place]);
    }
    out << ']';
    return;
  }
  int64_t elements = 0;
  for (const Tensor& tensor : tensors) elements += tensor.numel();
  out << "{\"type\":\"" << c10::toString(tensors[0].scalar_type()) << "\",\"tensors\":" << tensors.size()
      << ",\"elements\":" << elements << (is_on_device(tensors[0]) ? "" : ",\"host\":1") << '}';
}

void write_argument(std::ostream& out, const IValue& value, bool is_type) {
  if (value.isTensor() && value.toTensor().defined()) return write_tensor(out, value.toTensor());
  if (value.isTensorList()) return write_tensors(out, value.toTensorVector());
  if (value.isIntList()) return write_numbers(out, value.toIntVector());
  if (value.isInt() && is_type) out << "{\"dtype\":\"" << c10::toString(static_cast<c10::ScalarType>(value.toInt())) << "\"}";
  else if (value.isInt()) out << value.toInt();
  else if (value.isDouble() && std::isfinite(value.toDouble())) out << value.toDouble();
  else if (value.isBool()) out << (value.toBool() ? "true" : "false");
  else if (value.isString()) out << '"' << value.toStringRef() << '"';
  else if (value.isDevice()) out << "{\"device\":1}";
  else if (value.isList()) {
    const auto list = value.toListRef();
    if (list.size() > kLongList && !list[0].isTensor()) {
      out << "{\"values\":" << list.size() << '}';
      return;
    }
    out << '[';
    for (size_t place = 0; place < list.size(); ++place) {
      out << (place ? "," : "");
      write_argument(out, list[place], false);
    }
    out << ']';
  } else out << "null";
}

bool is_data_type(const c10::Argument& argument) {
  auto type = argument.real_type();
  if (const auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  return type->kind() == c10::TypeKind::ScalarTypeType;
}

// Layouts and memory formats are integers too. They are written as null, the default.
bool is_layout_or_memory_format(const c10::Argument& argument) {
  auto type = argument.real_type();
  if (const auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  return type->kind() == c10::TypeKind::LayoutType || type->kind() == c10::TypeKind::MemoryFormatType;
}

void log_operation(const c10::FunctionSchema& schema, const std::vector<IValue>& arguments) {
  std::ostringstream out;
  out << "[\"" << schema.name() << '.' << (schema.overload_name().empty() ? "default" : schema.overload_name()) << '"';
  for (size_t place = 0; place < arguments.size(); ++place) {
    const auto& argument = schema.arguments()[place];
    out << ',';
    if (is_layout_or_memory_format(argument)) out << "null";
    else write_argument(out, arguments[place], is_data_type(argument));
  }
  out << ']';
  log_key(out.str());
}

// Log an operation that has an implementation of its own on the device.
template <typename... Arguments>
void log_operation(const char* name, const Arguments&... arguments) {
  std::ostringstream out;
  out << "[\"" << name << '"';
  ((out << ',', write_argument(out, IValue(arguments), false)), ...);
  out << ']';
  log_key(out.str());
}

}  // namespace phantom
