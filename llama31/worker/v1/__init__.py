"""Generated stubs of the worker protocol; `make protos` writes them."""
