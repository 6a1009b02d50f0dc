"""Generated stubs of the public API; `make protos` writes them."""
