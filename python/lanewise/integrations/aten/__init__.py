"""torch's own operators on the CPU, routed to lanewise's kernels: no change to a program.

    lanewise.enable()                     # for the whole process, until lanewise.disable()
    with lanewise.use() as report:        # for a block
        model(x)
    print(report)

What is routed are the kernels that torch's dispatcher keeps for the CPU, below autograd: whatever
leads to them (nn.Linear, torch.matmul, autograd's own products, ...) is served, and autograd,
torch.func, autocast, torch.compile and tensor subclasses work as they did. A call that lanewise
does not serve, or not as fast, goes on to the kernel that was there.
"""

from lanewise.integrations.aten.report import Report
from lanewise.integrations.aten.scope import ROUTED, disable, enable, use

__all__ = ["ROUTED", "Report", "disable", "enable", "use"]
