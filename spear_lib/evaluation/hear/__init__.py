"""HEAR 2021: task folders, the predictor on frozen embeddings, and the scores, as in heareval 2021.1.3."""
