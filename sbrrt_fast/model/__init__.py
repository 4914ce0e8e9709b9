"""MiniBert, its pooling and heads, and Hugging Face weights in and out."""
