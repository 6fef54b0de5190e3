"""The encoder that plans are tried on: one stack of one layer."""

from spear_lib.encoders.zipformer import ZipformerConfig

TINY = ZipformerConfig(
    frontend_channels=(2, 4, 8),
    downsampling_factor=(2,),
    num_encoder_layers=(1,),
    encoder_dim=(32,),
    feedforward_dim=(64,),
    encoder_unmasked_dim=(24,),
    num_heads=(2,),
    query_head_dim=(8,),
    cnn_module_kernel=(15,),
)
