// Prints how products of eight-bit operands are cut on a device that needs not be there. Arguments: multiprocessors,
// then for each product its rows, outputs, inputs, and 1 where GELU follows.
#include <cstdio>
#include <cstdlib>

#include "efft/cuda/linear/choose.h"

using namespace efft::cuda;

int main(int count, char** arguments) {
  static constexpr const char* kCuts[] = {"columns96", "turns128", "turns176", "turns192", "columns256"};
  DeviceInfo device;
  device.multiprocessors = std::atoi(arguments[1]);
  for (int i = 2; i + 3 < count; i += 4) {
    const EightBitShape shape{std::atoi(arguments[i]), std::atoi(arguments[i + 1]), std::atoi(arguments[i + 2]),
                              std::atoi(arguments[i + 3]) != 0};
    std::printf("%s\n", kCuts[static_cast<int>(choose_eight_bits(device, shape))]);
  }
}
