// The whole SIMD layer, for kernel sources.
#pragma once

#include "simd/math.h"
#include "simd/memory.h"
