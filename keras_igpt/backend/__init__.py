"""The one place that asks which backend runs, or touches what Keras keeps private.

Elsewhere a function from here is called by what it means:

- `gradients`, `row_reductions`, `fused_attention`: what a backend's kernels and compilers do not do well by themselves;
- `compilation`, `direct_call`: running functions and layers compiled, or without what surrounds them;
- `devices`, `processes`: the memory there is, and who has which part of a batch or a tensor;
- `optimizers`, `whole_steps`, `whole_saving`, `untracked`: training state that is whole, wherever a process is stopped;
- `traced_gradients`: memory that TensorFlow would not give back.
"""
