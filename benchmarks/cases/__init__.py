"""What is measured: the variants of every op, of whole rounds and of what stands beside them."""
