"""Speech recognition: text units, the transducer model with its losses, searches."""
