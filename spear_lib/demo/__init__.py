"""A local page to try a model: what it shows of a recording, the pictures, the page (spear demo)."""
