"""Task files, tokenisation, packed batches and the built-in sample."""
