"""The native engine: hybrid Mamba/attention/MoE models on plain PyTorch."""
