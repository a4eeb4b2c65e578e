// A simulated CUDA device. Its tensors have shapes, types and storages, but no memory.
//
// The library registers itself as PyTorch's CUDA backend, and replaces the real backend if PyTorch has one. An
// operation on its tensors runs on PyTorch's own meta device, which computes the shapes of the results. Their storages
// come from a simulated caching allocator that logs every allocation and release. Integer and boolean tensors have
// values in host memory, so that masks, positions and lengths are correct. Floating-point values are neither stored nor
// computed, and read as zero.

#include <ATen/native/RNN.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/view_native.h>

#include <map>

#include "backend.h"
#include "card.h"
#include "ddp.h"
#include "host.h"
#include "operations.h"
#include "recurrent.h"
#include "run.h"

namespace at::native {
REGISTER_CUDA_DISPATCH(_fused_sdp_choice_stub, &phantom::choose_attention)
REGISTER_CUDA_DISPATCH(lstm_cudnn_stub, &phantom::lstm)
REGISTER_CUDA_DISPATCH(lstm_packed_cudnn_stub, &phantom::lstm_packed)
REGISTER_CUDA_DISPATCH(gru_cudnn_stub, &phantom::rnn<phantom::kGru>)
REGISTER_CUDA_DISPATCH(gru_packed_cudnn_stub, &phantom::rnn_packed<phantom::kGru>)
REGISTER_CUDA_DISPATCH(rnn_tanh_cudnn_stub, &phantom::rnn<phantom::kTanh>)
REGISTER_CUDA_DISPATCH(rnn_tanh_packed_cudnn_stub, &phantom::rnn_packed<phantom::kTanh>)
REGISTER_CUDA_DISPATCH(rnn_relu_cudnn_stub, &phantom::rnn<phantom::kRelu>)
REGISTER_CUDA_DISPATCH(rnn_relu_packed_cudnn_stub, &phantom::rnn_packed<phantom::kRelu>)
}
namespace at {
using PhantomHooks = phantom::Hooks;
C10_REGISTER_CLASS_WITH_PRIORITY(CUDAHooksRegistry, CUDAHooks, c10::REGISTRY_PREFERRED, PhantomHooks)
}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&phantom::run>());
}

// Replace the CUDA kernels of a library's operations with the fallback. Operations on lists of tensors (_foreach) get
// the fallback even without a CUDA kernel: a GPU has one kernel for the whole list, and PyTorch's build without CUDA
// would split the list.
void replace_kernels(const std::string& library) {
  auto& dispatcher = c10::Dispatcher::singleton();
  auto* kept = new std::vector<c10::RegistrationHandleRAII>;
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findSchema(name);
    const bool on_list = name.name.rfind("aten::_foreach_", 0) == 0;
    if (!op || !(on_list || op->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) || name.name.rfind(library + "::", 0) != 0) continue;
    kept->push_back(dispatcher.registerImpl(
        name, c10::DispatchKey::CUDA, c10::KernelFunction::makeFromBoxedFunction<&phantom::run>(), std::nullopt,
        nullptr, "phantom"));
  }
}

// Register operations that have an implementation of their own. They are registered last, because a later kernel
// replaces an earlier one.
void add_operations() {
  static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  library.impl("empty.memory_format", TORCH_FN(phantom::empty));
  library.impl("empty_strided", TORCH_FN(phantom::empty_strided));
  library.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  library.impl("view", TORCH_FN(at::native::view));
  library.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  library.impl("copy_", TORCH_FN(phantom::copy_));
  library.impl("_local_scalar_dense", TORCH_FN(phantom::local_scalar));
  library.impl("masked_select", TORCH_FN(phantom::masked_select));
  library.impl("equal", TORCH_FN(phantom::equal));
  library.impl("set_.source_Storage", TORCH_FN(phantom::set_whole_storage));
  library.impl("set_.source_Storage_storage_offset", TORCH_FN(phantom::set_storage));
  library.impl("set_.source_Tensor", TORCH_FN(phantom::set_tensor));
  library.impl("resize_", TORCH_FN(phantom::resize_));
  library.impl("native_layer_norm", TORCH_FN(phantom::native_layer_norm));
  library.impl("native_layer_norm_backward", TORCH_FN(phantom::native_layer_norm_backward));
  library.impl("native_dropout", TORCH_FN(phantom::native_dropout));
  library.impl("native_dropout_backward", TORCH_FN(phantom::native_dropout_backward));
  library.impl("relu", TORCH_FN(phantom::relu));
  for (const std::string name : {"_use_cudnn_ctc_loss", "_use_miopen_ctc_loss"}) {
    library.impl(name.c_str(), TORCH_FN(phantom::never_use_library_ctc));
    library.impl((name + ".Tensor").c_str(), TORCH_FN(phantom::never_use_library_ctc_tensors));
  }
  library.impl("_ctc_loss", TORCH_FN(phantom::ctc_loss));
  library.impl("_ctc_loss.Tensor", TORCH_FN(phantom::ctc_loss_tensors));
  library.impl("_ctc_loss_backward", TORCH_FN(phantom::ctc_loss_backward<c10::IntArrayRef>));
  library.impl("_ctc_loss_backward.Tensor", TORCH_FN(phantom::ctc_loss_backward<const at::Tensor&>));
  library.impl("_cudnn_rnn_flatten_weight", TORCH_FN(phantom::flatten_weights));
  library.impl("_cudnn_rnn", TORCH_FN(phantom::cudnn_rnn));
  library.impl("_cudnn_rnn_backward", TORCH_FN(phantom::cudnn_rnn_backward));
  // PyTorch's build without CUDA splits these into other operations, which need more memory than their CUDA kernels.
  for (const char* whole :
       {"convolution", "convolution_backward", "silu_backward", "mish_backward", "native_group_norm", "_fused_rms_norm",
        "addr", "addr.out", "_chunk_cat", "_chunk_cat.out", "split_with_sizes_copy.out"})
    library.impl(whole, torch::CppFunction::makeFromBoxedFunction<&phantom::run>());
}

