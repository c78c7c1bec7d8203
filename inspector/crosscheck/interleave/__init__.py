"""Every interleaving of two or three operations: the kernel's code as fibers, the model on the same schedule."""
