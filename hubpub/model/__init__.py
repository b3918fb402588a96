"""From a multimodal checkpoint to a plain text decoder, and the small checkpoints rehearsals use instead."""
