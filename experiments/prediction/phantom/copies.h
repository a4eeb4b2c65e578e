// Copies of inputs that CUDA kernels make when they start and free when they end, if an input is not in the memory
// order that they read.

#pragma once

#include "log.h"

namespace phantom {

// Positions of the arguments that an operation copies to contiguous memory, before or after it allocates its results.
// Sources: EmbeddingBackwardKernel.cu, SoftMax.cu, NLLLoss2d.cu.
const std::unordered_map<std::string, std::vector<size_t>> kCopiedBefore{{"aten::embedding_dense_backward", {0}}};
const std::unordered_map<std::string, std::vector<size_t>> kCopiedAfter{
    {"aten::_softmax", {0}}, {"aten::_log_softmax", {0}}, {"aten::_softmax_backward_data", {0, 1}},
    {"aten::_log_softmax_backward_data", {0, 1}}, {"aten::nll_loss2d_forward", {0, 1}},
    {"aten::nll_loss2d_backward", {2}}};

std::vector<Tensor> make_copies(
    const std::unordered_map<std::string, std::vector<size_t>>& positions_by_name, const std::string& name,
    const std::vector<IValue>& arguments) {
  std::vector<Tensor> copied;
  if (const auto found = positions_by_name.find(name); found != positions_by_name.end())
    for (const size_t place : found->second) copied.push_back(arguments[place].toTensor().contiguous());
  return copied;
}

// cuDNN's convolutions read all tensors in one order: channels last if the input or the weight has it, else contiguous
// (cudnn_conv_suggest_memory_format in ATen/native/ConvUtils.h).
std::vector<Tensor> make_convolution_copies(const std::string& name, const std::vector<IValue>& arguments) {
  const bool backward = name == "aten::convolution_backward";
  const Tensor &input = arguments[backward].toTensor(), &weight = arguments[backward + 1].toTensor();
  if (input.dim() != 4) return {};
  const bool channels_last = input.suggest_memory_format() == at::MemoryFormat::ChannelsLast ||
      weight.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  const auto order = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  std::vector<Tensor> copied{input.contiguous(order), weight.contiguous(order)};
  if (backward) copied.push_back(arguments[0].toTensor().contiguous(order));
  return copied;
}

// Return the copies that an operation makes before it allocates its results.
std::vector<Tensor> make_copies_before(const std::string& name, const std::vector<IValue>& arguments) {
  const bool convolves = name == "aten::convolution" || name == "aten::convolution_backward";
  return convolves ? make_convolution_copies(name, arguments) : make_copies(kCopiedBefore, name, arguments);
}

}  // namespace phantom
