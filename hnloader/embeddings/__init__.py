"""Textual-inversion embeddings: reading and writing every form in which webuis and diffusers keep them."""

from hnloader.embeddings.embedding import Embedding
from hnloader.embeddings.files import load_embedding, save_embedding

__all__ = ["Embedding", "load_embedding", "save_embedding"]
