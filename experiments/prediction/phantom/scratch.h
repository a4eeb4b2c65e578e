// Scratch memory that CUDA kernels take from the allocator and give back when they end.

#pragma once

#include "card.h"

namespace phantom {

int64_t divided_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

int64_t power_of_two_below(int64_t value, int64_t most) {
  int64_t power = 1;
  while (2 * power <= std::min(value, most)) power *= 2;
  return power;
}

// Bytes of a sum over the leading dimensions, whose blocks meet in global memory if each thread has many values: the
// rules of setReduceConfig in ATen/native/cuda/Reduce.cuh.
int64_t of_sum(const Tensor& input, c10::OptionalIntArrayRef reduced) {
  if (!input.is_contiguous() || !reduced || static_cast<int64_t>(reduced->size()) >= input.dim()) return 0;
  int64_t rows = 1;
  for (size_t place = 0; place < reduced->size(); ++place) {
    if (c10::maybe_wrap_dim((*reduced)[place], input.dim()) != static_cast<int64_t>(place)) return 0;
    rows *= input.size(place);
  }
  if (!rows || !input.numel()) return 0;
  const int64_t outputs = input.numel() / rows, vector = outputs % 4 == 0 ? 4 : outputs % 2 == 0 ? 2 : 1;
  const int64_t threads = 512 / vector, across = power_of_two_below(outputs / vector, threads);
  const int64_t height = power_of_two_below(rows, threads / std::min<int64_t>(across, 32));
  const int64_t width = std::min(across, threads / height);
  const int64_t values = divided_up(rows, height), grid = divided_up(outputs / vector, width);
  const int64_t wanted = card.multiprocessors * (2048 / (width * height));
  if (values < 256 || grid > wanted) return 0;
  const int64_t blocks = std::max(
      std::min(divided_up(wanted, grid), divided_up(values, 16)), divided_up(values, 256));
  const int64_t accumulated = input.scalar_type() == at::kDouble ? 8 : 4;
  return blocks > 1 ? accumulated * outputs * blocks * width * vector : 0;
}

// Bytes in which the blocks of memory-efficient attention add up the query's gradient: 64 x 64 values and a lock for
// each block (mem_eff_attention/kernel_backward.h). query: batch x heads x length x width.
int64_t of_attention_backward(const Tensor& query) {
  const int64_t blocks = divided_up(query.size(2), 64) * divided_up(query.size(3), 64);
  return query.size(0) * query.size(1) * blocks * (64 * 64 * 4 + 16);
}

// Take and give back the scratch memory of an operation, after its results are allocated.
void use_scratch(const c10::FunctionSchema& schema, const std::vector<IValue>& arguments) {
  int64_t bytes = 0;
  if (schema.name() == "aten::sum" && arguments.size() > 1 && arguments[1].isIntList()) {
    const auto dimensions = arguments[1].toIntVector();
    bytes = of_sum(arguments[0].toTensor(), c10::OptionalIntArrayRef(dimensions));
  } else if (schema.name() == "aten::_scaled_dot_product_efficient_attention_backward") {
    bytes = of_attention_backward(arguments[1].toTensor());
  }
  if (bytes) allocate_block(bytes, false);
}

}  // namespace phantom
