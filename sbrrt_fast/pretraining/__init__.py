"""Further pre-training of a BERT checkpoint: masked words and next sentences."""
