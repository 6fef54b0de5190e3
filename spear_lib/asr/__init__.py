"""Speech recognition: text units, data, the transducer model with its losses, searches, scores, export."""
