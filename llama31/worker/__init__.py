"""Home of the generated stubs of the worker protocol."""
