// The names that the schemas give to the activations.
#pragma once

#include <iterator>
#include <stdexcept>
#include <string>

#include "activation/kernel.h"

namespace lanewise {

inline Activation parse_activation(const char* op, const std::string& name) {
  constexpr const char* kNames[] = {"none", "relu", "gelu", "gelu_tanh", "silu", "tanh"};
  std::string choices;
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i) {
    if (name == kNames[i]) return static_cast<Activation>(i);
    choices += (i ? ", " : "") + std::string(kNames[i]);
  }
  throw std::runtime_error("lanewise." + std::string(op) + ": activation must be one of " +
                           choices + ", got '" + name + "'");
}

}  // namespace lanewise
