// What the choice of kernels needs to know of a device. No CUDA header: tests make such a device up and ask for the
// choices on a machine without a GPU.
#pragma once

namespace efft::cuda {

struct DeviceInfo {
  int index = 0;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int shared_bytes = 0;  // of a multiprocessor
  // Runs the kernels of sm_90a: compute capability 9.0, that code in this library, a driver that encodes tensor maps.
  bool hopper = false;
  // Warps multiply numbers of eight bits: integers from 8.0 on, e4m3 from 8.9 on.
  bool integers = false, e4m3 = false;

  // The current device's, read once for each device. Throws std::runtime_error where there is none.
  static const DeviceInfo& current();
};

}  // namespace efft::cuda
