// Temporary memory of PyTorch's own attention kernels: flash attention and memory-efficient attention. The blocks of a
// list are allocated one after the other, and are all free when the operation ends. Sizes are in bytes. Sources, in
// aten/src/ATen/native/transformers: cuda/flash_attn/flash_api.cpp, cuda/attention.cu, cuda/attention_backward.cu,
// cuda/mem_eff_attention/kernel_backward.h and kernels/generate_kernels.py. On AMD cards, AOTriton has the kernels:
// hip/flash_attn/aot/mha_all_aot.hip.

#pragma once

#include <cmath>

#include "card.h"
#include "convolution.h"

namespace phantom {

using Sizes = std::vector<int64_t>;

// Sizes of an attention. Texts of different lengths are concatenated; then `length` is that of all texts.
struct AttentionSizes {
  int64_t batch, heads, key_heads, length, key_length, width, value_width, element;
  bool concatenated = false;
  int64_t batch_heads() const { return batch * heads; }
  int64_t queries() const { return concatenated ? length : batch * length; }
  int64_t keys() const { return concatenated ? key_length : batch * key_length; }
};

// Tensors of the shape batch x heads x length x width.
AttentionSizes attention_sizes(const Tensor& query, const Tensor& key, const Tensor& value) {
  return {query.size(0), query.size(1), key.size(1), query.size(2), key.size(2), query.size(3), value.size(3),
          query.element_size()};
}

// Tensors of the shape batch x length x heads x width; or tokens x heads x width if `starts`, the positions at which
// texts begin and the last one ends, are defined.
AttentionSizes flash_sizes(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& starts) {
  if (!starts.defined()) return attention_sizes(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2));
  return {starts.size(0) - 1, query.size(1), key.size(1), query.size(0), key.size(0), query.size(2), value.size(2),
          query.element_size(), true};
}

bool is_deterministic() {
  const auto& context = at::globalContext();
  return context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly();
}

// Return whether AOTriton computes the gradients in one kernel, which needs no sums of rows.
bool is_fused_on_amd(int64_t length, int64_t width) { return width <= 192 && width * length < 64 * 512; }

// Return the width of a head, rounded up as flash attention does.
int64_t flash_width(int64_t width) { return round_up_to_multiple(width, width <= 128 ? 32 : 64); }

// Return the number of parts of the keys that uses the multiprocessors best, if the blocks of queries alone are too few
// (set_params_splitkv and num_splits_heuristic).
int64_t flash_splits(int64_t batch_heads, int64_t length, int64_t key_length, int64_t width) {
  const int64_t blocks = batch_heads * divide_rounding_up(length, 64), places = 2 * card.multiprocessors;
  const int64_t key_blocks = divide_rounding_up(key_length, width <= 64 ? 256 : width <= 128 ? 128 : 64);
  if (static_cast<float>(blocks) >= 0.8f * static_cast<float>(places)) return 1;
  std::vector<float> efficiencies{0};
  for (int64_t splits = 1; splits <= std::min({int64_t{128}, places, key_blocks}); ++splits) {
    const bool same_as_fewer =
        splits > 1 && divide_rounding_up(key_blocks, splits) == divide_rounding_up(key_blocks, splits - 1);
    const float waves = static_cast<float>(blocks * splits) / static_cast<float>(places);
    efficiencies.push_back(same_as_fewer ? 0 : waves / std::ceil(waves));
  }
  const float most = *std::max_element(efficiencies.begin(), efficiencies.end());
  for (size_t splits = 1; splits < efficiencies.size(); ++splits)
    if (efficiencies[splits] > 0 && efficiencies[splits] >= 0.85 * most) return static_cast<int64_t>(splits);
  return 1;
}

// Return the scratch memory of flash attention: the sums and outputs of each part of the keys in 32 bit. If each text
// has a single query, the heads that share keys are computed together. With dropout, or if texts are concatenated, the
// keys are not divided into parts.
Sizes flash_scratch(const AttentionSizes& sizes, double dropout) {
  if (sizes.concatenated || dropout > 0) return {};
  const bool groups = sizes.length == 1 && sizes.heads > sizes.key_heads;
  const int64_t batch_heads = sizes.batch * (groups ? sizes.key_heads : sizes.heads);
  const int64_t length = groups ? sizes.heads / sizes.key_heads : sizes.length;
  const int64_t splits = flash_splits(batch_heads, length, sizes.key_length, sizes.width);
  if (splits == 1) return {};
  const int64_t rows = splits * batch_heads * length;
  return {4 * rows, 4 * rows * flash_width(sizes.width)};
}

