"""What is trained as others read it: folders of transformers, ONNX files."""
