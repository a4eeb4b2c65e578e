// A CUDA device that is not there: tensors on it have shapes, types and storages, and no memory behind them.
//
// Registers itself as the CUDA backend of a PyTorch that was built without one. An operation on its tensors runs on
// PyTorch's own meta device, which works out the results' shapes; their storages come from a simulated caching
// allocator that logs every allocation and release. Integer and boolean tensors do have values, in host memory, so that
// masks, positions and lengths are what they would be; floating-point values do not exist and read as zero.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/copy_native.h>
#include <ATen/ops/fill_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/zero_native.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "allocator.h"

namespace phantom {

using at::Tensor;
using c10::Device;
using c10::DeviceType;
using c10::IValue;
using c10::Stream;

const Device kDevice(DeviceType::CUDA, 0);
constexpr int64_t kMaxHostBacked = int64_t{1} << 28;

// ---------------------------------------------------------------------------------------------- the log

struct Event {
  int64_t id;
  int64_t bytes;  // of an allocation; -1: a release
  int64_t stream;
};

struct Log {
  std::mutex mutex;
  CachingAllocator allocator{INT64_MAX};
  std::vector<Event> events;
  std::unordered_map<int64_t, int64_t> tags;           // allocation -> category
  std::unordered_map<const void*, int64_t> by_pointer;  // living data pointer -> allocation
  int64_t allocations = 0;
};

Log& log() {
  static Log* the = new Log;
  return *the;
}

std::unordered_map<int64_t, int64_t> alive_after(const Log& the, int64_t index) {
  std::unordered_map<int64_t, int64_t> alive;
  for (int64_t place = 0; place <= index; ++place) {
    const Event& event = the.events[place];
    if (event.bytes < 0) alive.erase(event.id);
    else alive[event.id] = event.bytes;
  }
  return alive;
}

thread_local int64_t current_stream = 0;

struct Block {
  int64_t id;
  int64_t address;
  void* host;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  Log& the = log();
  std::lock_guard<std::mutex> lock(the.mutex);
  the.allocator.release(block->address);
  the.events.push_back({block->id, -1, 0});
  the.by_pointer.erase(block->host ? block->host : reinterpret_cast<void*>(block->address));
  std::free(block->host);
  delete block;
}

c10::DataPtr allocate_block(size_t bytes, bool with_values) {
  if (bytes == 0) return {nullptr, nullptr, &release, kDevice};
  Log& the = log();
  std::lock_guard<std::mutex> lock(the.mutex);
  auto* block = new Block{++the.allocations, the.allocator.allocate(bytes, current_stream), nullptr};
  if (with_values && bytes <= kMaxHostBacked) block->host = std::calloc(bytes, 1);
  the.events.push_back({block->id, static_cast<int64_t>(bytes), current_stream});
  void* data = block->host ? block->host : reinterpret_cast<void*>(block->address);
  the.by_pointer[data] = block->id;
  return {data, block, &release, kDevice};
}

struct Allocator final : c10::Allocator {
  explicit Allocator(bool with_values) : with_values_(with_values) {}
  c10::DataPtr allocate(size_t bytes) override { return allocate_block(bytes, with_values_); }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void*, const void*, std::size_t) const override {}
  const bool with_values_;
};

Allocator no_values(false), values(true);

bool has_values(c10::ScalarType type) {
  return type == at::kBool || type == at::kLong || type == at::kInt || type == at::kShort;
}

c10::Allocator* allocator_of(c10::ScalarType type) { return has_values(type) ? &values : &no_values; }

bool is_here(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == DeviceType::CUDA; }

// Whether the values of a tensor can be read: host memory stands behind it.
bool readable(const Tensor& tensor) {
  if (!is_here(tensor)) return true;
  if (!has_values(tensor.scalar_type())) return false;
  const auto& pointer = tensor.storage().data_ptr();
  if (!pointer.get()) return true;
  return pointer.get_deleter() == &release && static_cast<Block*>(pointer.get_context())->host != nullptr;
}

// ---------------------------------------------------------------------------------------------- making tensors

const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

