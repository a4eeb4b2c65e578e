// Log of every allocation and release on the device, with its category.

#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <set>
#include <unordered_map>

#include "allocator.h"
#include "clocks.h"

namespace phantom {

using at::Tensor;
using c10::Device;
using c10::DeviceType;
using c10::IValue;
using c10::Stream;

const Device kDevice(DeviceType::CUDA, 0);
constexpr int64_t kMaxHostBacked = int64_t{1} << 28;  // bytes of the largest storage whose values are stored

struct Event {
  int64_t id;
  int64_t bytes;  // size of an allocation, or kRelease, kReleaseInUse, kEmptyCache, kEndPool
  int64_t stream;   // or private pool
  int64_t gpu;      // of the process's GPUs; not set for a release
  int64_t started;  // number of operations that the host had started before; see kReleaseInUse
  bool optional = false;  // memory without which the operation chooses another algorithm
};

// kReleaseInUse: operations on other streams than that of the allocation may still use the block. `started` is the
// number of the last operation on these streams.
constexpr int64_t kRelease = -1, kEmptyCache = -2, kReleaseInUse = -3, kEndPool = -4, kAllGpus = -1;

// Number of operations that the host has started, and number of the last one on a stream (counted from 1; 0: none).
// Defined in work.h.
int64_t started_operations();
int64_t last_operation_on(int64_t stream);

struct Log {
  std::mutex mutex;
  CachingAllocator allocator{INT64_MAX};
  std::vector<Event> events;
  std::unordered_map<int64_t, int64_t> tags;           // allocation -> category
  std::unordered_map<int64_t, int64_t> owners;         // allocation -> number of a module's name
  std::unordered_map<const void*, int64_t> by_pointer;  // data pointer in use -> allocation
  int64_t allocations = 0;
  int64_t selected_gpu = kAllGpus;  // the only GPU whose allocations are analyzed and replayed
  Clocks clocks;                    // of the card for which the log is replayed
  bool selects(const Event& event) const { return selected_gpu == kAllGpus || event.bytes < 0 || event.gpu == selected_gpu; }
};

Log& log() {
  static Log* device_log = new Log;
  return *device_log;
}

std::unordered_map<int64_t, int64_t> bytes_alive_after(const Log& device_log, int64_t index) {
  std::unordered_map<int64_t, int64_t> alive;
  for (int64_t place = 0; place <= index; ++place) {
    const Event& event = device_log.events[place];
    if (event.bytes < 0) alive.erase(event.id);
    else if (device_log.selects(event)) alive[event.id] = event.bytes;
  }
  return alive;
}

thread_local int64_t current_stream = 0;
std::atomic<int64_t> streams = 0;  // created so far

// GPU on which this thread allocates. PyTorch sees all tensors of a process on one GPU; only the log knows their GPUs.
thread_local int64_t current_gpu = 0;

// Private pool that a graph is captured in; 0: no graph is captured. All threads of a capture allocate from it.
std::atomic<int64_t> current_pool{0};

// Whether all GPU numbers mean the first GPU. Each of several ranks uses a single GPU, whose number depends on the
// rank.
std::atomic<bool> ignores_gpu_numbers{false};

struct Block {
  int64_t id;
  int64_t address;
  int64_t stream;
  std::set<int64_t> other_streams{};  // streams whose operations used it
  void* host = nullptr;           // memory for values, or null
  bool known = true;              // false if the values depend on floating-point values, which are not computed
  std::optional<double> constant = std::nullopt;  // the common value of all floating-point numbers in it, if known
  bool of_flash = false;          // sums of PyTorch's own flash attention, not cuDNN's
};

// Free all memory that the allocator keeps without using it (torch.cuda.empty_cache).
void empty_cache() {
  Log& device_log = log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  device_log.allocator.release_cached();
  device_log.events.push_back({0, kEmptyCache, 0, 0, 0});
}

// End a private pool that no graph uses any longer.
void end_pool(int64_t pool) {
  Log& device_log = log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  device_log.allocator.end_pool(pool);
  device_log.events.push_back({0, kEndPool, pool, 0, 0});
}

// Repeat an event that concerns cached memory only. Return false for other events.
bool repeat_on_cache(const Event& event, CachingAllocator& allocator) {
  if (event.bytes == kEmptyCache) allocator.release_cached();
  if (event.bytes == kEndPool) allocator.end_pool(event.stream);
  return event.bytes == kEmptyCache || event.bytes == kEndPool;
}

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  int64_t started = 0;
  for (const int64_t stream : block->other_streams) started = std::max(started, last_operation_on(stream));
  Log& device_log = log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  device_log.allocator.release(block->address);
  device_log.events.push_back({block->id, block->other_streams.empty() ? kRelease : kReleaseInUse, 0, 0, started});
  device_log.by_pointer.erase(block->host ? block->host : reinterpret_cast<void*>(block->address));
  std::free(block->host);
  delete block;
}

