"""Textual-inversion embeddings: read and write the forms of the webuis and of diffusers."""

from hnloader.embeddings.embedding import Embedding
from hnloader.embeddings.embedding_reader import load_embedding
from hnloader.embeddings.embedding_writer import save_embedding

__all__ = ["Embedding", "load_embedding", "save_embedding"]
