"""Why a call goes on to torch; what is particular to one family stands there."""

SERVED = ""  # for no reason: it does not

DTYPE = "dtypes are not float32, bfloat16 or float16 alike"
EMPTY = "no elements"
SHAPE = "shapes are not what the op takes"  # torch will say so, if it does not know more
STRIDE = "last dimension is not contiguous"
TOO_SMALL = "too small to repay a detour of microseconds"
TORCH_IS_FASTER = "torch is faster at this shape and dtype"
UNMEASURED = "not measured on this instruction set at this dtype"
