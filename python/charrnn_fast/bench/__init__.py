"""Benchmarks of the kernels against their peers, in one run. Imported only by the command `bench`.

cases      what is computed, how many operations and bytes that takes
problem    the arrays of one case, the same for every side
peers/     one module per side: the kernels, NumPy, PyTorch, JAX, ONNX Runtime
host       opens, checks and times the peers, in the process where it is
worker     a process of the peers' own
machine    the machine's facts, its FMA peak and its read bandwidth
runner     checks outputs, then times the sides in turns
report     results as JSON and Markdown;  compare, plots: of such results
command    the command line's `bench`
"""
