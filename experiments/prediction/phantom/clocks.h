// Times at which the host has started operations, and the GPU has executed them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace phantom {

// Points in time, in seconds: when the host has started, and the GPU has executed, a number of operations. Times
// between two points are interpolated linearly.
class Clocks {
 public:
  void add(int64_t operations, double host_s, double gpu_s) { points_.push_back({operations, host_s, gpu_s}); }
  void clear() { points_.clear(); }

  // Return whether the GPU has executed the first `executed` operations when the host has started `started` operations.
  // Return true if there are no points, and after the last point.
  bool gpu_has_executed(int64_t executed, int64_t started) const {
    if (points_.empty() || started > points_.back().operations) return true;
    return time_after(executed, &Point::gpu_s) <= time_after(started, &Point::host_s);
  }

 private:
  struct Point {
    int64_t operations;
    double host_s, gpu_s;
  };

  // Of several points with the same number, the last one counts: the host has waited there.
  double time_after(int64_t operations, double Point::*clock) const {
    const auto next = std::upper_bound(
        points_.begin(), points_.end(), operations, [](int64_t number, const Point& point) { return number < point.operations; });
    if (next == points_.begin()) return (*next).*clock;
    const Point& before = *(next - 1);
    if (next == points_.end()) return before.*clock;
    const Point& after = *next;
    const double share = double(operations - before.operations) / double(after.operations - before.operations);
    return before.*clock + share * (after.*clock - before.*clock);
  }

  std::vector<Point> points_;
};

}  // namespace phantom
