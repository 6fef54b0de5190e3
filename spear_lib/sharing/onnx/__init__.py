"""Models as ONNX files with the names, shapes and metadata that sherpa-onnx reads."""
