// Operations that have an implementation of their own, because they read values, exchange storages, or have shapes that
// are easy to compute.

#pragma once

#include <ATen/ExpandUtils.h>

#include "tensors.h"
#include "work.h"

namespace phantom {

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  TORCH_CHECK(at::is_expandable_to(source.sizes(), self.sizes()), "copy_: sizes ", source.sizes(), " and ", self.sizes());
  if (self.numel()) log_operation("aten::copy_.default", self, source, non_blocking);
  if (has_readable_values(self) && has_readable_values(source)) {
    on_host(self).copy_(on_host(source));
  } else if (const auto value = known_constant(source); value && is_on_device(self) && has_readable_values(self)) {
    on_host(self).fill_(*value);
  } else if (is_on_device(self)) {
    const auto value = known_constant(source);
    forget_values(self);
    record_constant(self, value);
  } else if (!is_on_device(self) && self.nbytes() <= static_cast<size_t>(kMiB)) {
    self.zero_();
  }
  return self;
}

at::Scalar local_scalar(const Tensor& self) {
  log_operation("aten::_local_scalar_dense.default", self);
  if (has_readable_values(self)) return on_host(self).item();
  return at::isFloatingType(self.scalar_type()) ? at::Scalar(0.0) : at::Scalar(0);
}

// The result has as many elements as the mask has true elements, or all elements if the mask's values are unknown.
Tensor masked_select(const Tensor& self, const Tensor& mask) {
  log_operation("aten::masked_select.default", self, mask);
  const auto sizes = at::infer_size(self.sizes(), mask.sizes());
  const Tensor chosen = (has_readable_values(mask) ? on_host(mask) : at::ones(mask.sizes(), at::kBool)).expand(sizes);
  if (has_readable_values(self)) return from_host(on_host(self).masked_select(chosen));
  return empty_strided_on_device({at::count_nonzero(chosen).item<int64_t>()}, {1}, self.scalar_type());
}

bool equal(const Tensor& self, const Tensor& other) {
  log_operation("aten::equal.default", self, other);
  if (self.sizes() != other.sizes()) return false;
  return !has_readable_values(self) || !has_readable_values(other) || at::equal(on_host(self), on_host(other));
}

Tensor& set_storage(Tensor& self, c10::Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  std::vector<int64_t> strides(stride.begin(), stride.end());
  if (strides.empty() && !size.empty()) {
    strides.assign(size.size(), 1);
    for (size_t place = size.size() - 1; place > 0; --place)
      strides[place - 1] = strides[place] * std::max<int64_t>(size[place], 1);
  }
  impl->set_sizes_and_strides(size, strides, offset);
  return self;
}

Tensor& set_whole_storage(Tensor& self, c10::Storage source) {
  const int64_t count = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {count}, {1});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

const Tensor& resize_(const Tensor& self, c10::IntArrayRef size, std::optional<c10::MemoryFormat>) {
  copy_shape(self, at::empty(size, self.options().device(at::kMeta)));
  return self;
}

// Frequent operations whose shapes PyTorch computes in Python. They allocate the same results as their CUDA kernels
// (layer_norm_kernel.cu, Dropout.cu), with statistics in 32 bit, and copies of inputs in another order.

Tensor empty_like_contiguous(const Tensor& tensor) { return at::empty_like(tensor, at::MemoryFormat::Contiguous); }

Tensor empty_like_if(bool wanted, const std::optional<Tensor>& tensor) {
  return wanted && tensor && tensor->defined() ? empty_like_contiguous(*tensor) : Tensor();
}

std::tuple<Tensor, Tensor, Tensor> native_layer_norm(
    const Tensor& input, c10::IntArrayRef normalized, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, double epsilon) {
  log_operation("aten::native_layer_norm.default", input, normalized.vec(), weight, bias, epsilon);
  const Tensor input_copy = input.contiguous();
  std::vector<int64_t> sizes(input.sizes().begin(), input.sizes().end() - normalized.size());
  sizes.resize(input.dim(), 1);
  const auto wide = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor mean = at::empty(sizes, input.options().dtype(wide));
  return {empty_like_contiguous(input), mean, empty_like_contiguous(mean)};
}

std::tuple<Tensor, Tensor, Tensor> native_layer_norm_backward(
    const Tensor& gradient, const Tensor& input, c10::IntArrayRef normalized, const Tensor& mean, const Tensor& deviation,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, std::array<bool, 3> wanted) {
  const c10::List<bool> outputs{wanted[0], wanted[1], wanted[2]};
  log_operation("aten::native_layer_norm_backward.default", gradient, input, normalized.vec(), mean, deviation, weight, bias, outputs);
  const Tensor input_copy = input.contiguous();
  const std::tuple<Tensor, Tensor, Tensor> results{
      empty_like_if(wanted[0], input), empty_like_if(wanted[1], weight), empty_like_if(wanted[2], bias)};
  gradient.contiguous();
  return results;
}

std::tuple<Tensor, Tensor> native_dropout(const Tensor& input, double probability, std::optional<bool> training) {
  log_operation("aten::native_dropout.default", input, probability, training);
  const Tensor kept = at::empty_like(input, input.options().dtype(at::kBool));
  return {at::empty_like(input), kept};
}

Tensor native_dropout_backward(const Tensor& gradient, const Tensor& kept, double scale) {
  log_operation("aten::native_dropout_backward.default", gradient, kept, scale);
  return at::empty_like(gradient);
}

// CTC loss (connectionist temporal classification) without cuDNN (LossCTC.cu). The backward pass needs scratch memory
// for log_beta, which is as large as the second result of the forward pass, log_alpha.

bool never_use_library_ctc(const Tensor&, const Tensor&, c10::IntArrayRef, c10::IntArrayRef, int64_t) { return false; }

bool never_use_library_ctc_tensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t) { return false; }

std::tuple<Tensor, Tensor> ctc_loss(
    const Tensor& log_probs, const Tensor&, c10::IntArrayRef, c10::IntArrayRef targets, int64_t, bool) {
  const int64_t batch = log_probs.dim() == 3 ? log_probs.size(1) : 1;
  const int64_t longest = targets.empty() ? 0 : *std::max_element(targets.begin(), targets.end());
  const auto options = log_probs.options();
  return {at::empty({batch}, options), at::empty({batch, log_probs.size(0), 2 * longest + 1}, options)};
}

std::tuple<Tensor, Tensor> ctc_loss_tensors(
    const Tensor& log_probs, const Tensor& targets, const Tensor& times, const Tensor& lengths, int64_t blank,
    bool zero_infinity) {
  const Tensor known = on_host(lengths).to(at::kLong).contiguous();
  return ctc_loss(log_probs, targets, {}, {known.const_data_ptr<int64_t>(), static_cast<size_t>(known.numel())}, blank,
                  zero_infinity);
}

template <typename Lengths>
Tensor ctc_loss_backward(
    const Tensor&, const Tensor& log_probs, const Tensor&, Lengths, Lengths, const Tensor&, const Tensor& log_alpha,
    int64_t, bool) {
  const Tensor log_beta = empty_like_contiguous(log_alpha);
  return empty_like_contiguous(log_probs);
}

Tensor relu(const Tensor& input) {
  log_operation("aten::relu.default", input);
  return at::empty_like(input);
}

}  // namespace phantom
