"""Fast equivalents of the models: one switch, kernels for the CPU and the GPU, folding, int8 and the search."""
