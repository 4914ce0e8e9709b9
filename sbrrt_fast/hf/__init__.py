"""The fused ops inside models of Hugging Face's transformers, which nothing here imports early."""