Tensor empty_strided_here(c10::IntArrayRef sizes, c10::IntArrayRef strides, c10::ScalarType type) {
  return at::detail::empty_strided_generic(sizes, strides, allocator_of(type), kKeys, type);
}

c10::ScalarType type_or_default(std::optional<c10::ScalarType> type) {
  return type.value_or(c10::typeMetaToScalarType(at::get_default_dtype()));
}

Tensor empty(
    c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>, std::optional<Device>,
    std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  const auto scalar = type_or_default(type);
  return at::detail::empty_generic(size, allocator_of(scalar), kKeys, scalar, format);
}

Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
    std::optional<Device>, std::optional<bool>) {
  return empty_strided_here(size, stride, type_or_default(type));
}

// A tensor on the host over the same values.
Tensor on_host(const Tensor& tensor) {
  if (!is_here(tensor)) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.scalar_type()).device(at::kCPU);
  if (!tensor.storage().data_ptr().get()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  char* data = static_cast<char*>(tensor.storage().data_ptr().get()) + tensor.storage_offset() * tensor.itemsize();
  return at::from_blob(data, tensor.sizes(), tensor.strides(), options);
}

Tensor from_host(const Tensor& tensor) {
  Tensor made = empty_strided_here(tensor.sizes(), tensor.strides(), tensor.scalar_type());
  if (readable(made) && made.numel()) on_host(made).copy_(tensor);
  return made;
}

// A tensor of the same shape on the meta device.
Tensor as_meta(const Tensor& tensor) {
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
      c10::DataPtr(nullptr, Device(DeviceType::Meta)), c10::GetAllocator(DeviceType::Meta), true);
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::Meta), tensor.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return made;
}

void take_shape(const Tensor& tensor, const Tensor& shape) {
  auto* impl = tensor.unsafeGetTensorImpl();
  const size_t bytes = at::detail::computeStorageNbytes(
      shape.sizes(), shape.strides(), tensor.itemsize(), tensor.storage_offset());
  if (bytes > tensor.storage().nbytes()) {
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(allocator_of(tensor.scalar_type())->allocate(bytes));
    storage->set_nbytes(bytes);
  }
  impl->set_sizes_and_strides(shape.sizes(), shape.strides());
}

// ---------------------------------------------------------------------------------------------- running operations

