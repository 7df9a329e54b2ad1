"""The methods, one idea a file: tensors and callables, no flags, no processes."""
