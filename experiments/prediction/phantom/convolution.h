// Temporary memory of cuDNN's convolutions, as measured with cuDNN 9.19 on an H200: those of a GAN, of ResNet-50 and of
// DeepLabV3 in 32 bit (tests/experiments/prediction/phantom/kernel_probes.py has the measurements).
//
// Tensor cores need channels last. Operands in another order are converted. The backward pass of the weights adds up
// several partial sums if it has too few blocks of output for all multiprocessors. The choice of the algorithm is
// cuDNN's own, so a rule can be wrong for single shapes.

#pragma once

#include "card.h"

namespace phantom {

int64_t divide_rounding_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

constexpr int64_t kMore = 256;  // bytes for pointers and counters

// A convolution of x with w to y. A transposed convolution is the backward pass of one, from y to x.
struct Convolution {
  Convolution(const Tensor& input, const Tensor& weight, const Tensor& output, c10::IntArrayRef stride, bool transposed,
              int64_t groups)
      : x(transposed ? output.nbytes() : input.nbytes()), y(transposed ? input.nbytes() : output.nbytes()),
        w(weight.nbytes()), outputs(weight.size(0)), inputs(weight.size(1)), area(weight.numel() / (outputs * inputs)),
        strided(std::any_of(stride.begin(), stride.end(), [](int64_t step) { return step > 1; })) {
    constexpr int64_t least_channels = 8, least_area = 49;
    const auto type = input.scalar_type();
    const bool ordered = input.suggest_memory_format() == at::MemoryFormat::ChannelsLast ||
        weight.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
    converts = groups == 1 && input.dim() <= 4 && !ordered && (std::min(inputs, outputs) >= least_channels || area >= least_area) &&
        (type == at::kFloat || type == at::kHalf || type == at::kBFloat16);
  }

  int64_t forward_bytes() const {
    if (!converts) return 0;
    if (area == 1) return strided ? x + w + kMore : has_channels(1024, 2048) ? x + y + kMore : 0;
    return x + w + kMore + (is_wide() ? 0 : y);
  }

  int64_t backward_bytes() const {
    if (!converts) return 0;
    if (area == 1) return strided || has_channels(512, 2048) ? x + y + kMore : 0;
    return x + w + y + kMore;
  }

  int64_t weight_backward_bytes() const {
    constexpr int64_t most_sums = 15, pointwise_sums = 8, wide_sums = 4, block = 128;
    if (!converts) return 0;
    if (area == 1 && !strided) return pointwise_sums * w + kMore;
    const int64_t blocks = divide_rounding_up(outputs, block) * area * divide_rounding_up(inputs, block);
    const int64_t sums = is_wide() ? wide_sums : std::min(card.multiprocessors / blocks, most_sums);
    return x + w + y + kMore + (sums > 1 ? sums * w : 0);
  }

  bool has_channels(int64_t fewer, int64_t more) const {
    return std::min(inputs, outputs) >= fewer && std::max(inputs, outputs) >= more;
  }

  // Return whether each output sums over many inputs.
  bool is_wide() const { return inputs >= 8 * outputs; }

  const int64_t x, y, w, outputs, inputs, area;
  const bool strided;
  bool converts = false;
};

}  // namespace phantom