// Applies `change` to every tensor of an argument, inside lists too.
template <typename Change>
IValue changed(const IValue& value, const Change& change) {
  if (value.isTensor()) return value.toTensor().defined() ? IValue(change(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<Tensor> made;
    for (const Tensor& tensor : value.toTensorVector()) made.push_back(change(tensor));
    return made;
  }
  if (value.isList() && !value.isIntList() && !value.isDoubleList() && !value.isBoolList()) {
    auto list = value.toList();
    auto made = c10::impl::GenericList(list.elementType());
    for (const IValue element : list) made.push_back(changed(element, change));
    return made;
  }
  return value;
}

// Indices by a mask have as many results as the mask has true elements: its values are needed, as positions.
void positions_for_masks(torch::jit::Stack* stack, size_t first) {
  for (size_t place = first; place < stack->size(); ++place) {
    IValue& argument = (*stack)[place];
    if (!argument.isList() || argument.toList().elementType()->kind() != c10::TypeKind::OptionalType) continue;
    auto made = c10::List<std::optional<Tensor>>();
    for (const IValue element : argument.toList()) {
      if (!element.isTensor() || element.toTensor().scalar_type() != at::kBool || !readable(element.toTensor())) {
        made.push_back(element.isTensor() ? std::optional<Tensor>(element.toTensor()) : std::nullopt);
        continue;
      }
      for (const Tensor& column : on_host(element.toTensor()).nonzero().unbind(1)) made.push_back(from_host(column));
    }
    argument = made;
  }
}

// An operation that only writes values that do not exist, into tensors that have their shape, is done at once: in place,
// or into outputs that were made for it. What it returns is what it was to write.
std::optional<std::vector<IValue>> nothing_to_write(
    const c10::FunctionSchema& schema, const std::vector<IValue>& arguments) {
  const bool in_place = schema.name().back() == '_';
  std::vector<IValue> written;
  bool nothing = true;
  for (size_t place = 0; place < arguments.size(); ++place) {
    const auto* alias = schema.arguments()[place].alias_info();
    if (!alias || !alias->isWrite()) continue;
    written.push_back(arguments[place]);
    changed(arguments[place], [&](const Tensor& tensor) {
      nothing = nothing && is_here(tensor) && !readable(tensor) && (in_place || tensor.numel());
      return tensor;
    });
  }
  if (written.empty() || !nothing || schema.returns().size() > written.size()) return std::nullopt;
  for (const auto& returned : schema.returns())
    if (!returned.alias_info() || !returned.alias_info()->isWrite()) return std::nullopt;
  written.resize(schema.returns().size());
  return written;
}

void use_workspace(const std::string& name);

void run(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size(), first = stack->size() - count;
  use_workspace(schema.name());
  if (schema.name() == "aten::index" || schema.name() == "aten::index_put_" || schema.name() == "aten::_index_put_impl_")
    positions_for_masks(stack, first);
  const std::vector<IValue> arguments(stack->begin() + first, stack->end());

  if (const auto written = nothing_to_write(schema, arguments)) {
    stack->erase(stack->begin() + first, stack->end());
    stack->insert(stack->end(), written->begin(), written->end());
    return;
  }

  bool all_readable = true, any_tensor = false;
  for (const IValue& argument : arguments)
    changed(argument, [&](const Tensor& tensor) {
      any_tensor = true;
      all_readable = all_readable && readable(tensor);
      return tensor;
    });
  const bool on_values = any_tensor && all_readable;

  std::unordered_map<c10::TensorImpl*, Tensor> twins;
  std::vector<std::pair<Tensor, Tensor>> pairs;
  const auto twin = [&](const Tensor& tensor) {
    if (!on_values && tensor.unsafeGetTensorImpl()->is_wrapped_number()) return tensor;
    auto& made = twins[tensor.unsafeGetTensorImpl()];
    if (!made.defined()) {
      made = !on_values ? as_meta(tensor) : tensor.numel() ? on_host(tensor) : at::empty({0}, tensor.options().device(at::kCPU));
      if (on_values && !tensor.numel()) made.resize_(tensor.sizes());
      pairs.emplace_back(tensor, made);
    }
    return made;
  };
  const Device elsewhere(on_values ? DeviceType::CPU : DeviceType::Meta);
  for (size_t place = 0; place < count; ++place) {
    IValue& argument = (*stack)[first + place];
    argument = arguments[place].isDevice() ? IValue(elsewhere) : changed(arguments[place], twin);
  }
  op.redispatchBoxed(c10::DispatchKeySet(on_values ? c10::DispatchKey::CPU : c10::DispatchKey::Meta), stack);

  for (const auto& [tensor, made] : pairs) {
    if (!is_here(tensor) || tensor.sizes() == made.sizes()) continue;
    take_shape(tensor, made);
    if (on_values && tensor.numel()) on_host(tensor).copy_(made);
  }
  const size_t returned = schema.returns().size(), start = stack->size() - returned;
  for (size_t place = 0; place < returned; ++place) {
    const auto* alias = schema.returns()[place].alias_info();
    (*stack)[start + place] = changed((*stack)[start + place], [&](const Tensor& made) -> Tensor {
      for (const auto& [tensor, other] : pairs) {
        if (other.is_same(made)) return tensor;
        if (alias && !alias->isWrite() && is_here(tensor) && made.storage().is_alias_of(other.storage()))
          return at::native::as_strided_tensorimpl(tensor, made.sizes(), made.strides(), made.storage_offset());
      }
      if (on_values) return from_host(made);
      return empty_strided_here(made.sizes(), made.strides(), made.scalar_type());
    });
  }
}

// ---------------------------------------------------------------------------------------------- operations of its own

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  TORCH_CHECK(at::is_expandable_to(source.sizes(), self.sizes()), "copy_: sizes ", source.sizes(), " and ", self.sizes());
  if (readable(self) && readable(source)) {
    on_host(self).copy_(on_host(source));
  } else if (!is_here(self) && self.nbytes() <= static_cast<size_t>(kMiB)) {
    self.zero_();
  }
  return self;
}