// Return the scratch memory of flash attention's backward pass: a sum for each query, and its gradient in 32 bit. The
// queries of each text are rounded up to 128. A deterministic pass has a gradient for each part of the grid. If heads
// share keys and values, there are also gradients of the keys and values for each head.
Sizes flash_backward_scratch(const AttentionSizes& sizes, bool deterministic) {
  const int64_t rows = sizes.heads * (sizes.concatenated ? sizes.length + 128 * sizes.batch
                                                         : sizes.batch * round_up_to_multiple(sizes.length, 128));
  const int64_t parts = deterministic ? divide_rounding_up(card.multiprocessors, sizes.batch_heads()) : 1;
  Sizes scratch{4 * rows, parts * 4 * rows * flash_width(sizes.width)};
  if (sizes.key_heads != sizes.heads) scratch.resize(4, sizes.keys() * sizes.heads * sizes.width * sizes.element);
  return scratch;
}

// Return the scratch memory of the backward pass of AMD's flash attention: sums of rows.
Sizes amd_flash_backward_scratch(const AttentionSizes& sizes) {
  const int64_t sums = 4 * sizes.heads * sizes.queries();
  return is_fused_on_amd(sizes.length, sizes.width) ? Sizes{sums} : Sizes{sums, sums};
}

// Return the scratch memory of memory-efficient attention: the output in 32 bit, if a block does not hold whole rows of
// the output. Kernels for up to 128 values in a row hold whole rows.
Sizes efficient_scratch(const AttentionSizes& sizes) {
  const bool holds_rows = std::max(sizes.width, sizes.value_width) <= 128 || sizes.element == 4;
  if (card.attention_generation == kAmd || holds_rows) return {};
  return {4 * sizes.batch_heads() * sizes.length * sizes.value_width};
}

// The kernel of the backward pass of memory-efficient attention for one width of the heads.
struct EfficientBackward {
  int64_t queries = 64, keys = 64;  // of a block
  bool holds_gradients;             // of keys and values, in registers
  bool sums_outputs = true;         // computes the sum of each row of the gradient times the output
  bool adds_queries = true;         // blocks add up the gradient of the queries
  bool splits_keys = true;          // divides the keys among blocks
};

// Choose the kernel as BwdKernel in generate_kernels.py and attention_backward.cu do. The blocks that do not fit into
// the shared memory of a card of generation 8.6, 8.9 or 12.x were found with sizeof(Kernel::SharedStorage) in
// PyTorch 2.13.
EfficientBackward efficient_backward(int64_t width, bool half, bool dropout) {
  const int64_t generation = card.attention_generation;
  EfficientBackward kernel{.holds_gradients = half && width <= 64, .sums_outputs = half};
  if (generation == 50) {
    kernel.adds_queries = half;
    kernel.splits_keys = false;
    return kernel;
  }
  if (width <= 64 || (!half && generation != 80)) return kernel;
  const bool too_large = (generation == 86 || generation == 120) && width <= 128;
  if (too_large && !(generation == 86 && width <= 96 && !dropout)) return kernel;
  kernel.queries = 128;
  kernel.keys = half && generation == 80 && width <= 128 ? 128 : 64;
  kernel.holds_gradients = half && width <= 128;
  kernel.sums_outputs = half && (generation != 70 || kernel.holds_gradients);
  return kernel;
}

// Return the size of the workspace in which blocks add up gradients (workspace_size): of the queries, with a lock for
// each block; of keys and values, for each part of the keys. most_splits: the number of parts that the program allows.
int64_t efficient_backward_workspace(
    const AttentionSizes& sizes, const EfficientBackward& kernel, bool half, std::optional<int64_t> most_splits) {
  int64_t values = 0;
  if (!kernel.holds_gradients && half) {
    int64_t splits = divide_rounding_up(sizes.key_length, kernel.keys);
    const int64_t most = most_splits.value_or(200 / std::max<int64_t>(sizes.batch_heads(), 1));
    splits = std::max<int64_t>(std::min(splits, most), 1);
    if (!kernel.splits_keys || is_deterministic()) splits = 1;
    const auto columns = [&](int64_t width) { return round_up_to_multiple(width, kernel.queries); };
    values = splits * kernel.keys * (columns(sizes.width) + columns(sizes.value_width));
  }
  if (kernel.adds_queries)
    values += divide_rounding_up(sizes.length, kernel.queries) * divide_rounding_up(sizes.width, kernel.keys) *
        (kernel.queries * kernel.keys + 4);
  return 4 * sizes.batch_heads() * values;
}

