"""Home of the generated stubs of the Open Inference Protocol."""
