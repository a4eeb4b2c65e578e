// Model of PyTorch's caching allocator. It computes which blocks are returned, reserved, cached and freed, and uses no
// memory.
//
// The rules are those of c10/cuda/CUDACachingAllocator.cpp with default settings. Sizes are multiples of 512 bytes.
// Requests of up to 1 MiB share segments of 2 MiB, requests of less than 10 MiB share segments of 20 MiB, and larger
// requests get segments in multiples of 2 MiB. A request gets the smallest sufficient block in the stream's pool; of
// equal blocks, the one with the lowest address. The rest of the block is split off (small pool: from 512 bytes, large
// pool: above 1 MiB). Adjacent free blocks are merged. If a segment cannot be allocated, all completely free segments
// are freed and the allocation is retried once. A released block that the GPU still uses on another stream is not free
// until the GPU has executed that work; it counts as neither allocated nor free until then. A captured graph allocates
// from a private pool, whose segments stay reserved while the graph exists.
//
// The driver decides the addresses of segments. It places the first segments of the large pool in a free range, one
// above the other. It places each later segment, and each of the small pool, below all segments so far. Of 15 programs
// on an H200 (driver 580.159), 8 had such a range, with 340 MiB to 402 MiB; the addresses of all 15 had this order,
// with few exceptions.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <vector>

namespace phantom {

constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kRangeBegin = int64_t{1} << 46, kRangeBytes = 340 * kMiB;  // the range of the first large segments

constexpr int64_t kFirstPrivatePool = int64_t{1} << 32;  // higher numbers are private pools of graphs, not streams

struct OutOfMemory {
  int64_t requested;
  int64_t allocated;
  int64_t reserved;
};

class CachingAllocator {
 public:
  explicit CachingAllocator(int64_t capacity) : capacity_(capacity) {}

  // Return the address of a block of at least `bytes`. Throws OutOfMemory.
  int64_t allocate(int64_t bytes, int64_t stream) {
    const int64_t size = round_up(bytes);
    const bool small = size <= kMiB;
    auto& pool = pools_[{stream, small}];
    auto found = pool.lower_bound({size, 0});
    int64_t address = found != pool.end() ? found->second : new_segment(size, small, stream);
    pool.erase({blocks_.at(address).size, address});
    split(address, size);
    Block& block = blocks_.at(address);
    block.used = true;
    allocated_ += block.size;
    peak_allocated_ = std::max(peak_allocated_, allocated_);
    return address;
  }

  void release(int64_t address) {
    allocated_ -= blocks_.at(address).size;
    make_free(address);
  }

  // Release the block of allocation `id`, which the GPU still uses.
  void release_in_use(int64_t address, int64_t id) {
    allocated_ -= blocks_.at(address).size;
    in_use_[id] = address;
  }

  // Make the released block of allocation `id` free, because the GPU no longer uses it.
  void free_after_use(int64_t id) {
    const auto found = in_use_.find(id);
    if (found == in_use_.end()) return;
    make_free(found->second);
    in_use_.erase(found);
  }

  // No graph uses this private pool any longer, so its free segments can be freed.
  void end_pool(int64_t stream) { ended_pools_.insert(stream); }

  // Free every completely free segment (torch.cuda.empty_cache). This waits for the GPU.
  void release_cached() {
    while (!in_use_.empty()) free_after_use(in_use_.begin()->first);
    for (auto& [key, pool] : pools_) {
      if (key.first >= kFirstPrivatePool && !ended_pools_.count(key.first)) continue;
      for (auto entry = pool.begin(); entry != pool.end();) {
        const Block& block = blocks_.at(entry->second);
        if (block.previous || block.next) {
          ++entry;
          continue;
        }
        reserved_ -= block.size;
        blocks_.erase(entry->second);
        entry = pool.erase(entry);
      }
    }
  }

  void reset_peaks() {
    peak_allocated_ = allocated_;
    peak_reserved_ = reserved_;
  }

  int64_t allocated() const { return allocated_; }
  int64_t reserved() const { return reserved_; }
  int64_t peak_allocated() const { return peak_allocated_; }
  int64_t peak_reserved() const { return peak_reserved_; }
  int64_t retries() const { return retries_; }

 private:
  struct Block {
    int64_t size;
    int64_t stream;
    bool small;
    bool used;
    std::optional<int64_t> previous, next;
  };

  void make_free(int64_t address) {
    Block& block = blocks_.at(address);
    block.used = false;
    if (block.next && !blocks_.at(*block.next).used) {
      remove_from_pool(*block.next);
      merge(address, *block.next);
    }
    if (block.previous && !blocks_.at(*block.previous).used) {
      const int64_t previous = *block.previous;
      remove_from_pool(previous);
      merge(previous, address);
      address = previous;
    }
    const Block& merged = blocks_.at(address);
    pools_[{merged.stream, merged.small}].insert({merged.size, address});
  }

  static int64_t round_up(int64_t bytes) { return bytes < 512 ? 512 : (bytes + 511) / 512 * 512; }

  static int64_t segment_size(int64_t size, bool small) {
    if (small) return 2 * kMiB;
    if (size < 10 * kMiB) return 20 * kMiB;
    return (size + 2 * kMiB - 1) / (2 * kMiB) * (2 * kMiB);
  }

  int64_t new_segment(int64_t size, bool small, int64_t stream) {
    const int64_t bytes = segment_size(size, small);
    if (reserved_ + bytes > capacity_) {
      ++retries_;
      release_cached();
      if (reserved_ + bytes > capacity_) throw OutOfMemory{size, allocated_, reserved_};
    }
    const int64_t address = place_segment(bytes, small);
    reserved_ += bytes;
    peak_reserved_ = std::max(peak_reserved_, reserved_);
    blocks_[address] = Block{bytes, stream, small, false, std::nullopt, std::nullopt};
    return address;
  }

  int64_t place_segment(int64_t bytes, bool small) {
    if (small || range_end_ + bytes > kRangeBegin + kRangeBytes) return lowest_address_ -= bytes;
    range_end_ += bytes;
    return range_end_ - bytes;
  }

  void split(int64_t address, int64_t size) {
    Block& block = blocks_.at(address);
    const int64_t rest = block.size - size;
    if (block.small ? rest < 512 : rest <= kMiB) return;
    const int64_t tail = address + size;
    blocks_[tail] = Block{rest, block.stream, block.small, false, address, block.next};
    if (block.next) blocks_.at(*block.next).previous = tail;
    block.next = tail;
    block.size = size;
    pools_[{block.stream, block.small}].insert({rest, tail});
  }

  // Merge block `second` into the adjacent block `first`.
  void merge(int64_t first, int64_t second) {
    Block& kept = blocks_.at(first);
    const Block gone = blocks_.at(second);
    kept.size += gone.size;
    kept.next = gone.next;
    if (gone.next) blocks_.at(*gone.next).previous = first;
    blocks_.erase(second);
  }

  void remove_from_pool(int64_t address) {
    const Block& block = blocks_.at(address);
    pools_[{block.stream, block.small}].erase({block.size, address});
  }

  const int64_t capacity_;
  int64_t allocated_ = 0, reserved_ = 0, peak_allocated_ = 0, peak_reserved_ = 0, retries_ = 0;
  int64_t range_end_ = kRangeBegin, lowest_address_ = kRangeBegin;
  std::map<int64_t, Block> blocks_;
  std::map<int64_t, int64_t> in_use_;  // allocation -> address of its released block
  std::map<std::pair<int64_t, bool>, std::set<std::pair<int64_t, int64_t>>> pools_;
  std::set<int64_t> ended_pools_;
};

}  // namespace phantom
