"""The texts beside a saved model: what it is, how good it is, and how it is loaded."""
