"""A trained model for other programs: ONNX, torch.export, .safetensors, and a folder for the hub."""
