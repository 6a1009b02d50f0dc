"""Generated stubs of the Open Inference Protocol v2; `make protos` writes them."""