// Note that operations on a stream use a storage.
void record_use(const c10::DataPtr& data, int64_t stream) {
  auto* block = data.get_deleter() == &release ? static_cast<Block*>(data.get_context()) : nullptr;
  if (block && stream != block->stream) block->other_streams.insert(stream);
}

// Function that is called before each large allocation. The log is not locked during the call, because the function may
// wait for Python's lock.
std::atomic<void (*)()> on_large_allocation{nullptr};
constexpr size_t kLarge = size_t{1} << 20;

c10::DataPtr allocate_block(size_t bytes, bool with_values, bool optional = false) {
  if (bytes == 0) return {nullptr, nullptr, &release, kDevice};
  if (auto* const call = bytes >= kLarge ? on_large_allocation.load() : nullptr) call();
  const int64_t started = started_operations();
  Log& device_log = log();
  std::lock_guard<std::mutex> lock(device_log.mutex);
  const int64_t pool = current_pool ? current_pool.load() : current_stream;
  const int64_t address = device_log.allocator.allocate(bytes, pool);
  auto* block = new Block{.id = ++device_log.allocations, .address = address, .stream = current_stream};
  if (with_values && bytes <= kMaxHostBacked) block->host = std::calloc(bytes, 1);
  device_log.events.push_back({block->id, static_cast<int64_t>(bytes), pool, current_gpu, started, optional});
  void* data = block->host ? block->host : reinterpret_cast<void*>(block->address);
  device_log.by_pointer[data] = block->id;
  return {data, block, &release, kDevice};
}

struct Allocator final : c10::Allocator {
  explicit Allocator(bool with_values) : with_values_(with_values) {}
  c10::DataPtr allocate(size_t bytes) override { return allocate_block(bytes, with_values_); }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void*, const void*, std::size_t) const override {}
  const bool with_values_;
};

Allocator allocator_without_values(false), allocator_with_values(true);

// Return whether the device stores the values of tensors of this type.
bool has_values(c10::ScalarType type) {
  return type == at::kBool || type == at::kLong || type == at::kInt || type == at::kShort;
}

c10::Allocator* allocator_of(c10::ScalarType type) { return has_values(type) ? &allocator_with_values : &allocator_without_values; }

bool is_on_device(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == DeviceType::CUDA; }

Block* find_block(const c10::DataPtr& pointer) {
  return pointer.get_deleter() == &release ? static_cast<Block*>(pointer.get_context()) : nullptr;
}

Block* find_block(const Tensor& tensor) { return find_block(tensor.storage().data_ptr()); }

bool has_known_values(const Block* block) { return block && block->host && block->known; }

bool has_known_values(void* storage) {
  return has_known_values(find_block(static_cast<c10::StorageImpl*>(storage)->data_ptr()));
}

// Return whether the values of a tensor can be read: they are in host memory and known.
bool has_readable_values(const Tensor& tensor) {
  if (!is_on_device(tensor)) return true;
  if (!has_values(tensor.scalar_type())) return false;
  if (!tensor.storage().data_ptr().get()) return true;
  return has_known_values(find_block(tensor));
}

// Mark the values of a tensor as unknown, because they depend on floating-point values, which are not computed.
void forget_values(const Tensor& tensor) {
  if (Block* block = is_on_device(tensor) ? find_block(tensor) : nullptr) {
    block->known = false;
    block->constant.reset();
  }
}

}  // namespace phantom
