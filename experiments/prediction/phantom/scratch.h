// Scratch memory that CUDA kernels allocate when they start and free when they end.

#pragma once

#include <ATen/WrapDimUtilsMulti.h>

#include <numeric>
#include <sstream>

#include "attention.h"
#include "card.h"
#include "convolution.h"

namespace phantom {

// Return the largest power of two that is at most `value` and at most `most`.
int64_t power_of_two_up_to(int64_t value, int64_t most) {
  int64_t power = 1;
  while (2 * power <= std::min(value, most)) power *= 2;
  return power;
}

// Return the scratch bytes of a sum over the outer dimensions in memory: the leading dimensions, or all but the
// channels if these are last. The thread blocks combine their sums in global memory if each thread has many values.
// Source: setReduceConfig in ATen/native/cuda/Reduce.cuh.
int64_t sum_scratch_bytes(const Tensor& tensor, c10::OptionalIntArrayRef dimensions) {
  if (!dimensions || !tensor.numel() || static_cast<int64_t>(dimensions->size()) >= tensor.dim()) return 0;
  const bool channels_last = !tensor.is_contiguous() && tensor.is_contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor input = channels_last ? tensor.permute({0, 2, 3, 1}) : tensor;
  if (!input.is_contiguous()) return 0;
  int64_t rows = 1;
  const auto reduced = at::dim_list_to_bitset(dimensions, tensor.dim());
  for (int64_t place = 0; place < static_cast<int64_t>(dimensions->size()); ++place) {
    if (!reduced[channels_last && place ? place + 1 : place]) return 0;
    rows *= input.size(place);
  }
  const int64_t outputs = input.numel() / rows, vector = outputs % 4 == 0 ? 4 : outputs % 2 == 0 ? 2 : 1;
  const int64_t threads = 512 / vector, across = power_of_two_up_to(outputs / vector, threads);
  const int64_t height = power_of_two_up_to(rows, threads / std::min<int64_t>(across, 32));
  const int64_t width = std::min(across, threads / height);
  const int64_t values = divide_rounding_up(rows, height), grid = divide_rounding_up(outputs / vector, width);
  const int64_t wanted_blocks = card.multiprocessors * (2048 / (width * height));
  if (values < 256 || grid > wanted_blocks) return 0;
  const int64_t blocks = std::max(
      std::min(divide_rounding_up(wanted_blocks, grid), divide_rounding_up(values, 16)),
      divide_rounding_up(values, 256));
  const int64_t accumulated = input.scalar_type() == at::kDouble ? 8 : 4;
  return blocks > 1 ? accumulated * outputs * blocks * width * vector : 0;
}

// Return the scratch bytes of a sum over all dimensions but the second one, the channels.
int64_t sum_but_channels_scratch_bytes(const Tensor& input) {
  std::vector<int64_t> dimensions(input.dim());
  std::iota(dimensions.begin(), dimensions.end(), 0);
  dimensions.erase(dimensions.begin() + 1);
  return sum_scratch_bytes(input, dimensions);
}

// Return the scratch bytes of the backward pass of cuDNN's attention: the gradient of the query in 32 bit, a sum for
// each row, and the gradients of keys and values for each head of the query if heads share them. Measured with cuDNN
// 9.19 on an H200. query, key: batch x heads x length x width.
int64_t cudnn_attention_backward_scratch_bytes(const Tensor& query, const Tensor& key) {
  const int64_t heads = query.size(0) * query.size(1), width = query.size(3);
  const int64_t shared = query.size(1) > key.size(1) ? 2 * heads * key.size(2) * width * query.element_size() : 0;
  return 4 * heads * query.size(2) * (width + 1) + shared + 256;
}

// Return the scratch bytes of the backward pass of an embedding. The positions of more than 3072 tokens are sorted, and
// the gradients of each token are summed in parts. Source: EmbeddingBackwardKernel.cu.
int64_t embedding_backward_scratch_bytes(const Tensor& gradient, const Tensor& tokens, int64_t rows) {
  const int64_t count = tokens.numel();
  return count > 3072 ? 4 * (count / 10 + std::min(count, rows)) * gradient.size(-1) : 0;
}

// Return a key that is equal for convolutions for which cuDNN searches the fastest algorithm only once. pass: -1 for
// the forward pass, 0 for the gradient of the input, 1 for the gradient of the weights.
std::string convolution_key(const Tensor& input, const Tensor& weight, const std::vector<int64_t>& stride, int64_t pass) {
  std::ostringstream key;
  key << pass << input.sizes() << input.strides() << input.scalar_type() << weight.sizes() << weight.strides() << stride;
  return key.str();
}

// Allocate and free the temporary memory of a convolution. With torch.backends.cudnn.benchmark, cuDNN first runs all
// algorithms for each new shape; then PyTorch frees its cache. If the memory is not free, PyTorch tries cuDNN's next
// algorithm, down to one without temporary memory (ATen/native/cudnn/Conv_v8.cpp).
void allocate_with_search(int64_t bytes, int64_t searched_bytes, const std::string& key) {
  static std::set<std::string> searched;
  const auto allocate_and_free = [](int64_t size) {
    if (size) allocate_block(size, false, true);
  };
  if (at::globalContext().benchmarkCuDNN() && searched.insert(key).second) {
    allocate_and_free(std::max(bytes, searched_bytes));
    empty_cache();
  }
  allocate_and_free(bytes);
}

void allocate_convolution_scratch(const std::vector<IValue>& arguments, const std::vector<IValue>& results) {
  const bool transposed = arguments[6].toBool();
  const Convolution convolution(
      arguments[0].toTensor(), arguments[1].toTensor(), results[0].toTensor(), arguments[3].toIntVector(),
      arguments[5].toIntVector(), transposed, arguments[8].toInt());
  allocate_with_search(
      transposed ? convolution.backward_bytes() : convolution.forward_bytes(), convolution.searched_bytes(false),
      convolution_key(arguments[0].toTensor(), arguments[1].toTensor(), arguments[3].toIntVector(), -1));
}

// Allocate and free the temporary memory for one of the results of a convolution's backward pass, which are computed
// one after the other: the gradients of the input, of the weights, and of the bias, which is a sum. Call this after the
// result is allocated.
void allocate_scratch_of_result(
    const c10::FunctionSchema& schema, const std::vector<IValue>& arguments, size_t place, const Tensor& result) {
  if (schema.name() != "aten::convolution_backward" || !result.defined()) return;
  if (place == 2) {
    allocate_block(sum_but_channels_scratch_bytes(arguments[0].toTensor()), false);
    return;
  }
  const bool transposed = arguments[7].toBool();
  const Convolution convolution(
      arguments[1].toTensor(), arguments[2].toTensor(), arguments[0].toTensor(), arguments[4].toIntVector(),
      arguments[6].toIntVector(), transposed, arguments[9].toInt());
  const auto input_bytes = transposed ? convolution.forward_bytes() : convolution.backward_bytes();
  allocate_with_search(
      place ? convolution.weight_backward_bytes() : input_bytes, convolution.searched_bytes(place == 1),
      convolution_key(arguments[1].toTensor(), arguments[2].toTensor(), arguments[4].toIntVector(), place));
}

// Allocate and free the scratch memory of flash attention. With dropout, a second state of the random numbers (two
// integers) replaces the first one.
void allocate_flash_scratch(const AttentionSizes& sizes, double dropout) {
  if (card.attention_generation == kAmd) return;
  allocate_blocks(flash_scratch(sizes, dropout));
  if (dropout > 0) allocate_block(16, false);
}

void allocate_flash_backward_scratch(const AttentionSizes& sizes) {
  const bool amd = card.attention_generation == kAmd;
  allocate_blocks(amd ? amd_flash_backward_scratch(sizes) : flash_backward_scratch(sizes, is_deterministic()));
}

void allocate_efficient_backward_scratch(const EfficientBackwardScratch& scratch) {
  auto products = allocate_blocks(scratch.products);
  const auto sums = allocate_block(scratch.sums, false);
  products.clear();
  allocate_block(scratch.workspace, false);
}

// Allocate and free the scratch memory of an attention. Return false for all other operations.
bool allocate_attention_scratch(
    const std::string& name, const std::vector<IValue>& arguments, const std::vector<IValue>& results) {
  if (name.find("attention") == std::string::npos) return false;
  const auto tensor = [&](size_t place) { return arguments[place].toTensor(); };
  if (name == "aten::_scaled_dot_product_flash_attention") {
    if (std::exchange(chose_cudnn, false)) return true;
    if (Block* sums = find_block(results[1].toTensor())) sums->of_flash = true;
    allocate_flash_scratch(attention_sizes(tensor(0), tensor(1), tensor(2)), arguments[3].toDouble());
  } else if (name == "aten::_flash_attention_forward") {
    const auto starts = arguments[3].toOptional<Tensor>().value_or(Tensor());
    allocate_flash_scratch(flash_sizes(tensor(0), tensor(1), tensor(2), starts), arguments[7].toDouble());
  } else if (name == "aten::_flash_attention_backward") {
    allocate_flash_backward_scratch(flash_sizes(tensor(1), tensor(2), tensor(3), tensor(6)));
  } else if (is_own_flash_backward(name, arguments)) {
    allocate_flash_backward_scratch(attention_sizes(tensor(1), tensor(2), tensor(3)));
  } else if (name == "aten::_scaled_dot_product_efficient_attention") {
    allocate_blocks(efficient_scratch(attention_sizes(tensor(0), tensor(1), tensor(2))));
  } else if (name == "aten::_efficient_attention_forward") {
    allocate_blocks(efficient_scratch(direct_efficient_sizes(tensor(0), tensor(1), tensor(2))));
  } else if (name == "aten::_scaled_dot_product_efficient_attention_backward") {
    const auto sizes = attention_sizes(tensor(1), tensor(2), tensor(3));
    allocate_efficient_backward_scratch(efficient_backward_scratch(sizes, sizes, arguments[9].toDouble()));
  } else if (name == "aten::_efficient_attention_backward") {
    allocate_efficient_backward_scratch(direct_efficient_backward_scratch(arguments));
  } else if (
      name == "aten::_scaled_dot_product_cudnn_attention_backward" ||
      name == "aten::_scaled_dot_product_flash_attention_backward") {
    allocate_block(cudnn_attention_backward_scratch_bytes(tensor(1), tensor(2)), false);
  } else {
    return false;
  }
  return true;
}

// Allocate and free the scratch memory of an operation. Call this after the results of the operation are allocated.
void allocate_scratch(
    const c10::FunctionSchema& schema, const std::vector<IValue>& arguments, const std::vector<IValue>& results) {
  int64_t bytes = 0;
  if (allocate_attention_scratch(schema.name(), arguments, results)) return;
  if (schema.name() == "aten::sum" && arguments.size() > 1 && arguments[1].isIntList()) {
    const auto dimensions = arguments[1].toIntVector();
    bytes = sum_scratch_bytes(arguments[0].toTensor(), c10::OptionalIntArrayRef(dimensions));
  } else if (schema.name() == "aten::convolution") {
    allocate_convolution_scratch(arguments, results);
  } else if (schema.name() == "aten::embedding_dense_backward") {
    bytes = embedding_backward_scratch_bytes(arguments[0].toTensor(), arguments[1].toTensor(), arguments[2].toInt());
  }
  if (bytes) allocate_block(bytes, false);
}

}  // namespace phantom