at::Scalar local_scalar(const Tensor& self) {
  if (readable(self)) return on_host(self).item();
  return at::isFloatingType(self.scalar_type()) ? at::Scalar(0.0) : at::Scalar(0);
}

// As many elements as the mask has true ones; all of them when the mask follows from values that do not exist.
Tensor masked_select(const Tensor& self, const Tensor& mask) {
  const auto sizes = at::infer_size(self.sizes(), mask.sizes());
  const Tensor chosen = (readable(mask) ? on_host(mask) : at::ones(mask.sizes(), at::kBool)).expand(sizes);
  if (readable(self)) return from_host(on_host(self).masked_select(chosen));
  return empty_strided_here({chosen.sum().item<int64_t>()}, {1}, self.scalar_type());
}

bool equal(const Tensor& self, const Tensor& other) {
  if (self.sizes() != other.sizes()) return false;
  return !readable(self) || !readable(other) || at::equal(on_host(self), on_host(other));
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
  take_shape(self, at::empty(size, self.options().device(at::kMeta)));
  return self;
}

// ---------------------------------------------------------------------------------------------- the host's memory

// Large tensors on the host are address space alone: nobody writes to them, and what they would take is counted.
constexpr size_t kLargeOnHost = 16 * kMiB;

std::atomic<bool> host_watched{false};
std::atomic<int64_t> host_bytes{0}, host_peak{0};

struct HostBlock {
  void* data;
  size_t bytes;
};

void release_on_host(void* context) {
  auto* block = static_cast<HostBlock*>(context);
  host_bytes -= static_cast<int64_t>(block->bytes);
  if (block->bytes >= kLargeOnHost) munmap(block->data, block->bytes);
  else c10::free_cpu(block->data);
  delete block;
}

struct HostAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release_on_host, Device(DeviceType::CPU)};
    void* data = bytes < kLargeOnHost
        ? c10::alloc_cpu(bytes)
        : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(data != MAP_FAILED, "no address space for ", bytes, " bytes on the host");
    const int64_t now = host_bytes += static_cast<int64_t>(bytes);
    if (now > host_peak) host_peak = now;
    return {data, new HostBlock{data, bytes}, &release_on_host, Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    if (bytes < kLargeOnHost) default_copy_data(to, from, bytes);
  }
};

HostAllocator host_allocator;

bool large_on_host(const Tensor& tensor) {
  return host_watched && tensor.device().is_cpu() && tensor.storage().nbytes() >= kLargeOnHost;
}

Tensor& copy_on_host(Tensor& self, const Tensor& source, bool non_blocking) {
  if (large_on_host(self) || large_on_host(source)) return self;
  return at::native::copy_(self, source, non_blocking);
}

Tensor& zero_on_host(Tensor& self) { return large_on_host(self) ? self : at::native::zero_(self); }

Tensor& fill_on_host(Tensor& self, const at::Scalar& value) {
  return large_on_host(self) ? self : at::native::fill_(self, value);
}

// ---------------------------------------------------------------------------------------------- kernels by card

struct CardFacts {
  int64_t major = 8, minor = 0;
  bool flash = true;                // flash attention kernels
  bool half_efficient = true;       // memory-efficient attention in float16
  bool bfloat_efficient = true;     // memory-efficient attention in bfloat16
  int64_t workspace_bytes = 0;      // of one cuBLAS handle
};

CardFacts card;

// The order of ATen/native/transformers/cuda/sdp_utils.cpp: flash, memory-efficient, plain (SDPBackend 1, 2, 0).
int64_t choose_attention(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask, double,
    bool, std::optional<double>, bool grouped) {
  auto& context = at::globalContext();
  if (query.dim() != 4) return 0;
  const auto type = query.scalar_type();
  const bool half = type == at::kHalf, bfloat = type == at::kBFloat16;
  const bool has_mask = mask.has_value() && mask->defined();
  const bool same_heads = query.size(1) == key.size(1) && key.size(1) == value.size(1);
  if (card.flash && context.userEnabledFlashSDP() && (half || bfloat) && !has_mask && query.size(3) <= 256 &&
      query.size(3) == value.size(3) && (same_heads || grouped))
    return 1;
  const bool efficient_type = half ? card.half_efficient : bfloat ? card.bfloat_efficient : type == at::kFloat;
  return efficient_type && context.userEnabledMemEfficientSDP() && same_heads ? 2 : 0;
}

