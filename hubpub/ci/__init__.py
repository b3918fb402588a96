"""The jobs of the workflows, and what GitHub understands of them."""
