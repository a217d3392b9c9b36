"""The same convolutions on arrays that live on an NVIDIA GPU."""
