"""Evidence about kernels for GPUs that are not here: what the compilers make of them.

One file per family lists the launches that it ships (`cases()`) and what their kernels are built
for (`PROMISES`); `catalogue` finds them, `compile` hands their launches to the compilers,
`machine_code` reads what comes out, `record` keeps it in a file and `page` shows it.
"""