// cuBLAS takes a workspace for each thread's handle and stream at its first matrix product, and keeps it.
void use_workspace(const std::string& name) {
  static const std::unordered_set<std::string> products{
      "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation", "aten::addmv_"};
  if (!card.workspace_bytes || !products.count(name)) return;
  thread_local std::unordered_set<int64_t> taken;
  if (taken.insert(current_stream).second) (new c10::DataPtr)->operator=(allocate_block(card.workspace_bytes, false));
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream stream(int64_t id) const { return Stream(Stream::UNSAFE, kDevice, id); }
  Stream getStream(Device) const override { return stream(current_stream); }
  Stream getDefaultStream(Device) const override { return stream(0); }
  Stream getStreamFromGlobalPool(Device, bool) const override { return stream(1); }
  Stream getNewStream(Device, int) const override { return stream(1); }
  Stream exchangeStream(Stream next) const override {
    const int64_t before = current_stream;
    current_stream = next.id();
    return stream(before);
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void record(void**, const Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &host_allocator; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

}  // namespace phantom

namespace at::native {
REGISTER_CUDA_DISPATCH(_fused_sdp_choice_stub, &phantom::choose_attention)
}
namespace at {
using PhantomHooks = phantom::Hooks;
C10_REGISTER_CLASS_WITH_PRIORITY(CUDAHooksRegistry, CUDAHooks, c10::REGISTRY_PREFERRED, PhantomHooks)
}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&phantom::run>());
}

const std::unordered_set<std::string> kOwn{
    "aten::empty.memory_format", "aten::empty_strided", "aten::as_strided", "aten::view", "aten::_reshape_alias",
    "aten::copy_", "aten::_local_scalar_dense", "aten::masked_select", "aten::equal", "aten::set_.source_Storage",
    "aten::set_.source_Storage_storage_offset", "aten::set_.source_Tensor", "aten::resize_"};

// In a PyTorch that was built with CUDA: put the fallback in the place of its kernels.
void replace_kernels() {
  auto& dispatcher = c10::Dispatcher::singleton();
  auto* kept = new std::vector<c10::RegistrationHandleRAII>;
  for (const auto& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findSchema(name);
    if (!op || !op->hasKernelForDispatchKey(c10::DispatchKey::CUDA) || name.name.rfind("aten::", 0) != 0) continue;
    if (kOwn.count(name.overload_name.empty() ? name.name : name.name + "." + name.overload_name)) continue;
    kept->push_back(dispatcher.registerImpl(
        name, c10::DispatchKey::CUDA, c10::KernelFunction::makeFromBoxedFunction<&phantom::run>(), std::nullopt,
        nullptr, "phantom"));
  }
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
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
  for (const char* whole : {"convolution", "convolution_backward"})
    library.impl(whole, torch::CppFunction::makeFromBoxedFunction<&phantom::run>());
}

TORCH_LIBRARY_IMPL(aten, CPU, library) {
  library.impl("copy_", TORCH_FN(phantom::copy_on_host));
  library.impl("zero_", TORCH_FN(phantom::zero_on_host));
  library.impl("fill_.Scalar", TORCH_FN(phantom::fill_on_host));
}

// ---------------------------------------------------------------------------------------------- for Python

