"""The model: specs, prompt format, token stream codec and engine of Llama 3.1."""
