"""Self-distillation with online clusters: SpidR and DinoSR, on their own encoder and on the Zipformer."""
