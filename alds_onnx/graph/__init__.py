"""All that knows the ONNX format: files, scopes, layers, and the rewrite."""
