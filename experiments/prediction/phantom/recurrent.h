// cuDNN's recurrent layers: LSTM, GRU and RNN, as ATen/native/cudnn/RNN.cpp calls them.

#pragma once

#include <ATen/ops/_cudnn_rnn.h>

#include "operations.h"
#include "scratch.h"

namespace phantom {

constexpr int64_t kRelu = 0, kTanh = 1, kLstm = 2, kGru = 3;  // cudnnRNNMode_t
constexpr int64_t kDropoutStateBytesPerMultiprocessor = 48 * 1024;

// The sizes that determine the memory of a recurrent layer. width: features of the input. rows: number of steps of all
// texts. drops: whether dropout is applied between layers.
struct Recurrence {
  Recurrence(const Tensor& input, int64_t mode, int64_t hidden, int64_t layers, bool batch_first, double dropout,
             bool train, bool bidirectional, c10::SymIntArrayRef batch_sizes)
      : mode(mode), hidden(hidden), layers(layers), directions(bidirectional ? 2 : 1), width(input.size(-1)),
        packed(!batch_sizes.empty()), rows(packed ? input.size(0) : input.size(0) * input.size(1)),
        batch(packed ? batch_sizes[0].expect_int() : input.size(batch_first ? 0 : 1)),
        drops(train && dropout > 0 && layers > 1), element_bytes(static_cast<int64_t>(input.element_size())) {}

  int64_t gates() const { return mode == kLstm ? 4 : mode == kGru ? 3 : 1; }

  // Return the bytes that the backward pass reads: values of each step and layer, the outputs between layers, and for
  // each of these outputs a bit that tells whether dropout keeps it. Measured with cuDNN 9.19 on an H200.
  int64_t reserve_bytes() const {
    const int64_t values_per_row = mode == kLstm ? 5 : mode == kGru ? 6 : 1;
    const int64_t bits = drops ? divide_rounding_up(rows * hidden * directions, 256) * 32 * (layers - 1) * directions : 0;
    return element_bytes * rows * hidden * directions * (values_per_row * layers + layers - 1) + bits + 256;
  }

  // Return the bytes of temporary memory that the forward pass, the gradients of the input, and the gradients of the
  // weights each need: a copy of the weights, and values of each step and of each layer. Measured like reserve_bytes,
  // with one direction. With two directions, the measured memory is up to 15 % larger.
  int64_t workspace_bytes() const {
    const int64_t weights = gates() * hidden * (width + hidden + (layers - 1) * (directions + 1) * hidden);
    const int64_t values = rows * (5 * hidden + width) + batch * 10 * hidden * layers;
    const int64_t fixed_bytes = 8 * kMiB * (mode == kLstm ? layers : layers == 1);
    return directions * (element_bytes * (weights + values + (drops ? rows * hidden : 0)) + fixed_bytes) + 768;
  }

