"""Stages 0 to 2: corpora in their own layouts, read into cuts, validated, and divided into subsets."""
