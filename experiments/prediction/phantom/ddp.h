// The timer of DDP on the GPU.

#pragma once

#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

namespace phantom {

// Let DDP measure no times on the GPU, as in PyTorch's build without CUDA. The timer of the build with CUDA needs a
// driver.
void remove_timer_of_ddp() {
  c10d::TimerRegistry()->Register(
      c10::DeviceType::CUDA, [](c10::Device) { return std::unique_ptr<c10d::Timer>(); }, c10::REGISTRY_PREFERRED);
}

}  // namespace phantom