  const int64_t mode, hidden, layers, directions, width;
  const bool packed;
  const int64_t rows, batch;
  const bool drops;
  const int64_t element_bytes;
};

// Log the products of a layer: of its inputs and of its states with their weights. passes: 1 for the forward pass, 2
// for the backward pass.
void log_products(const Recurrence& layer, c10::ScalarType type, int64_t passes) {
  const int64_t outputs = layer.gates() * layer.hidden;
  const auto log_product = [&](int64_t width) {
    std::ostringstream key;
    for (const auto& [open, first, second] : {std::tuple{"[\"aten::mm.default\",", layer.rows, width}, std::tuple{",", width, outputs}})
      key << open << "{\"type\":\"" << c10::toString(type) << "\",\"sizes\":[" << first << ',' << second << "]}";
    log_key(key.str() + "]");
  };
  for (int64_t count = 0; count < passes * layer.directions * layer.layers; ++count) {
    log_product(count < passes * layer.directions ? layer.width : layer.hidden * layer.directions);
    log_product(layer.hidden);
  }
}

int64_t total_elements(at::TensorList weights) {
  int64_t count = 0;
  for (const Tensor& weight : weights) count += weight.numel();
  return count;
}

// Return views of a flat tensor with the shapes of the weights, one after another.
std::vector<Tensor> views_of(const Tensor& flat, at::TensorList weights) {
  std::vector<Tensor> views;
  int64_t offset = 0;
  for (const Tensor& weight : weights) {
    views.push_back(at::native::as_strided_tensorimpl(flat, weight.sizes(), weight.strides(), offset));
    offset += weight.numel();
  }
  return views;
}

Tensor flatten_weights(at::TensorList weights, int64_t, c10::SymInt, int64_t, c10::SymInt, c10::SymInt, int64_t, bool, bool) {
  const Tensor flat = at::empty({total_elements(weights)}, weights[0].options());
  const auto views = views_of(flat, weights);
  for (size_t place = 0; place < views.size(); ++place) {
    Tensor weight = weights[place];
    set_storage(weight, flat.storage(), views[place].storage_offset(), weight.sizes(), weight.strides());
  }
  return flat;
}

// Return all weights as one tensor if a storage contains them and nothing else, else an undefined tensor.
Tensor flat_weights(at::TensorList weights) {
  const int64_t count = total_elements(weights);
  const auto& storage = weights[0].storage();
  for (const Tensor& weight : weights)
    if (!weight.storage().is_alias_of(storage)) return Tensor();
  if (static_cast<int64_t>(storage.nbytes()) != count * static_cast<int64_t>(weights[0].itemsize())) return Tensor();
  return at::native::as_strided_tensorimpl(weights[0].detach(), {count}, {1}, 0);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cudnn_rnn(
    const Tensor& input, at::TensorList weights, int64_t, const std::optional<Tensor>& flat, const Tensor& hx,
    const std::optional<Tensor>& cx, int64_t mode, c10::SymInt hidden, c10::SymInt projected, int64_t layers,
    bool batch_first, double dropout, bool train, bool bidirectional, c10::SymIntArrayRef batch_sizes,
    const std::optional<Tensor>&) {
  const Recurrence layer(input, mode, hidden.expect_int(), layers, batch_first, dropout, train, bidirectional, batch_sizes);
  log_products(layer, input.scalar_type(), 1);
  const bool is_transposed = batch_first && !layer.packed;
  const Tensor ordered_input = is_transposed ? input.transpose(0, 1).contiguous() : input.contiguous();
  auto sizes = ordered_input.sizes().vec();
  sizes.back() = layer.directions * (projected.expect_int() ? projected.expect_int() : layer.hidden);
  Tensor output = at::empty(sizes, input.options());
  const Tensor hy = at::empty_like(hx);
  const Tensor cy = cx && cx->defined() ? at::empty_like(*cx) : at::empty({0}, hx.options());
  const bool is_flat = flat && flat->defined();
  const Tensor all_weights = is_flat ? *flat : at::empty({total_elements(weights)}, input.options());
  const auto workspace = allocate_block(layer.workspace_bytes(), false);
  const Tensor reserve = at::empty({train ? layer.reserve_bytes() : 0}, input.options().dtype(at::kByte));
  return {is_transposed ? output.transpose_(0, 1) : output, hy, cy, reserve, all_weights};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> cudnn_rnn_backward(
    const Tensor& input, at::TensorList weights, int64_t, const Tensor& flat, const Tensor& hx,
    const std::optional<Tensor>& cx, const Tensor&, const std::optional<Tensor>& gradient,
    const std::optional<Tensor>& hy_gradient, const std::optional<Tensor>& cy_gradient, int64_t mode, c10::SymInt hidden,
    c10::SymInt, int64_t layers, bool batch_first, double dropout, bool train, bool bidirectional,
    c10::SymIntArrayRef batch_sizes, const std::optional<Tensor>&, const Tensor&, std::array<bool, 4> wanted) {
  const Recurrence layer(input, mode, hidden.expect_int(), layers, batch_first, dropout, train, bidirectional, batch_sizes);
  log_products(layer, input.scalar_type(), 2);
  const bool is_transposed = batch_first && !layer.packed, has_cells = cx && cx->defined();
  const auto ordered = [&](const Tensor& tensor) {
    return is_transposed ? tensor.transpose(0, 1).contiguous() : tensor.contiguous();
  };
  const auto given_or_zeros = [](const std::optional<Tensor>& given, const Tensor& like) {
    return given && given->defined() ? given->contiguous() : at::empty_like(like);
  };
  const Tensor hy = given_or_zeros(hy_gradient, hx), cy = has_cells ? given_or_zeros(cy_gradient, *cx) : Tensor();
  Tensor dx, dhx, dcx;
  {
    const Tensor ordered_input = ordered(input);
    const Tensor output_gradient = gradient && gradient->defined() ? ordered(*gradient) : Tensor();
    dx = at::empty_like(ordered_input, at::MemoryFormat::Contiguous);
    dhx = at::empty_like(hx);
    dcx = has_cells ? at::empty_like(*cx) : Tensor();
    const auto workspace = allocate_block(layer.workspace_bytes(), false);
  }
  std::vector<Tensor> gradients;
  if (wanted[3]) {
    const Tensor ordered_input = ordered(input);
    gradients = views_of(at::empty_like(flat), weights);
    const auto workspace = allocate_block(layer.workspace_bytes(), false);
  }
  return {is_transposed ? dx.transpose_(0, 1) : dx, dhx, dcx, gradients};
}

// Allocate the state of the random numbers of dropout once for the process.
void allocate_dropout_state(double dropout, bool train) {
  static bool allocated = false;
  if (allocated || !train || dropout <= 0) return;
  allocated = true;
  new c10::DataPtr(allocate_block(kDropoutStateBytesPerMultiprocessor * card.multiprocessors, false));
}

std::tuple<Tensor, Tensor, Tensor> call_rnn(
    const Tensor& input, const Tensor& hx, const Tensor& cx, at::TensorList weights, bool has_biases, int64_t mode,
    int64_t layers, double dropout, bool train, bool bidirectional, bool batch_first, at::IntArrayRef batch_sizes) {
  const int64_t hidden = cx.defined() ? cx.size(2) : hx.size(2), projected = hx.size(2) == hidden ? 0 : hx.size(2);
  allocate_dropout_state(dropout, train);
  const auto results = at::_cudnn_rnn(
      input, weights, (has_biases ? 4 : 2) + (projected > 0), flat_weights(weights), hx, cx, mode, hidden, projected, layers,
      batch_first, dropout, train, bidirectional, batch_sizes, {});
  return {std::get<0>(results), std::get<1>(results), std::get<2>(results)};
}

at::IntArrayRef as_list(const Tensor& batch_sizes) {
  return {batch_sizes.const_data_ptr<int64_t>(), static_cast<size_t>(batch_sizes.numel())};
}

void lstm(Tensor& output, Tensor& hy, Tensor& cy, const Tensor& input, at::TensorList state, at::TensorList weights,
          bool has_biases, int64_t layers, double dropout, bool train, bool bidirectional, bool batch_first) {
  std::tie(output, hy, cy) = call_rnn(
      input, state[0], state[1], weights, has_biases, kLstm, layers, dropout, train, bidirectional, batch_first, {});
}

void lstm_packed(Tensor& output, Tensor& hy, Tensor& cy, const Tensor& input, const Tensor& batch_sizes,
                 at::TensorList state, at::TensorList weights, bool has_biases, int64_t layers, double dropout, bool train,
                 bool bidirectional) {
  std::tie(output, hy, cy) = call_rnn(
      input, state[0], state[1], weights, has_biases, kLstm, layers, dropout, train, bidirectional, false,
      as_list(batch_sizes));
}

template <int64_t mode>
void rnn(Tensor& output, Tensor& hy, const Tensor& input, const Tensor& hx, at::TensorList weights, bool has_biases,
         int64_t layers, double dropout, bool train, bool bidirectional, bool batch_first) {
  Tensor no_cells;
  std::tie(output, hy, no_cells) = call_rnn(
      input, hx, {}, weights, has_biases, mode, layers, dropout, train, bidirectional, batch_first, {});
}

template <int64_t mode>
void rnn_packed(Tensor& output, Tensor& hy, const Tensor& input, const Tensor& batch_sizes, const Tensor& hx,
                at::TensorList weights, bool has_biases, int64_t layers, double dropout, bool train, bool bidirectional) {
  Tensor no_cells;
  std::tie(output, hy, no_cells) = call_rnn(
      input, hx, {}, weights, has_biases, mode, layers, dropout, train, bidirectional, false, as_list(batch_sizes));
}

}  // namespace phantom
