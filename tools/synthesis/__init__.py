"""Parts of tools/synthesize_corpus.py: text, voices, rooms, and corpora in the folder layout of real ones."""
