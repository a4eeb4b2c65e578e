// Temporary memory of cuDNN's convolutions. The rules follow from measurements with cuDNN 9.19 on an H200: of the
// convolutions of a GAN, ResNet-50, DeepLabV3 and Faster R-CNN in 32 bit, and of those of a UNet, CLIP's ResNet-50 and
// ConvNeXt in 16 bit (tests/experiments/prediction/phantom/kernel_probes.py has the measurements).
//
// Tensor cores need channels last, so cuDNN converts operands in another order. The backward pass of the weights adds
// up several partial sums in 32 bit if it has too few blocks of output for all multiprocessors. If it has more blocks
// than multiprocessors, each multiprocessor keeps a part of a block. cuDNN itself chooses the algorithm, so a rule can
// be wrong for single shapes.

#pragma once

#include "card.h"

namespace phantom {

int64_t divide_rounding_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

int64_t round_up_to_multiple(int64_t value, int64_t of) { return divide_rounding_up(value, of) * of; }

constexpr int64_t kPointerBytes = 256;  // for pointers and counters

bool exceeds_one(c10::IntArrayRef steps) {
  return std::any_of(steps.begin(), steps.end(), [](int64_t step) { return step > 1; });
}

// A convolution of x with weights w to y. A transposed convolution is the backward pass of a convolution, from y to x.
//
// x, y, w: bytes of the three tensors. outputs, inputs: numbers of channels. area: number of elements of the kernel.
// positions: number of positions of the output in the whole batch. element: bytes of an element. plain: whether cuDNN
// can convert the operands to channels last. converts: whether it does, because there are enough channels or a large
// kernel.
struct Convolution {
  Convolution(const Tensor& input, const Tensor& weight, const Tensor& output, c10::IntArrayRef stride,
              c10::IntArrayRef dilation, bool transposed, int64_t groups)
      : x(transposed ? output.nbytes() : input.nbytes()), y(transposed ? input.nbytes() : output.nbytes()),
        w(weight.nbytes()), outputs(weight.size(0)), inputs(weight.size(1)), area(weight.numel() / (outputs * inputs)),
        batch(input.size(0)), positions((transposed ? input : output).numel() / outputs),
        element(static_cast<int64_t>(weight.element_size())), many_channels(element == 2 ? 1024 : 2048),
        strided(exceeds_one(stride)), dilated(exceeds_one(dilation)) {
    constexpr int64_t least_area = 49;
    const auto type = input.scalar_type();
    const bool channels_last = input.suggest_memory_format() == at::MemoryFormat::ChannelsLast ||
        weight.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
    plain = groups == 1 && input.dim() <= 4 && !channels_last &&
        (type == at::kFloat || type == at::kHalf || type == at::kBFloat16);
    channels_last_depthwise =
        channels_last && !transposed && element == 2 && inputs == 1 && groups == outputs && area <= 49;
    const bool enough_outputs = outputs >= least_channels || type != at::kFloat;
    converts = plain && ((inputs >= least_channels && enough_outputs) || area >= least_area);
  }

  static constexpr int64_t least_channels = 8, block = 128, most_sums = 15, wide_sums = 4, narrow_sums = 54;
  static constexpr int64_t depthwise_sums = 8, depthwise_lanes = 32, least_depthwise_positions = 512;

  int64_t forward_bytes() const {
    if (!converts) return 0;
    if (area == 1 && strided) return x + (has_channels(512, 1024) ? y : w) + kPointerBytes;
    if (area == 1) return has_channels(many_channels / 2, many_channels) ? x + y + kPointerBytes : 0;
    return x + w + kPointerBytes + (is_wide() && outputs >= least_channels ? 0 : padded(y, outputs));
  }

  int64_t backward_bytes() const {
    if (!converts) return 0;
    if (area == 1) return strided || has_channels(512, many_channels) ? x + y + kPointerBytes : 0;
    return x + w + padded(y, outputs) + kPointerBytes;
  }

  int64_t weight_backward_bytes() const {
    if (channels_last_depthwise) return depthwise_bytes();
    if (area == 1 && !strided) {
      if (plain && is_narrow())
        return padded(x, inputs) + padded(y, outputs) + narrow_sums * sum_bytes() + kPointerBytes;
      return converts ? std::min(batch * sum_bytes(), x + y) + kPointerBytes : 0;
    }
    if (!converts) return 0;
    const int64_t sums = partial_sums(), parts = !sums && area > 1 && !dilated ? parts_bytes() : 0;
    return padded(x, inputs) + padded(y, outputs) + (area == 1 ? 0 : w) + kPointerBytes +
        (sums > 1 ? sums * sum_bytes() : parts);
  }

  // Return the bytes of the partial sums, in 32 bit, of the weights' gradient of a depthwise convolution with channels
  // last. Each sample has eight partial sums. Small convolutions have none.
  int64_t depthwise_bytes() const {
    if (positions < least_depthwise_positions) return 0;
    return depthwise_sums * batch * area * round_up_to_multiple(outputs, depthwise_lanes) * 4;
  }

  // Return the number of partial sums of the weights' gradient, for a kernel that is strided or larger than 1 x 1.
  // Return 0 if there are more blocks of output than multiprocessors.
  int64_t partial_sums() const {
    const int64_t blocks = divide_rounding_up(outputs, block) * area * divide_rounding_up(inputs, block);
    if (is_wide()) return wide_sums;
    if (blocks > card.multiprocessors) return 0;
    return inputs < least_channels && element == 4 ? narrow_sums : std::min(card.multiprocessors / blocks, most_sums);
  }

  // Return the bytes of the algorithm that needs the most memory of those that the search for the fastest algorithm
  // runs. This algorithm converts all operands. For the weights' gradient, each multiprocessor keeps two parts of a
  // block.
  int64_t searched_bytes(bool weights) const {
    return plain ? padded(x, inputs) + padded(y, outputs) + (area == 1 ? 0 : w) + (weights ? 2 * parts_bytes() : 0) : 0;
  }

  // Return the bytes of one block of output for each multiprocessor, in 32 bit.
  int64_t parts_bytes() const { return card.multiprocessors * block * block * 4; }

  // Return the bytes of a partial sum of the weights' gradient, in 32 bit.
  int64_t sum_bytes() const { return padded(padded(w, inputs), outputs) / element * 4; }

  // Return the bytes of a tensor whose channels are padded to 16 bytes.
  int64_t padded(int64_t bytes, int64_t channels) const {
    return bytes / channels * round_up_to_multiple(channels, 16 / element);
  }

  // Return whether the smaller number of channels is at least `fewer`, and the larger one at least `more`.
  bool has_channels(int64_t fewer, int64_t more) const {
    return std::min(inputs, outputs) >= fewer && std::max(inputs, outputs) >= more;
  }

  // Return whether each output sums over many inputs.
  bool is_wide() const { return inputs >= 8 * outputs; }

  // Return whether each weight's gradient sums over many positions, and the weights are few, in 32 bit.
  bool is_narrow() const { return element == 4 && outputs * inputs <= 4096 && positions >= 32768; }

  const int64_t x, y, w, outputs, inputs, area, batch, positions, element;
  const int64_t many_channels;  // number of channels from which a 1 x 1 convolution converts its operands
  const bool strided, dilated;
  bool plain = false, converts = false, channels_last_depthwise = false;
};

}  // namespace phantom
