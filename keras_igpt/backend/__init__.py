"""All code that depends on the backend or uses Keras internals.

- `gradients`, `row_reductions`, `fused_attention`: kernels, custom gradients and workarounds for compilers;
- `compilation`, `direct_call`: compiled functions, and layers without Keras' call overhead;
- `devices`, `processes`: device memory, and the parts of batches and tensors on several processes;
- `optimizers`, `whole_steps`, `whole_saving`, `untracked`: training state that survives interrupts;
- `traced_gradients`: a memory leak of TensorFlow.
"""
