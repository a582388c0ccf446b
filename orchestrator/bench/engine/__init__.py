"""`tandem bench engine`: the native engine beside transformers and vLLM on the same weights."""
