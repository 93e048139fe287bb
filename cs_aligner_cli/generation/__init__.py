"""Text to image: unCLIP decoders that draw from embeddings, and what their pictures are worth."""
