"""What all ops share: the libraries of writing ops, the backends, the choice, the autograd rule."""