// Scratch memory of the backward pass of memory-efficient attention: a sum for each query, and the workspace. If the
// kernel does not compute the sums, PyTorch computes them from the products of gradient and output. The blocks for this
// (`products`) are free before the workspace is allocated: the products, copies of 16-bit tensors in 32 bit, and the
// sums in another order.
struct EfficientBackwardScratch {
  Sizes products;
  int64_t sums = 0, workspace = 0;
};

// text: the sizes of a batch of texts of the length of the longest one: `sizes`, unless texts are concatenated.
EfficientBackwardScratch efficient_backward_scratch(
    const AttentionSizes& sizes, const AttentionSizes& text, double dropout, std::optional<int64_t> most_splits = {}) {
  const int64_t rows = sizes.batch_heads() * sizes.length, sums = 4 * rows, products = 4 * rows * sizes.value_width;
  if (card.attention_generation == kAmd) {
    const bool fused = !text.concatenated && is_fused_on_amd(sizes.length, sizes.value_width);
    return {.sums = fused ? 0 : 4 * sizes.batch_heads() * text.length};
  }
  const bool half = sizes.element == 2;
  const auto kernel = efficient_backward(std::max(sizes.width, sizes.value_width), half, dropout > 0);
  EfficientBackwardScratch scratch{{}, sums, efficient_backward_workspace(text, kernel, half, most_splits)};
  if (kernel.sums_outputs) return scratch;
  scratch.products = Sizes(half ? 3 : 1, products);
  if (sizes.heads > 1 && sizes.length > 1) scratch.products.push_back(sums);
  return scratch;
}

// Return the sizes of the tensors of _efficient_attention_forward and _backward: batch x length x heads x width. If
// texts are concatenated, the batch is 1.
AttentionSizes direct_efficient_sizes(const Tensor& query, const Tensor& key, const Tensor& value) {
  return attention_sizes(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2));
}

// Return the scratch memory of _efficient_attention_backward (attention_backward.cu). Arguments 6 to 9: the positions
// at which texts begin, of queries and keys, if texts are concatenated; and the lengths of the longest text.
EfficientBackwardScratch direct_efficient_backward_scratch(const std::vector<IValue>& arguments) {
  const auto tensor = [&](size_t place) { return arguments[place].toTensor(); };
  const auto sizes = direct_efficient_sizes(tensor(1), tensor(2), tensor(3));
  const auto starts = arguments[6].toOptional<Tensor>().value_or(Tensor());
  auto text = sizes;
  if (starts.defined()) {
    text.concatenated = true;
    text.batch = starts.size(0) - 1;
    text.length = arguments[8].toInt();
    text.key_length = arguments[9].toInt();
  }
  return efficient_backward_scratch(sizes, text, arguments[11].toDouble(), arguments[17].toOptional<int64_t>());
}

std::vector<c10::DataPtr> allocate_blocks(const Sizes& sizes) {
  std::vector<c10::DataPtr> blocks;
  for (const int64_t size : sizes) blocks.push_back(allocate_block(size, false));
  return blocks;
}

// Return whether an operation is the backward pass of PyTorch's own flash attention, not cuDNN's attention.
bool is_own_flash_backward(const std::string& name, const std::vector<IValue>& arguments) {
  if (name == "aten::_flash_attention_backward") return true;
  if (name != "aten::_scaled_dot_product_flash_attention_backward") return false;
  const Block* sums = find_block(arguments[5].toTensor());
  return !card.cudnn_width || (sums && sums->of_flash);
}

// Allocate the copies that the backward pass of an attention makes: of the gradient of the output, and for flash
// attention also of the output. A tensor that is contiguous in the order batch x length x heads x width is not copied.
// The copies are free when the pass ends.
std::vector<c10::DataPtr> allocate_attention_copies(const std::string& name, const std::vector<IValue>& arguments) {
  if (name.find("attention_backward") == std::string::npos) return {};
  const bool direct_efficient = name == "aten::_efficient_attention_backward";
  const bool efficient = direct_efficient || name == "aten::_scaled_dot_product_efficient_attention_backward";
  if (!efficient && !is_own_flash_backward(name, arguments)) return {};
  Sizes copied;
  for (const size_t place : efficient ? std::vector<size_t>{0} : std::vector<size_t>{0, 4}) {
    const Tensor read = arguments[place].toTensor();
    const bool direct = direct_efficient || name == "aten::_flash_attention_backward";
    const bool is_in_order = (direct ? read : read.transpose(1, 2)).is_contiguous();
    if (!is_in_order) copied.push_back(read.numel() * read.element_size());
  }
  return allocate_blocks(copied);
}

}  // namespace phantom