// Replace operations that write to large tensors on the host with ones that do nothing. Hide PyTorch's warning that
// kernels are replaced.
void replace_writes_on_host() {
  struct Silent : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
  library.impl("copy_", TORCH_FN(phantom::copy_on_host));
  library.impl("zero_", TORCH_FN(phantom::zero_on_host));
  library.impl("fill_.Scalar", TORCH_FN(phantom::fill_on_host));
  library.impl("normal_", TORCH_FN(phantom::normal_on_host));
  library.impl("uniform_", TORCH_FN(phantom::uniform_on_host));
}

extern "C" {

// Register the device with PyTorch at the first call. Set the properties of the card (CardProperties in card.h).
void phantom_install(
    int64_t flash, int64_t efficient, int64_t bfloat_efficient, int64_t cudnn_width,
    int64_t workspace_bytes, int64_t multiprocessors, int64_t attention_generation) {
  static bool registered = false;
  if (!registered) {
    c10::impl::DeviceGuardImplRegistrar(c10::DeviceType::CUDA, new phantom::Guard());
    replace_kernels("aten");
    add_operations();
    phantom::remove_timer_of_ddp();
  }
  registered = true;
  phantom::card.flash = flash;
  phantom::card.efficient = efficient;
  phantom::card.bfloat_efficient = bfloat_efficient;
  phantom::card.cudnn_width = cudnn_width;
  phantom::card.workspace_bytes = workspace_bytes;
  phantom::card.multiprocessors = multiprocessors;
  phantom::card.attention_generation = attention_generation;
}

void phantom_replace_kernels(const char* library) { replace_kernels(library); }

// Return allocated bytes, reserved bytes, their peaks since the last reset, and the number of events.
void phantom_stats(int64_t* out) {
  auto& device_log = phantom::log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  const auto& allocator = device_log.allocator;
  const int64_t values[] = {
      allocator.allocated(), allocator.reserved(), allocator.peak_allocated(), allocator.peak_reserved(),
      static_cast<int64_t>(device_log.events.size())};
  std::copy(std::begin(values), std::end(values), out);
}

void phantom_reset_peaks() {
  auto& device_log = phantom::log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  device_log.allocator.reset_peaks();
}

void phantom_empty_cache() { phantom::empty_cache(); }

// Set the category of the storage at `pointer`. Returns false if there is no storage.
bool phantom_tag(const void* pointer, int64_t category) {
  auto& device_log = phantom::log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  const auto found = device_log.by_pointer.find(pointer);
  if (found != device_log.by_pointer.end()) device_log.tags[found->second] = category;
  return found != device_log.by_pointer.end();
}

// Set the owner of the allocation at a data pointer. Do nothing if the device has no allocation there.
void phantom_set_owner(const void* pointer, int64_t owner) {
  auto& device_log = phantom::log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  const auto found = device_log.by_pointer.find(pointer);
  if (found != device_log.by_pointer.end()) device_log.owners[found->second] = owner;
}

// Replay the log on a card with `capacity` bytes. out: peak of allocated bytes, peak of reserved bytes, number of
// retries, event with the most allocated bytes, event that did not fit (-1: none), bytes that this event requested.
void phantom_replay(int64_t capacity, int64_t* out) {
  auto& device_log = phantom::log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  phantom::CachingAllocator allocator(capacity);
  std::unordered_map<int64_t, int64_t> addresses;
  std::multimap<int64_t, int64_t> in_use;  // number of operations that must be executed -> released allocation
  int64_t highest = -1, highest_event = 0, failed_event = -1, requested = 0;
  for (size_t index = 0; index < device_log.events.size() && failed_event < 0; ++index) {
    const auto& event = device_log.events[index];
    if (phantom::repeat_on_cache(event, allocator)) continue;
    if (event.bytes == phantom::kRelease || event.bytes == phantom::kReleaseInUse) {
      const auto found = addresses.find(event.id);
      if (found == addresses.end()) continue;  // on another GPU
      if (event.bytes == phantom::kRelease) {
        allocator.release(found->second);
      } else {
        allocator.release_in_use(found->second, event.id);
        in_use.emplace(event.started, event.id);
      }
      addresses.erase(found);
      continue;
    }
    if (!device_log.selects(event)) continue;
    for (; !in_use.empty() && device_log.clocks.gpu_has_executed(in_use.begin()->first, event.started); in_use.erase(in_use.begin()))
      allocator.free_after_use(in_use.begin()->second);
    try {
      addresses[event.id] = allocator.allocate(event.bytes, event.stream);
    } catch (const phantom::OutOfMemory& full) {
      if (event.optional) continue;
      failed_event = static_cast<int64_t>(index);
      requested = full.requested;
    }
    if (allocator.allocated() > highest) {
      highest = allocator.allocated();
      highest_event = static_cast<int64_t>(index);
    }
  }
  const int64_t values[] = {
      allocator.peak_allocated(), allocator.peak_reserved(), allocator.retries(), highest_event, failed_event,
      requested};
  std::copy(std::begin(values), std::end(values), out);
}

// Return whether the values of a storage are known. They are in host memory, at its data pointer.
bool phantom_has_values(void* storage) { return phantom::has_known_values(storage); }

// Write the allocated bytes right after event `index` by category, 0 to count-1. Category 0 is untagged.
void phantom_bytes_by_category(int64_t index, int64_t count, int64_t* out) {
  auto& device_log = phantom::log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  std::fill(out, out + count, 0);
  for (const auto& [id, bytes] : phantom::bytes_alive_after(device_log, index)) {
    const auto tag = device_log.tags.find(id);
    out[tag == device_log.tags.end() ? 0 : tag->second] += bytes;
  }
}

// Return the number of allocations that are alive right after event `index`. Write the first `capacity` of them, four
// values each: the event that allocated it, its bytes, its category, its owner (0: none).
int64_t phantom_live_allocations(int64_t index, int64_t capacity, int64_t* out) {
  auto& device_log = phantom::log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  std::unordered_map<int64_t, int64_t> born;
  for (int64_t place = 0; place <= index; ++place) {
    const auto& event = device_log.events[place];
    if (event.bytes < 0) born.erase(event.id);
    else if (device_log.selects(event)) born[event.id] = place;
  }
  int64_t written = 0;
  for (const auto& [id, place] : born) {
    if (written == capacity) break;
    const auto tag = device_log.tags.find(id);
    const auto owner = device_log.owners.find(id);
    const int64_t values[] = {
        place, device_log.events[place].bytes, tag == device_log.tags.end() ? 0 : tag->second,
        owner == device_log.owners.end() ? 0 : owner->second};
    std::copy(std::begin(values), std::end(values), out + 4 * written++);
  }
  return static_cast<int64_t>(born.size());
}

// Write the maximum of allocated bytes in each of `points` equal parts of the log.
void phantom_timeline(int64_t points, int64_t* out) {
  auto& device_log = phantom::log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  std::fill(out, out + points, 0);
  std::unordered_map<int64_t, int64_t> sizes;
  int64_t now = 0;
  const auto count = static_cast<int64_t>(device_log.events.size());
  for (int64_t place = 0; place < count; ++place) {
    const auto& event = device_log.events[place];
    if (event.bytes >= 0 && device_log.selects(event)) now += sizes[event.id] = event.bytes;
    else if (event.bytes == phantom::kRelease || event.bytes == phantom::kReleaseInUse) now -= sizes[event.id];
    int64_t& highest = out[place * points / count];
    highest = std::max(highest, now);
  }
}

// Set the category of all untagged storages that exist right after event `index`.
void phantom_tag_untagged(int64_t index, int64_t category) {
  auto& device_log = phantom::log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  for (const auto& [id, bytes] : phantom::bytes_alive_after(device_log, index)) device_log.tags.try_emplace(id, category);
}

// Change the size of a storage (a StorageImpl), like storage.resize_ on a GPU.
void phantom_resize(void* storage, int64_t bytes) {
  auto* impl = static_cast<c10::StorageImpl*>(storage);
  if (static_cast<int64_t>(impl->nbytes()) == bytes) return;
  impl->set_data_ptr_noswap(phantom::allocate_block(bytes, false));
  impl->set_nbytes(bytes);
}

// From now on, count the host memory of tensors, and give large tensors addresses without memory.
void phantom_count_host_memory() {
  if (!phantom::host_memory_counted.exchange(true)) replace_writes_on_host();
  c10::SetCPUAllocator(&phantom::host_allocator, 255);
}

// Call a function before each allocation of 1 MiB or more; null: none.
void phantom_on_large_allocation(void (*call)()) { phantom::on_large_allocation = call; }

// Log an operation that is not one of PyTorch's, such as a collective operation.
void phantom_log_operation(const char* key) { phantom::log_key(key); }

int64_t phantom_operation_count() { return phantom::started_operations(); }

// Write the numbers of the keys of the operations `begin` to `end` - 1, and whether each was recomputed.
void phantom_operations(int64_t begin, int64_t end, int64_t* out, bool* recomputed) {
  auto& device_work = phantom::work();
  std::lock_guard<std::mutex> lock(device_work.mutex);
  std::copy(device_work.executed.begin() + begin, device_work.executed.begin() + end, out);
  std::copy(device_work.recomputed.begin() + begin, device_work.recomputed.begin() + end, recomputed);
}

const char* phantom_operation_key(int64_t number) {
  auto& device_work = phantom::work();
  std::lock_guard<std::mutex> lock(device_work.mutex);
  return device_work.keys[number]->c_str();
}

int64_t phantom_host_peak() { return phantom::host_peak; }

// Allocate on this GPU of the process from now on, in this thread.
void phantom_set_gpu(int64_t gpu) { phantom::current_gpu = gpu; }

// Use a single GPU from now on, whatever number the process calls it by.
void phantom_ignore_gpu_numbers() { phantom::ignores_gpu_numbers = true; }

// Analyze the log of one GPU from now on.
void phantom_select_gpu(int64_t gpu) { phantom::log().selected_gpu = gpu; }

// Note that operations on a stream use a storage (a StorageImpl).
void phantom_record_use(void* storage, int64_t stream) {
  phantom::record_use(static_cast<c10::StorageImpl*>(storage)->data_ptr(), stream);
}

// Write the scratch memory of flash attention's forward pass, or of its backward pass: the sizes of up to four blocks.
// Return their number. sizes: batch, heads, heads of the keys, length, length of the keys, width, bytes of an element,
// and whether texts of different lengths are concatenated.
int64_t phantom_flash_scratch(const int64_t* sizes, bool backward, double dropout, bool deterministic, int64_t* out) {
  const phantom::AttentionSizes given{
      sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[5], sizes[6], sizes[7] != 0};
  const auto scratch =
      backward ? phantom::flash_backward_scratch(given, deterministic) : phantom::flash_scratch(given, dropout);
  std::copy(scratch.begin(), scratch.end(), out);
  return static_cast<int64_t>(scratch.size());
}

// Return the number of the last operation that a stream executes or waits for, counted from 1; 0: none.
int64_t phantom_last_operation_on(int64_t stream) { return phantom::last_operation_on(stream); }

// Return the number of waits of the host for the GPU.
int64_t phantom_wait_count() {
  auto& device_work = phantom::work();
  std::lock_guard<std::mutex> lock(device_work.mutex);
  return static_cast<int64_t>(device_work.waits.size());
}

// Write the first `count` waits of the host: the number of operations started, and of those that it waited for.
void phantom_waits(int64_t count, int64_t* out) {
  auto& device_work = phantom::work();
  std::lock_guard<std::mutex> lock(device_work.mutex);
  for (int64_t place = 0; place < count; ++place)
    std::tie(out[2 * place], out[2 * place + 1]) = device_work.waits[place];
}

// Return whether the program released a block that another stream may still have used.
bool phantom_released_in_use() {
  auto& device_log = phantom::log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  const auto& events = device_log.events;
  return std::any_of(events.begin(), events.end(), [](const auto& event) { return event.bytes == phantom::kReleaseInUse; });
}

// Remove all points from the clocks of replays.
void phantom_clear_clocks() { phantom::log().clocks.clear(); }

// Add a point to the clocks of replays (Clocks in clocks.h). Add the points in the order of their numbers of
// operations.
void phantom_add_clock_point(int64_t operations, double host_s, double gpu_s) {
  phantom::log().clocks.add(operations, host_s, gpu_s);
}

// Allocate from this private pool from now on, in all threads; 0: from the pools of streams.
void phantom_set_pool(int64_t pool) { phantom::current_pool = pool ? phantom::kFirstPrivatePool + pool : 0; }

void phantom_end_pool(int64_t pool) { phantom::end_pool(phantom::kFirstPrivatePool + pool); }

int64_t phantom_set_stream(int64_t stream) {
  std::swap(phantom::current_stream, stream);
  return stream;
}
}