extern "C" {

// Become a card: which attention kernels it has and the bytes of a cuBLAS workspace.
void phantom_install(int64_t flash, int64_t half_efficient, int64_t bfloat_efficient, int64_t workspace_bytes) {
  static bool registered = false;
  if (!registered) {
    c10::impl::registerDeviceGuard(c10::DeviceType::CUDA, new phantom::Guard());
    replace_kernels();
  }
  registered = true;
  phantom::card.flash = flash;
  phantom::card.half_efficient = half_efficient;
  phantom::card.bfloat_efficient = bfloat_efficient;
  phantom::card.workspace_bytes = workspace_bytes;
}

// allocated, reserved, and their peaks since the last reset, in bytes; the number of events so far.
void phantom_stats(int64_t* out) {
  auto& the = phantom::log();
  std::lock_guard<std::mutex> lock(the.mutex);
  const auto& allocator = the.allocator;
  const int64_t values[] = {
      allocator.allocated(), allocator.reserved(), allocator.peak_allocated(), allocator.peak_reserved(),
      static_cast<int64_t>(the.events.size())};
  std::copy(std::begin(values), std::end(values), out);
}

void phantom_reset_peaks() {
  auto& the = phantom::log();
  std::lock_guard<std::mutex> lock(the.mutex);
  the.allocator.reset_peaks();
}

void phantom_empty_cache() {
  auto& the = phantom::log();
  std::lock_guard<std::mutex> lock(the.mutex);
  the.allocator.release_cached();
}

// Say what the storage at `pointer` is for; false when nothing lives there.
bool phantom_tag(const void* pointer, int64_t category) {
  auto& the = phantom::log();
  std::lock_guard<std::mutex> lock(the.mutex);
  const auto found = the.by_pointer.find(pointer);
  if (found != the.by_pointer.end()) the.tags[found->second] = category;
  return found != the.by_pointer.end();
}

// Play the log again on a card of `capacity` bytes. out: peaks of allocated and reserved, retries, the event and the
// allocated bytes at the highest point, the event that did not fit (-1: all did) and the bytes it asked for.
void phantom_replay(int64_t capacity, int64_t* out) {
  auto& the = phantom::log();
  std::lock_guard<std::mutex> lock(the.mutex);
  phantom::CachingAllocator allocator(capacity);
  std::unordered_map<int64_t, int64_t> addresses;
  int64_t highest = -1, at = 0, failed = -1, requested = 0;
  for (size_t index = 0; index < the.events.size() && failed < 0; ++index) {
    const auto& event = the.events[index];
    if (event.bytes < 0) {
      allocator.release(addresses.at(event.id));
      addresses.erase(event.id);
      continue;
    }
    try {
      addresses[event.id] = allocator.allocate(event.bytes, event.stream);
    } catch (const phantom::OutOfMemory& full) {
      failed = static_cast<int64_t>(index);
      requested = full.requested;
    }
    if (allocator.allocated() > highest) {
      highest = allocator.allocated();
      at = static_cast<int64_t>(index);
    }
  }
  const int64_t values[] = {
      allocator.peak_allocated(), allocator.peak_reserved(), allocator.retries(), at, failed, requested};
  std::copy(std::begin(values), std::end(values), out);
}

// Bytes alive right after event `index`, by category 0 .. count-1; unclaimed ones are category 0.
void phantom_alive(int64_t index, int64_t count, int64_t* out) {
  auto& the = phantom::log();
  std::lock_guard<std::mutex> lock(the.mutex);
  std::fill(out, out + count, 0);
  for (const auto& [id, bytes] : phantom::alive_after(the, index)) {
    const auto tag = the.tags.find(id);
    out[tag == the.tags.end() ? 0 : tag->second] += bytes;
  }
}

// Say what everything is for that is alive right after event `index` and that nobody claimed.
void phantom_tag_alive(int64_t index, int64_t category) {
  auto& the = phantom::log();
  std::lock_guard<std::mutex> lock(the.mutex);
  for (const auto& [id, bytes] : phantom::alive_after(the, index)) the.tags.try_emplace(id, category);
}

// Give a storage (its StorageImpl) another size, as storage.resize_ does on a GPU.
void phantom_resize(void* storage, int64_t bytes) {
  auto* impl = static_cast<c10::StorageImpl*>(storage);
  if (static_cast<int64_t>(impl->nbytes()) == bytes) return;
  impl->set_data_ptr_noswap(phantom::allocate_block(bytes, false));
  impl->set_nbytes(bytes);
}

// Count what tensors take on the host from now on, and give large ones no memory.
void phantom_watch_host() {
  phantom::host_watched = true;
  c10::SetCPUAllocator(&phantom::host_allocator, 255);
}

int64_t phantom_host_peak() { return phantom::host_peak; }

int64_t phantom_set_stream(int64_t stream) {
  std::swap(phantom::current_stream, stream);
  return stream;
}
}
