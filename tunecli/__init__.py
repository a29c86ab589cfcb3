"""tunecli tunes the training of a PyTorch model from the command line."""

__version__ = "0.1.0"
