"""The phantom device: a simulated GPU, on which training code runs unchanged and at full size.

The C++ library (device.cpp) registers itself as PyTorch's CUDA backend. Its tensors have shapes and types, but most
have no memory. The Python modules replace functions of torch.cuda and of other libraries.

The device has two logs. The log of memory has an event for each allocation and each release. A replay repeats these
events with an allocator of another capacity. The log of operations has a key for each operation: a JSON text with the
name of the operation, and the types and shapes of its arguments.
"""
