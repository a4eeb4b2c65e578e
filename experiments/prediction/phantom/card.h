// Properties that differ between cards: attention kernels and cuBLAS workspaces.

#pragma once

#include <ATen/Context.h>

#include <set>
#include <unordered_set>

#include "log.h"

namespace phantom {

struct CardProperties {
  bool flash = true;             // flash attention kernels
  bool efficient = true;         // memory-efficient attention in other data types than bfloat16
  bool bfloat_efficient = true;  // memory-efficient attention in bfloat16
  int64_t cudnn_width = 0;       // values per head up to which cuDNN's attention is preferred to the others; 0: never
  int64_t workspace_bytes = 0;   // size of the workspace of one cuBLAS handle
  int64_t multiprocessors = 1;   // number of multiprocessors, over which a large reduction is divided
  int64_t attention_generation = 80;  // of PyTorch's own attention kernels: 10 times a compute capability, or kAmd
};

constexpr int64_t kAmd = 0;

CardProperties card;

// Whether the next flash attention of this thread stands for an attention of cuDNN (see choose_attention).
thread_local bool chose_cudnn = false;

// Return whether cuDNN's attention supports heads of up to `limit` values, and the program allows it
// (can_use_cudnn_attention in sdp_utils.cpp, with cuDNN from 9.14).
bool cudnn_supports(const Tensor& query, const Tensor& key, const Tensor& value, int64_t limit) {
  const auto& context = at::globalContext();
  const bool deterministic = context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly();
  const bool low_precision = query.scalar_type() == at::kHalf || query.scalar_type() == at::kBFloat16;
  const int64_t width = query.size(3), value_width = value.size(3);
  return context.userEnabledCuDNNSDP() && !deterministic && low_precision && std::max(width, value_width) <= limit &&
      width % 8 == 0 && value_width % 8 == 0 && key.size(2) > 1;
}

// Return whether flash attention cannot compute the gradients of such wide heads, because of the card's shared memory
// (check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120 in sdp_utils.cpp).
bool is_too_wide_for_flash(const Tensor& query, const Tensor& key, const Tensor& value, double dropout) {
  const bool trains =
      at::GradMode::is_enabled() && (query.requires_grad() || key.requires_grad() || value.requires_grad());
  const bool has_little_memory = card.attention_generation == 86 || card.attention_generation == 120;
  return has_little_memory && trains && query.size(3) > 192 && (query.size(3) <= 224 || dropout > 0);
}

// Return the number of plain attention (SDPBackend). Fail as PyTorch does if the program does not allow plain
// attention.
int64_t plain_attention() {
  TORCH_CHECK(at::globalContext().userEnabledMathSDP(), "No available kernel. Aborting execution.");
  return 0;
}

// Selection of the attention kernel as in ATen/native/transformers/cuda/sdp_utils.cpp: flash, memory-efficient,
// cuDNN's or plain (SDPBackend 1, 2, 3, 0), with the conditions that can occur in training. Without a mask, and with
// keys as wide as values, cuDNN's attention has results of the same sizes as flash attention, so 1 (flash) is
// returned for both.
int64_t choose_attention(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask, double dropout,
    bool causal, std::optional<double>, bool grouped) {
  auto& context = at::globalContext();
  const auto type = query.scalar_type();
  const bool half = type == at::kHalf, bfloat = type == at::kBFloat16;
  const bool has_mask = mask.has_value() && mask->defined();
  const bool dense = query.dim() == 4 && query.numel() && key.numel() && query.stride(-1) == 1 &&
      key.stride(-1) == 1 && value.stride(-1) == 1 && (!has_mask || mask->stride(-1) == 1);
  if (!dense) return plain_attention();
  const bool same_heads = query.size(1) == key.size(1) && key.size(1) == value.size(1);
  const bool square = query.size(2) == key.size(2);
  const bool flash = card.flash && context.userEnabledFlashSDP() && !is_too_wide_for_flash(query, key, value, dropout);
  const bool same_width = query.size(3) == value.size(3), supports_heads = same_heads || grouped;
  const auto cudnn_choice = [&] { return chose_cudnn = !has_mask && same_width, chose_cudnn ? 1 : 3; };
  const bool supports_mask = !has_mask || !mask->requires_grad();
  if (supports_heads && supports_mask && cudnn_supports(query, key, value, card.cudnn_width)) return cudnn_choice();
  if (flash && (half || bfloat) && !has_mask && query.size(3) <= 256 && same_width && supports_heads &&
      (square || !causal)) {
    chose_cudnn = false;
    return 1;
  }
  const bool efficient_type = bfloat ? card.bfloat_efficient : card.efficient && (half || type == at::kFloat);
  const int64_t alignment = 16 / static_cast<int64_t>(query.element_size());
  if (efficient_type && context.userEnabledMemEfficientSDP() && same_heads && query.size(3) % alignment == 0 &&
      value.size(3) % alignment == 0)
    return 2;
  const bool only_cudnn = !context.userEnabledMathSDP() && card.attention_generation >= 80 && supports_heads;
  if (only_cudnn && supports_mask && cudnn_supports(query, key, value, 128)) return cudnn_choice();
  return plain_attention();
}

// cuBLAS allocates a workspace for each thread's handle and stream at the first matrix product, and never frees it. The
// first product with a bias also allocates a workspace of cublasLt. Source: CUDABlas.cpp.
void allocate_workspace(const std::string& name, bool has_bias) {
  static const std::unordered_set<std::string> products{
      "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation", "aten::addmv_"};
  if (!card.workspace_bytes || !products.count(name)) return;
  thread_local std::set<std::pair<int64_t, int64_t>> allocated, allocated_with_bias;
  const std::pair<int64_t, int64_t> gpu_and_stream{current_gpu, current_stream};
  if (allocated.insert(gpu_and_stream).second) new c10::DataPtr(allocate_block(card.workspace_bytes, false));
  if (has_bias && allocated_with_bias.insert(gpu_and_stream).second) new c10::DataPtr(allocate_block(kMiB, false));
}

}  // namespace phantom
