"""From a text decoder and a recipe to a .pte file, and nothing else."""
